"""BiLSTM: maps the log-magnitude spectrum of bone-conducted speech to that of air-conducted speech; keeps the phase.

Source: Zheng, Zhang, Sun, Yang and Xing, "A Novel Throat Microphone Speech Enhancement Framework Based on Deep BLSTM
Recurrent Neural Networks", ICCC 2018, pages 1258 to 1262: magnitude spectra of a throat microphone, transformed
directly by bidirectional LSTMs (Graves and Schmidhuber, 2005). Differences, and what the paper leaves open:
- sizes (4.3 M parameters) and the STFT are ours: those of the paper were not available
- it is used on speakers that are not in the training data; theirs is trained for one speaker
- both channels are divided by the peak of the bone channel, and the output is multiplied by it, to keep the level
- one dense layer after the LSTMs; the loss is the squared error of normalized log-magnitudes
It needs the whole signal, because half of the LSTM units run backward and the peak is that of the signal.
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

QUIET = 1e-5  # lower limit of the peak by which audio is divided
NARROW = 1e-3  # lower limit of the standard deviation of a bin, in nepers
HIGHEST = 10.0  # upper limit of a normalized log-magnitude: speech does not exceed ten standard deviations


@dataclass(frozen=True)
class BilstmConfig(EnhancerConfig):
    """Sizes of the network."""

    sample_rate: int = 16000  # Hz
    n_fft: int = 512  # samples of the Fourier transform
    hop_length: int = 128  # samples between consecutive frames
    units: int = 256  # units of each layer in each direction
    layers: int = 3  # number of bidirectional layers

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

    ``bone`` and ``air`` (2, n_fft // 2 + 1) are mean and deviation of the log-magnitudes of each channel, by bin; they
    are measured by ``prepare`` and stored with the weights.
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
        """Enhanced audio, and ``mse``: the mean squared error of normalized log-magnitudes."""
        enhanced, estimate = self._restored(degraded)
        target = self._normalized(self._levels(clean / _peak(degraded)), self.air)
        return enhanced, {"mse": F.mse_loss(estimate, target)}

    @torch.no_grad()
    def prepare(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Measure ``bone`` and ``air`` on pairs of degraded and clean audio, (B, 1, T) each.

        Raises DataError if all degraded or all clean audio is silent.
        """
        sums = torch.zeros(2, 2, self.bone.shape[1], dtype=torch.float64, device=self.bone.device)
        frames, loudest = 0, torch.zeros(2)
        for pair in pairs:
            peak = _peak(pair[0].to(sums.device))
            for index, audio in enumerate(pair):
                levels = self._levels(audio.to(sums.device) / peak).transpose(0, 1).flatten(1).double()
                sums[index] += torch.stack([levels.sum(1), levels.square().sum(1)])
                loudest[index] = max(loudest[index], audio.abs().max())
            frames += levels.shape[1]
        if not frames or not loudest.all():
            raise DataError("bilstm: the degraded or the clean audio of all pairs is silent")
        mean, square = (sums / frames).unbind(1)
        deviation = (square - mean.square()).clamp_min(NARROW**2).sqrt()
        for name, statistics in zip(("bone", "air"), torch.stack([mean, deviation], 1), strict=True):
            getattr(self, name).copy_(statistics)

    def _restored(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Enhanced audio, and the estimated normalized log-magnitudes (B, n_fft // 2 + 1, L)."""
        peak = _peak(audio)
        spectrum = self.stft.spectrum(audio / peak)
        input_magnitudes = magnitudes(spectrum)
        hidden, _ = self.lstm(self._normalized(input_magnitudes.log(), self.bone).mT)
        estimate = self.dense(hidden).mT.float()
        mean, deviation = self.air[..., None]
        magnitudes_out = (estimate.clamp_max(HIGHEST) * deviation + mean).exp()
        return self.istft(spectrum * (magnitudes_out / input_magnitudes)) * peak, estimate

    def _levels(self, audio: Tensor) -> Tensor:
        """Log-magnitudes (B, n_fft // 2 + 1, L)."""
        return magnitudes(self.stft.spectrum(audio)).log()

    @staticmethod
    def _normalized(levels: Tensor, statistics: Tensor) -> Tensor:
        mean, deviation = statistics[..., None]
        return (levels - mean) / deviation

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        return self.config.hop_length


def _peak(audio: Tensor) -> Tensor:
    """The peak of each signal: (B, 1, T) -> (B, 1, 1)."""
    return audio.float().abs().amax(-1, keepdim=True).clamp_min(QUIET)
