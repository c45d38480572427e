"""What costs nothing to train: the input as it came, and its own low band copied upwards.

`Lowpass` is the floor that every enhancer must beat: the body is the low-pass, nothing is done about it.

`Shift` regenerates the missing band by spectral translation, with the envelope of a fitted filter. Sources: Makhoul and
Berouti, "High-frequency regeneration in speech coding systems", ICASSP 1979, section on spectral duplication; Dietz,
Liljeryd, Kjörling and Kunz, "Spectral Band Replication, a novel approach in audio coding", AES 112th Convention, 2002,
paper 5553. What differs from them:
- no side information: the envelope of the regenerated band follows that of the copied one from frame to frame, by gains
  that are the same at all times; a slope, or measured on pairs
- an STFT instead of their filter banks, a band of it copied as often as it takes to reach half the sample rate
- neither noise nor tones are added, and copies do not continue the voice's harmonics where they join
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

ACTIVE = 1e-4  # of the power of a segment's loudest frame: 40 dB below it, a frame is a pause and is not fitted to
DECIBELS = 20 / log(10)  # of a neper


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
    slope: float = -6.0  # dB an octave by which a copy is quieter than its source; -6 is about that of speech
    bands: int = 16  # of equal width above the cutoff, each with its own gain, once Shift.prepare has measured them
    n_fft: int = 512  # samples of the Fourier transform
    hop_length: int = 128  # samples from one frame to the next

    def __post_init__(self) -> None:
        whole = self.hop_length > 0 and self.n_fft % self.hop_length == 0
        if not whole or self.overlap < 2 or (self.n_fft - self.hop_length) % 2:
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
        """Bins that are copied at a time; a whole number of cycles a hop, so that the copy of a tone is a tone."""
        bins = (self.cutoff - self.source) * self.n_fft / self.sample_rate
        return max(1, round(bins / self.overlap)) * self.overlap


class Shift(EnhancerModule):
    """Audio (B, 1, T) -> (B, 1, T // hop_length * hop_length); the band above the cutoff is made from that below.

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
        """Fit ``correction`` to pairs of degraded and clean audio, (B, 1, T) each, from scratch.

        The mean over frames and bins of the logarithm of clean over copied magnitudes, band by band, which has the
        least squared log-spectral distance. Raises DataError if the clean side is silent.
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
            raise DataError("shift: the clean side of the pairs is silent, there is nothing to fit to")
        bins = torch.bincount(self.band, minlength=self.config.bands)
        self.correction.copy_(DECIBELS * total / (frames * bins))

    def _copied(self, spectrum: Tensor) -> Tensor:
        """What the bins above the cutoff would be without correction: (B, n_fft // 2 + 1, L) -> (B, bins, L)."""
        return spectrum[:, self.origin] * (self.slope / DECIBELS).exp()[:, None]

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        return self.config.hop_length

    @property
    def context(self) -> int:
        """Samples that an output sample depends on, on each side, at most: of the frames that it lies in."""
        return self.config.n_fft - 1

    @property
    def latency(self) -> float:
        """Samples after one, until the last frame that it lies in is there."""
        return float(self.context)
