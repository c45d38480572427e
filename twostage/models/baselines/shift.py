"""Baselines without training: the unchanged input, and its low band copied upward.

`Lowpass` returns its input, which the body has low-passed: the lower bound that every enhancer must beat.

`Shift` regenerates the missing band by spectral translation, with the envelope of a fitted filter. Sources: Makhoul and
Berouti, "High-frequency regeneration in speech coding systems", ICASSP 1979, section on spectral duplication; Dietz,
Liljeryd, Kjörling and Kunz, "Spectral Band Replication, a novel approach in audio coding", AES 112th Convention, 2002,
paper 5553. Differences:
- no side information: the envelope of the regenerated band follows that of the copied band from frame to frame, with
  fixed gains, which are given by a slope or measured on pairs
- an STFT instead of filter banks; its source band is copied repeatedly up to half the sample rate
- no noise or tones are added, and copies do not continue the harmonics of the voice at their boundaries
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor
from torch.nn import functional as F

from twostage.models.enhancer import EnhancerConfig, EnhancerModule
from twostage.models.features import Istft, Stft, magnitudes, power
from twostage.utils.errors import ConfigError, DataError

ACTIVE = 1e-4  # of the power of the loudest frame of a segment: frames 40 dB below it are pauses, which the fit ignores
DECIBELS = 20 / log(10)  # per neper


@dataclass(frozen=True)
class LowpassConfig(EnhancerConfig):
    """A configuration without settings."""

    sample_rate: int = 16000  # Hz


class Lowpass(EnhancerModule):
    """Audio (B, 1, T), unchanged: the speech that the body's low-pass leaves."""

    context, latency = 0, 0.0

    def __init__(self, config: LowpassConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, audio: Tensor) -> Tensor:
        return audio.float()

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate


@dataclass(frozen=True)
class ShiftConfig(EnhancerConfig):
    """The band between ``source`` and ``cutoff`` is copied to the empty band from ``cutoff`` on."""

    sample_rate: int = 16000  # Hz
    cutoff: float = 1500.0  # Hz
    source: float = 500.0  # Hz
    slope: float = -6.0  # dB per octave of the copy relative to its source; that of speech is about -6
    bands: int = 16  # of equal width above the cutoff; Shift.prepare measures the gain of each
    n_fft: int = 512  # samples of the Fourier transform
    hop_length: int = 128  # samples between consecutive frames

    def __post_init__(self) -> None:
        divides = self.hop_length > 0 and self.n_fft % self.hop_length == 0
        if not divides or self.overlap < 2 or (self.n_fft - self.hop_length) % 2:
            raise ConfigError(
                f"model.hop_length is {self.hop_length}, must divide model.n_fft, {self.n_fft}, twice at least, and "
                "leave an even number of it"
            )
        if not 0 < self.cutoff < self.sample_rate / 2:
            raise ConfigError(f"model.cutoff is {self.cutoff}, must lie between 0 and {self.sample_rate / 2}")
        if not 0 <= self.source < self.cutoff or self.width > self.first:
            raise ConfigError(f"model.source is {self.source}, must lie between 0 and model.cutoff, {self.cutoff}")
        above = self.n_fft // 2 + 1 - self.first
        if not 1 <= self.bands <= above:
            raise ConfigError(f"model.bands is {self.bands}, must be 1 to {above}, the bins above the cutoff")

    @property
    def overlap(self) -> int:
        return self.n_fft // self.hop_length

    @property
    def first(self) -> int:
        """The lowest bin that is regenerated."""
        return round(self.cutoff * self.n_fft / self.sample_rate)

    @property
    def width(self) -> int:
        """Bins in a copy; they shift by whole cycles per hop, so that the copy of a tone is a tone."""
        bins = (self.cutoff - self.source) * self.n_fft / self.sample_rate
        return max(1, round(bins / self.overlap)) * self.overlap


class Shift(EnhancerModule):
    """Audio (B, 1, T) -> (B, 1, T // hop_length * hop_length); the band above the cutoff is generated from that below.

    It has no parameters; ``correction``, in dB by band, is fitted in closed form and stored with the weights.
    """

    origin: Tensor
    slope: Tensor
    band: Tensor
    correction: Tensor

    def __init__(self, config: ShiftConfig) -> None:
        super().__init__()
        self.config = config
        self.stft = Stft(config.n_fft, config.hop_length)
        self.istft = Istft(self.stft)
        above = torch.arange(config.first, config.n_fft // 2 + 1)
        origin = config.first - config.width + (above - config.first) % config.width
        slope = config.slope * torch.log2(above / origin.clamp_min(1))
        band = (above - config.first) * config.bands // len(above)
        for name, value in (("origin", origin), ("slope", slope), ("band", band)):
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("correction", torch.zeros(config.bands))

    def forward(self, audio: Tensor) -> Tensor:
        spectrum = self.stft.spectrum(audio)
        audio = audio[..., : spectrum.shape[-1] * self.hop_length].float()
        gain = (self.correction[self.band] / DECIBELS).exp()[:, None]
        change = self._copied(spectrum) * gain - spectrum[:, self.config.first :]
        return audio + self.istft(F.pad(change, (0, 0, self.config.first, 0)))

    @torch.no_grad()
    def prepare(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fit ``correction`` to pairs of degraded and clean audio, (B, 1, T) each.

        It is the mean over frames and bins of the log ratio of clean to copied magnitudes, by band, which minimizes the
        squared log-spectral distance. Raises DataError if all clean audio is silent.
        """
        device = self.correction.device
        total, frames = torch.zeros(self.config.bands, dtype=torch.float64, device=device), 0
        for degraded, clean in pairs:
            target, copied = (self.stft.spectrum(audio.to(device)) for audio in (clean, degraded))
            ratio = magnitudes(target[:, self.config.first :]).log() - magnitudes(self._copied(copied)).log()
            level = power(target).sum(1)
            active = level > ACTIVE * level.amax(-1, keepdim=True)
            total.index_add_(0, self.band, ratio.mT[active].sum(0, dtype=torch.float64))
            frames += int(active.sum())
        if not frames:
            raise DataError("shift: the clean audio of all pairs is silent")
        bins = torch.bincount(self.band, minlength=self.config.bands)
        self.correction.copy_(DECIBELS * total / (frames * bins))

    def _copied(self, spectrum: Tensor) -> Tensor:
        """The bins above the cutoff before the correction: (B, n_fft // 2 + 1, L) -> (B, bins, L)."""
        return spectrum[:, self.origin] * (self.slope / DECIBELS).exp()[:, None]

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        return self.config.hop_length

    @property
    def context(self) -> int:
        """The largest number of samples on each side that an output sample depends on, by way of its frames."""
        return self.config.n_fft - 1

    @property
    def latency(self) -> float:
        """The number of future samples that an output sample depends on."""
        return float(self.context)
