"""Log-mel and magnitude spectrograms: the representation that the two stages share."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.models.mel_scale import slaney_basis
from twostage.nn.streaming import Overlap, Past
from twostage.utils.errors import ConfigError


@dataclass(frozen=True)
class MelConfig:
    """Settings of a log-mel spectrogram, with the names of librosa."""

    sample_rate: int = 16000  # Hz
    n_fft: int = 1024  # samples of the Fourier transform
    win_length: int = 1024  # samples of the Hann window, at most n_fft
    hop_length: int = 256  # samples between consecutive frames
    n_mels: int = 80  # bands
    fmin: float = 0.0  # Hz, where the lowest band begins
    fmax: float = 8000.0  # Hz, where the highest band ends
    clamp: float = 1e-5  # lower limit of the magnitudes, before the logarithm
    causal: bool = False  # frame l ends with hop l instead of being centered on it: models use past samples only

    def __post_init__(self) -> None:
        if min(self.sample_rate, self.n_fft, self.win_length, self.hop_length, self.n_mels) < 1:
            raise ConfigError("mel: sample_rate, n_fft, win_length, hop_length and n_mels must be at least 1")
        if self.win_length > self.n_fft:
            raise ConfigError(f"mel.win_length is {self.win_length}, more than mel.n_fft, {self.n_fft}")
        if self.hop_length > self.n_fft or (self.n_fft - self.hop_length) % 2:
            raise ConfigError(
                f"mel.n_fft - mel.hop_length must be even, not negative: {self.n_fft} - {self.hop_length}"
            )
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise ConfigError(f"mel.fmin, mel.fmax: need 0 <= {self.fmin} < {self.fmax} <= {self.sample_rate / 2}")
        if self.clamp <= 0:
            raise ConfigError(f"mel.clamp is {self.clamp}, must be positive")

    def difference(self, other: "MelConfig") -> str:
        """Name the fields in which two settings differ; empty if they agree."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return ", ".join(f"mel.{name} is {mine} and {theirs}" for name, mine, theirs in pairs if mine != theirs)


def mel_basis(config: MelConfig, bins: int) -> Tensor:
    """Mel filter weights (bins, n_mels) at ``bins`` frequencies from 0 Hz to half the sample rate."""
    basis = slaney_basis(config.sample_rate, 2 * (bins - 1), config.n_mels, config.fmin, config.fmax)
    return torch.from_numpy(basis.T.copy())


class InputSpectra(NamedTuple):
    """Complex spectrograms of the input (B, n_fft // 2 + 1, L): see ``Stft.input_spectra``."""

    bone: Tensor  # of the bone-conduction microphone
    compressed: Tensor  # of the signed square root of its samples, which extends the harmonics upward
    air: Tensor | None = None  # of the air-conduction microphone, if there is one

    @property
    def channels(self) -> list[Tensor]:
        """The spectra of the microphones themselves: bone, or bone and air."""
        return [self.bone] if self.air is None else [self.bone, self.air]

    def each(self, change: Callable[[Tensor], Tensor]) -> "InputSpectra":
        """``change`` applied to every spectrogram."""
        air = None if self.air is None else change(self.air)
        return InputSpectra(change(self.bone), change(self.compressed), air)


class Stft(nn.Module):
    """Magnitude spectrogram without centering: (B, 1, T) -> (B, n_fft // 2 + 1, T // hop_length).

    The signal is padded by (n_fft - hop_length) / 2 samples on each side, by reflection as far as its length allows and
    by zeros beyond, so that every length gives exactly T // hop_length frames (Kong et al., HiFi-GAN, 2020, reference
    code). If ``causal``, n_fft - hop_length zeros are prepended instead.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop_length: int, win_length: int | None = None, *, causal: bool = False) -> None:
        super().__init__()
        self.past = Past(n_fft - hop_length) if causal else None
        self.n_fft, self.hop_length, self.win_length = n_fft, hop_length, win_length or n_fft
        self.register_buffer("window", torch.hann_window(self.win_length), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        return magnitudes(self.spectrum(audio))

    def spectrum(self, audio: Tensor) -> Tensor:
        """The complex spectrogram, in the shape of the magnitudes."""
        frames = audio.shape[-1] // self.hop_length
        audio = audio[..., 0, : frames * self.hop_length].float()
        if frames == 0:
            return audio.new_zeros(audio.shape[0], self.n_fft // 2 + 1, 0, dtype=torch.complex64)
        with torch.autocast(audio.device.type, enabled=False):
            return torch.stft(
                self._pad(audio),
                self.n_fft,
                self.hop_length,
                self.win_length,
                self.window,
                center=False,
                return_complex=True,
            )

    def input_spectra(self, audio: Tensor) -> InputSpectra:
        """The spectra of audio (B, C, T): bone, or bone and air; in one batch, because one ``Past`` holds the state."""
        bone, *air = audio.split(1, -2)
        batch, compressed = audio.shape[0], bone.sign() * bone.abs().sqrt()
        stacked = self.spectrum(torch.cat([bone, compressed, *air]))
        # narrow, because ONNX cannot split complex tensors; -3, because real and imaginary parts may be a leading axis
        return InputSpectra(*(stacked.narrow(-3, i * batch, batch) for i in range(2 + len(air))))

    def _pad(self, audio: Tensor) -> Tensor:
        if self.past is not None:
            padded: Tensor = self.past(audio)
            return padded
        padding = (self.n_fft - self.hop_length) // 2
        reflected = min(padding, audio.shape[-1] - 1)
        audio = F.pad(audio[:, None], (reflected, reflected), mode="reflect")[:, 0]
        return F.pad(audio, (padding - reflected, padding - reflected))


class Istft(nn.Module):
    """Inverse of ``Stft.spectrum``, by least squares: (B, n_fft // 2 + 1, L) -> (B, 1, L * hop_length).

    If the frames are causal, the output is ``delay`` samples late, because a sample is complete only when the last
    frame that contains it has arrived. Source: Griffin and Lim, "Signal estimation from modified short-time Fourier
    transform", TASSP 1984, equation 6.
    """

    window: Tensor

    def __init__(self, stft: Stft) -> None:
        super().__init__()
        self.n_fft, self.hop_length = stft.n_fft, stft.hop_length
        self.delay = 0 if stft.past is None else stft.n_fft - stft.hop_length
        self.overlap = Overlap(self.delay) if self.delay else None
        padding = (stft.n_fft - stft.win_length) // 2
        window = F.pad(stft.window, (padding, stft.n_fft - stft.win_length - padding))
        self.register_buffer("window", window[:, None], persistent=False)

    def forward(self, spectrum: Tensor) -> Tensor:
        with torch.autocast(spectrum.device.type, enabled=False):
            frames = torch.fft.irfft(spectrum, self.n_fft, dim=1) * self.window
            return self._complete(self._overlapped(frames)) / self._coverage(frames.shape[-1])

    def _coverage(self, frames: int) -> Tensor:
        """The sum of the squared windows of L frames at each sample: (1, 1, L * hop_length)."""
        squares = self.window.square()
        if self.overlap is None:
            return self._complete(self._overlapped(squares.expand(1, -1, frames)))
        # every sample is covered by all of its frames, past and future
        hops = F.pad(squares[:, 0], (0, -self.n_fft % self.hop_length)).unflatten(0, (-1, self.hop_length))
        return hops.sum(0).repeat(frames)[None, None]

    def _overlapped(self, frames: Tensor) -> Tensor:
        """Overlap-add of frames (B, n_fft, L): (B, 1, (L - 1) * hop_length + n_fft)."""
        size = (1, (frames.shape[-1] - 1) * self.hop_length + self.n_fft)
        return F.fold(frames, size, (1, self.n_fft), stride=(1, self.hop_length))[:, :, 0]

    def _complete(self, audio: Tensor) -> Tensor:
        """Remove the padding, or the part that extends past the end: (B, 1, L * hop_length)."""
        if self.overlap is not None:
            complete: Tensor = self.overlap(audio)
            return complete
        padding = (self.n_fft - self.hop_length) // 2
        return audio[..., padding : audio.shape[-1] - padding]


def as_channels(spectrum: Tensor) -> Tensor:
    """Complex (B, F, L) -> real and imaginary parts (B, 2, F, L)."""
    return torch.view_as_real(spectrum).movedim(-1, 1)


def as_complex(parts: Tensor) -> Tensor:
    """Real and imaginary parts (B, 2, F, L) -> complex (B, F, L)."""
    return torch.complex(*parts.float().unbind(1))


def complex_product(left: Tensor, right: Tensor) -> Tensor:
    """The product of two spectrograms as real and imaginary parts, (B, 2, F, L)."""
    (a, b), (c, d) = left.unbind(1), right.unbind(1)
    return torch.stack([a * c - b * d, a * d + b * c], 1)


def power(spectrum: Tensor) -> Tensor:
    """Squared magnitudes of a spectrogram: complex, or real and imaginary parts stacked along the first axis."""
    real, imaginary = torch.view_as_real(spectrum).unbind(-1) if spectrum.is_complex() else spectrum
    return real.square() + imaginary.square()  # faster than a sum over an axis of two


def magnitudes(spectrum: Tensor) -> Tensor:
    """Magnitudes of a spectrogram as for ``power``; the clamp keeps the gradient of the root finite at silence."""
    return power(spectrum).clamp_min(1e-10).sqrt()


class LogMel(nn.Module):
    """Natural-log mel spectrogram: (B, 1, T) audio -> (B, n_mels, T // hop_length).

    Magnitude, slaney scale and norm as librosa's ``melspectrogram(power=1, htk=False, norm="slaney")``.
    """

    basis: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        self.stft = Stft(config.n_fft, config.hop_length, config.win_length, causal=config.causal)
        basis = mel_basis(config, config.n_fft // 2 + 1)
        self.register_buffer("basis", basis.T.contiguous(), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        return self.of(self.stft.spectrum(audio))

    def of(self, spectrum: Tensor) -> Tensor:
        """The log-mel of a spectrogram from ``self.stft.spectrum``, (B, n_fft // 2 + 1, L)."""
        with torch.autocast(spectrum.device.type, enabled=False):  # eight bits (bfloat16) are too few for a logarithm
            return (self.basis @ magnitudes(spectrum)).clamp_min(self.config.clamp).log()
