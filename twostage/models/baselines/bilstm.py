"""BiLSTM: the log-magnitude spectrum of bone-conducted speech becomes that of air-conducted speech, the phase stays.

Source: Zheng, Zhang, Sun, Yang and Xing, "A Novel Throat Microphone Speech Enhancement Framework Based on Deep BLSTM
Recurrent Neural Networks", ICCC 2018, pages 1258 to 1262: magnitude spectra of a throat microphone, transformed
directly by bidirectional LSTMs (Graves and Schmidhuber, 2005). What is ours:
- sizes (4.3 M parameters) and the STFT: the paper's were not to be had, so neither is compared with
- speakers of training and use differ, where theirs is trained for one speaker
- both channels are divided by the peak of the bone's, which at the end is multiplied with again: the level stays
- one dense layer behind the LSTMs; the squared error of normalized log-magnitudes
All of the signal is needed: half of the LSTMs read it backwards, and the peak is that of the whole.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.models.enhancer import EnhancerConfig, EnhancerModule
from twostage.models.features import Istft, Stft, magnitudes
from twostage.utils.errors import ConfigError, DataError

QUIET = 1e-5  # least peak that audio is divided by
NARROW = 1e-3  # least deviation of a bin, in nepers
HIGHEST = 10.0  # of a normalized log-magnitude: ten deviations above the mean is no speech


@dataclass(frozen=True)
class BilstmConfig(EnhancerConfig):
    """Sizes of the network."""

    sample_rate: int = 16000  # Hz
    n_fft: int = 512  # samples of the Fourier transform
    hop_length: int = 128  # samples from one frame to the next
    units: int = 256  # of each layer, in one direction
    layers: int = 3  # bidirectional

    def __post_init__(self) -> None:
        for name in ("units", "layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}, must be at least 1")
        if not 2 <= 2 * self.hop_length <= self.n_fft or (self.n_fft - self.hop_length) % 2:
            raise ConfigError(
                f"model.hop_length is {self.hop_length}, must be at most half of model.n_fft, {self.n_fft}, and leave "
                "an even number of it"
            )


class Bilstm(EnhancerModule):
    """Audio (B, 1, T) -> (B, 1, T // hop_length * hop_length).

    ``bone`` and ``air`` (2, n_fft // 2 + 1) are the mean and deviation of the channels' log-magnitudes by bin. They are
    measured by ``prepare`` and stored with the weights.
    """

    bone: Tensor
    air: Tensor
    context = inf

    def __init__(self, config: BilstmConfig) -> None:
        super().__init__()
        self.config, bins = config, config.n_fft // 2 + 1
        self.stft = Stft(config.n_fft, config.hop_length)
        self.istft = Istft(self.stft)
        self.lstm = nn.LSTM(bins, config.units, config.layers, batch_first=True, bidirectional=True)
        self.dense = nn.Linear(2 * config.units, bins)
        for name in ("bone", "air"):
            self.register_buffer(name, torch.tensor([[0.0], [1.0]]).repeat(1, bins))

    def forward(self, audio: Tensor) -> Tensor:
        return self._restored(audio)[0]

    def terms(self, degraded: Tensor, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Enhanced audio, and ``mse``: the mean squared error of log-magnitudes, each bin's deviation being 1."""
        enhanced, estimate = self._restored(degraded)
        wanted = self._normal(self._levels(clean / _peak(degraded)), self.air)
        return enhanced, {"mse": F.mse_loss(estimate, wanted)}

    @torch.no_grad()
    def prepare(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Measure ``bone`` and ``air`` on pairs of degraded and clean audio, (B, 1, T) each, from scratch.

        Raises DataError if one of them is silent throughout.
        """
        sums = torch.zeros(2, 2, self.bone.shape[1], dtype=torch.float64, device=self.bone.device)
        frames, loudest = 0, torch.zeros(2)
        for pair in pairs:
            peak = _peak(pair[0].to(sums.device))
            for place, audio in enumerate(pair):
                levels = self._levels(audio.to(sums.device) / peak).transpose(0, 1).flatten(1).double()
                sums[place] += torch.stack([levels.sum(1), levels.square().sum(1)])
                loudest[place] = max(loudest[place], audio.abs().max())
            frames += levels.shape[1]
        if not frames or not loudest.all():
            raise DataError("bilstm: one side of the pairs is silent, there is nothing to measure")
        mean, square = (sums / frames).unbind(1)
        deviation = (square - mean.square()).clamp_min(NARROW**2).sqrt()
        for name, statistics in zip(("bone", "air"), torch.stack([mean, deviation], 1), strict=True):
            getattr(self, name).copy_(statistics)

    def _restored(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Enhanced audio, and its log-magnitudes, normalized: (B, n_fft // 2 + 1, L)."""
        peak = _peak(audio)
        spectrum = self.stft.spectrum(audio / peak)
        size = magnitudes(spectrum)
        hidden, _ = self.lstm(self._normal(size.log(), self.bone).mT)
        estimate = self.dense(hidden).mT.float()
        mean, deviation = self.air[..., None]
        wanted = (estimate.clamp_max(HIGHEST) * deviation + mean).exp()
        return self.istft(spectrum * (wanted / size)) * peak, estimate

    def _levels(self, audio: Tensor) -> Tensor:
        """Log-magnitudes (B, n_fft // 2 + 1, L)."""
        return magnitudes(self.stft.spectrum(audio)).log()

    @staticmethod
    def _normal(levels: Tensor, statistics: Tensor) -> Tensor:
        mean, deviation = statistics[..., None]
        return (levels - mean) / deviation

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        return self.config.hop_length


def _peak(audio: Tensor) -> Tensor:
    """Of each signal: (B, 1, T) -> (B, 1, 1)."""
    return audio.float().abs().amax(-1, keepdim=True).clamp_min(QUIET)
