"""DCCRN: a convolutional recurrent network of complex layers that masks a complex spectrogram.

Source: Hu, Liu, Lv, Xing, Zhang, Fu, Wu, Zhang and Xie, "DCCRN: Deep Complex Convolution Recurrent Network for
Phase-Aware Speech Enhancement", Interspeech 2020: section 2.2 (complex layers), 2.3 (the masks R, C and E), 2.4 (loss)
and 3.2 (sizes, here those of DCCRN-CL, 3.7 M parameters; the mask is a setting). Complex normalization: Trabelsi et
al., "Deep Complex Networks", ICLR 2018, section 3.5. Differences:
- the output is not clipped to full scale, which the authors' code does
- no biases before a normalization, which would remove them
- frames of 25 ms are centered in the 512 samples of the transform, which adds a latency of 7 ms
- in evaluation mode, normalization uses the statistics of the training, never those of the utterance
It takes 8.5 GMAC for a second of a long signal, 8.8 for a signal of one second with its continuation. Later papers
report 14.4, which results, within 3 %, from counting the zeros between the inputs of transposed convolutions. Except
for the look-ahead of the decoder, one frame per layer, it is causal, and it can stream.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import inf

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.models.enhancer import EnhancerConfig, StreamingModule
from twostage.models.features import Istft, Stft, as_channels, as_complex, complex_product, magnitudes
from twostage.nn.layers import LSTM, Conv2d, ConvTranspose2d
from twostage.nn.streaming import DelayLine
from twostage.utils.errors import ConfigError

KERNEL = (5, 2)  # bands, frames
STRIDE = (2, 1)


def bounded(mask: Tensor) -> Tensor:
    """Compress the magnitude of a mask (B, 2, F, L) by the hyperbolic tangent; the phase stays the same."""
    magnitude = mask.square().sum(1, keepdim=True).clamp_min(1e-12).sqrt()
    return mask * (magnitude.tanh() / magnitude)


MASKINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "R": lambda mask, spectrum: mask * spectrum,  # real and imaginary parts separately
    "C": complex_product,
    "E": lambda mask, spectrum: complex_product(bounded(mask), spectrum),
}


@dataclass(frozen=True)
class DccrnConfig(EnhancerConfig):
    """Sizes of the network. Channels and units count real and imaginary parts, so they are even.

    ``masking`` E is at most 1: it can remove noise but, unlike the others, cannot restore attenuated bands.
    """

    sample_rate: int = 16000  # Hz
    n_fft: int = 512  # samples of the Fourier transform
    win_length: int = 400  # samples of the window
    hop_length: int = 100  # samples between consecutive frames
    channels: tuple[int, ...] = (32, 64, 128, 256, 256, 256)  # of each level
    lstm_units: int = 256  # of each layer
    lstm_layers: int = 2  # at the bottom
    masking: str = "E"  # R, C or E (the paper's section 2.3)
    lookahead: int = 6  # frames; as many decoder layers use one future frame each

    def __post_init__(self) -> None:
        if not self.channels or any(width < 2 or width % 2 for width in (*self.channels, self.lstm_units)):
            raise ConfigError(
                f"model.channels is {list(self.channels)}, model.lstm_units {self.lstm_units}: must be even numbers"
            )
        if self.lstm_layers < 1:
            raise ConfigError(f"model.lstm_layers is {self.lstm_layers}, must be at least 1")
        if self.n_fft < 2 or self.n_fft % (2 * 2 ** len(self.channels)):
            raise ConfigError(
                f"model.n_fft is {self.n_fft}, half of it must be divisible by 2 ** {len(self.channels)} (levels)"
            )
        if not 2 <= 2 * self.hop_length <= self.win_length <= self.n_fft or self.hop_length % 2:
            raise ConfigError(
                f"model.hop_length is {self.hop_length}, must be even and at most half of model.win_length, "
                f"{self.win_length}, and that at most model.n_fft, {self.n_fft}"
            )
        if self.masking not in MASKINGS:
            raise ConfigError(f"model.masking is {self.masking!r}, must be one of {', '.join(MASKINGS)}")
        if not 0 <= self.lookahead <= len(self.channels):
            raise ConfigError(f"model.lookahead is {self.lookahead}, must be 0 to {len(self.channels)}, the levels")

    @property
    def bands(self) -> int:
        """The number of bands at the bottom."""
        return self.n_fft // 2 // STRIDE[0] ** len(self.channels)


class Complex(nn.Module):
    """A complex linear layer, as two real layers for its real and imaginary part.

    Input and output contain the real parts and then, along ``axis``, the imaginary parts (equation 3; for an
    LSTM, equation 7).
    """

    def __init__(self, make: Callable[[], nn.Module], axis: int = 1) -> None:
        super().__init__()
        self.real, self.imaginary, self.axis = make(), make(), axis

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.cat(x.chunk(2, self.axis)).to(next(self.real.parameters()).dtype)  # both parts in one batch
        (rr, ri), (ir, ii) = self.real(parts).chunk(2), self.imaginary(parts).chunk(2)
        return torch.cat([rr - ii, ri + ir], self.axis)


class ComplexNorm(nn.Module):
    """Batch normalization of complex channels (B, 2 C, F, L) to mean 0 and circular covariance, then an affine map.

    It uses the statistics of the batch in training mode, and their moving average in evaluation mode.
    """

    mean: Tensor
    covariance: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.gain = nn.Parameter(torch.tensor([0.5**0.5, 0.0, 0.5**0.5])[:, None].repeat(1, channels))  # rr, ri, ii
        self.bias = nn.Parameter(torch.zeros(2, channels))
        self.register_buffer("mean", torch.zeros(2, channels))
        self.register_buffer("covariance", torch.tensor([0.5, 0.0, 0.5])[:, None].repeat(1, channels))

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = x.float().chunk(2, 1)
        if self.training:
            mean, covariance = self._statistics(real, imaginary)
            with torch.no_grad():
                self.mean.lerp_(mean, self.momentum)
                self.covariance.lerp_(covariance, self.momentum)
        else:
            mean, covariance = self.mean, self.covariance
        # gain and whitening are combined to one 2x2 matrix per channel
        (a, b, d), (rr, ri, ii) = self.gain, self._whitening(covariance)
        matrix = a * rr + b * ri, a * ri + b * ii, b * rr + d * ri, b * ri + d * ii
        to_rr, to_ri, to_ir, to_ii = (entry[:, None, None] for entry in matrix)
        real, imaginary = (part - m[:, None, None] for part, m in zip((real, imaginary), mean, strict=True))
        transformed = torch.cat([to_rr * real + to_ri * imaginary, to_ir * real + to_ii * imaginary], 1)
        return transformed + self.bias.flatten()[:, None, None]

    @staticmethod
    def _statistics(real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
        """Means (2, C) and covariances (3, C) over all other dimensions."""
        axes = (0, 2, 3)
        mean = torch.stack([real.mean(axes), imaginary.mean(axes)])
        real, imaginary = (part - m[:, None, None] for part, m in zip((real, imaginary), mean, strict=True))
        products = real.square(), real * imaginary, imaginary.square()
        return mean, torch.stack([product.mean(axes) for product in products])

    def _whitening(self, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The inverse square root of symmetric 2x2 matrices, given as rr, ri, ii in (3, C)."""
        rr, ri, ii = covariance[0] + self.eps, covariance[1], covariance[2] + self.eps
        root = (rr * ii - ri.square()).clamp_min(self.eps**2).sqrt()
        scale = (root * (rr + ii + 2 * root).sqrt()).reciprocal()
        return (ii + root) * scale, -ri * scale, (rr + root) * scale


class Down(nn.Module):
    """(B, C, F, L) -> (B, C', F / 2, L); a frame also depends on the previous one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Complex(lambda: Conv2d(inputs // 2, outputs // 2, KERNEL, stride=STRIDE, causal=True, bias=False))
        self.norm, self.act = ComplexNorm(outputs // 2), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        # with an odd kernel and an even stride, one more band of padding below than above halves the bands exactly
        return self.act(self.norm(self.conv(F.pad(x, (0, 0, 1, 0)))))


class Up(nn.Module):
    """(B, C, F, L), concatenated with the encoder's output, -> (B, C', 2 F, L); the ``last`` is not normalized.

    The input is ``lookahead`` frames late, and the encoder's output is delayed by as many.
    """

    def __init__(self, inputs: int, outputs: int, lookahead: int, *, last: bool = False) -> None:
        super().__init__()
        self.delay_line = DelayLine(lookahead)
        self.conv = Complex(lambda: ConvTranspose2d(inputs, outputs // 2, KERNEL, STRIDE, causal=True, bias=last))
        self.post = nn.Identity() if last else nn.Sequential(ComplexNorm(outputs // 2), nn.PReLU())

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        pairs = zip(x.chunk(2, 1), self.delay_line(skip).chunk(2, 1), strict=True)
        x = torch.cat([part for pair in pairs for part in pair], 1)
        return self.post(self.conv(x)[:, :, 1:])


class Recurrence(nn.Module):
    """Complex LSTMs over frames, then a dense layer: (B, C, F, L) -> (B, C, F, L)."""

    def __init__(self, width: int, config: DccrnConfig) -> None:
        super().__init__()
        half, sizes = config.lstm_units // 2, [width // 2, *[config.lstm_units // 2] * config.lstm_layers]
        self.lstms = nn.Sequential(*(Complex(lambda i=i: LSTM(i, half), -1) for i in sizes[:-1]))  # type: ignore[misc]
        self.dense = nn.ModuleList(nn.Linear(half, width // 2) for _ in range(2))  # of real and imaginary parts

    def forward(self, x: Tensor) -> Tensor:
        parts = self.lstms(x.flatten(1, 2).mT).chunk(2, -1)
        out = torch.cat([dense(part) for dense, part in zip(self.dense, parts, strict=True)], -1)
        return out.mT.unflatten(1, x.shape[1:3])


class Dccrn(StreamingModule):
    """Audio (B, 1, T) -> (B, 1, T // hop_length * hop_length)."""

    causal, context = True, inf  # an LSTM has no finite receptive field

    def __init__(self, config: DccrnConfig) -> None:
        super().__init__()
        self.config = config
        self.stft = Stft(config.n_fft, config.hop_length, config.win_length, causal=True)
        self.istft = Istft(self.stft)
        steps = list(pairwise([2, *config.channels]))
        self.downs = nn.ModuleList(Down(*step) for step in steps)
        self.recurrence = Recurrence(config.channels[-1] * config.bands, config)
        self.ups = nn.ModuleList(
            Up(wide, narrow, min(index, config.lookahead), last=index == len(steps) - 1)
            for index, (narrow, wide) in enumerate(reversed(steps))
        )
        self.delayed_spectrum = DelayLine(config.lookahead)

    def forward_chunk(self, audio: Tensor) -> Tensor:
        """Process the next chunk of a stream, a multiple of ``stride`` long; the output is ``delay`` samples late.

        Within ``nn.streaming.streaming``, calls continue one stream.
        """
        spectrum = as_channels(self.stft.spectrum(audio))
        mask = F.pad(self._mask(spectrum[:, :, 1:]).float(), (0, 0, 1, 0))  # the mask is 0 at 0 Hz
        return self.istft(as_complex(MASKINGS[self.config.masking](mask, self.delayed_spectrum(spectrum))))

    def _mask(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        x = self.recurrence(x)
        for up in self.ups:
            x = up(x, skips.pop())
        return x

    def terms(self, degraded: Tensor, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Enhanced audio; mean squared errors of the real and imaginary parts and of the magnitudes."""
        enhanced = self(degraded)
        fake, real = (self.stft.spectrum(audio) for audio in (enhanced, clean[..., : enhanced.shape[-1]]))
        parts = F.mse_loss(as_channels(fake), as_channels(real))
        return enhanced, {"spectrum": parts, "magnitude": F.mse_loss(magnitudes(fake), magnitudes(real))}

    @property
    def delay(self) -> int:
        """The number of samples by which the output of ``forward_chunk`` is late."""
        return self.istft.delay + self.config.lookahead * self.hop_length

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        return self.config.hop_length
