"""DPCRN: a convolutional recurrent network with recurrent layers across frequency, then along time.

Source: Le, Chen, Chen and Lu, "DPCRN: Dual-Path Convolution Recurrent Network for Single Channel Speech Enhancement",
Interspeech 2021; sizes (0.8 M parameters) and the form of the loss also from the authors' code. Differences:
- Hann windows and a least-squares inverse STFT, where theirs uses sine windows for both
- LSTMs with logistic gates, where theirs are piecewise linear
- no biases before a normalization, which would remove them
- mapping, which is our addition, takes the spectrum unnormalized: normalized, it would lack the level of the output
It is causal without look-ahead and can stream; an output sample waits for at most one window.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.models.enhancer import EnhancerConfig, StreamingModule
from twostage.models.features import Istft, Stft, as_channels, as_complex, complex_product, power
from twostage.nn.layers import LSTM, Conv2d, ConvTranspose2d
from twostage.utils.errors import ConfigError

FRAMES = 2  # kernel size of each convolution in frames
WIDE, NARROW = 5, 3  # kernel size in bands, of the first convolution and of the others


@dataclass(frozen=True)
class DpcrnConfig(EnhancerConfig):
    """Sizes of the network.

    ``norm``: "instant", by the statistics of one frame over bands and channels, or "instance", by those of each channel
    over an utterance in training, and by their moving average in evaluation mode.
    """

    sample_rate: int = 16000  # Hz
    n_fft: int = 400  # samples of the Fourier transform
    hop_length: int = 200  # samples between consecutive frames
    channels: tuple[int, ...] = (32, 32, 32, 64, 128)  # of each level
    strides: tuple[int, ...] = (2, 2, 1, 1, 1)  # of each level across frequency, 1 or 2
    blocks: int = 2  # pairs of recurrences, across frequency and along time
    units: int = 128  # of the recurrent layers; across frequency, half of them in each direction
    output: str = "mask"  # "mask" (complex) or "mapping" (the spectrum itself)
    norm: str = "instant"  # instant or instance

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ConfigError(f"model.channels is {list(self.channels)}, must be at least 1 each, and one at least")
        if len(self.strides) != len(self.channels) or not set(self.strides) <= {1, 2}:
            raise ConfigError(f"model.strides is {list(self.strides)}, must be 1 or 2 for each of model.channels")
        if self.blocks < 0:
            raise ConfigError(f"model.blocks is {self.blocks}, must not be negative")
        if self.units < 2 or self.units % 2:
            raise ConfigError(f"model.units is {self.units}, must be even: half of them read upwards, half downwards")
        if not 2 <= 2 * self.hop_length <= self.n_fft:
            raise ConfigError(
                f"model.hop_length is {self.hop_length}, must be at least 1, at most half of model.n_fft, {self.n_fft}"
            )
        if self.bands[-1] < NARROW:
            raise ConfigError(
                f"model.n_fft is {self.n_fft}: {self.bands[-1]} bands are left, must be {NARROW} at least"
            )
        if self.output not in ("mask", "mapping"):
            raise ConfigError(f"model.output is {self.output!r}, must be mask or mapping")
        if self.norm not in ("instant", "instance"):
            raise ConfigError(f"model.norm is {self.norm!r}, must be instant or instance")

    @property
    def bands(self) -> list[int]:
        """The number of bands of the spectrum and of each level."""
        bands = [self.n_fft // 2 + 1]
        for stride in self.strides:
            bands.append(bands[-1] // stride)
        return bands


class InstantNorm(nn.LayerNorm):
    """Normalizes each frame over channels and bands, then affine: (B, C, F, L) -> (B, C, F, L)."""

    def __init__(self, channels: int, bands: int) -> None:
        super().__init__([channels, bands])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def norm(config: DpcrnConfig, channels: int, bands: int) -> nn.Module:
    if config.norm == "instant":
        return InstantNorm(channels, bands)
    return nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)


class Down(nn.Module):
    """(B, C, F, L) -> (B, C', F // stride, L); a frame also depends on the previous one."""

    def __init__(self, inputs: int, outputs: int, bands: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, outputs, (kernel, FRAMES), stride=(stride, 1), causal=True, bias=False)
        self.norm, self.act = nn.BatchNorm2d(outputs), nn.PReLU(outputs)
        self.below = int(stride == 2 and bands % 2 == 0)  # an odd kernel with stride 2 needs one more band of padding

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, self.below, 0)).to(self.conv.weight.dtype)
        return self.act(self.norm(self.conv(x).float()))


class Up(nn.Module):
    """(B, C, F, L), concatenated with the encoder's output, -> (B, C', bands, L); the ``last`` is not normalized."""

    def __init__(self, inputs: int, outputs: int, bands: int, kernel: int, stride: int, *, last: bool = False) -> None:
        super().__init__()
        self.conv = ConvTranspose2d(2 * inputs, outputs, (kernel, FRAMES), (stride, 1), causal=True, bias=last)
        self.post = nn.Identity() if last else nn.Sequential(nn.BatchNorm2d(outputs), nn.PReLU(outputs))
        self.bands = bands

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = torch.cat([skip, x], 1).to(self.conv.weight.dtype)
        return self.post(self.conv(x)[:, :, -self.bands :].float())


class DualPath(nn.Module):
    """A bidirectional LSTM across bands, then an LSTM along time, with residuals: (B, C, F, L) -> (B, C, F, L)."""

    def __init__(self, channels: int, bands: int, config: DpcrnConfig) -> None:
        super().__init__()
        self.intra = nn.LSTM(channels, config.units // 2, batch_first=True, bidirectional=True)
        self.inter = LSTM(channels, config.units)
        self.intra_dense, self.inter_dense = (nn.Linear(config.units, channels) for _ in range(2))
        self.intra_norm, self.inter_norm = (norm(config, channels, bands) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, bands, frames = x.shape
        across = self.intra_dense(self.intra(x.permute(0, 3, 2, 1).flatten(0, 1))[0])  # (B L, F, C)
        x = x + self.intra_norm(across.unflatten(0, (batch, frames)).permute(0, 3, 2, 1).float())
        along = self.inter_dense(self.inter(x.permute(0, 2, 3, 1).flatten(0, 1)))  # (B F, L, C)
        return x + self.inter_norm(along.unflatten(0, (batch, bands)).permute(0, 3, 1, 2).float())


class Dpcrn(StreamingModule):
    """Audio (B, 1, T) -> (B, 1, T // hop_length * hop_length)."""

    causal, context = True, inf  # an LSTM has no finite receptive field

    def __init__(self, config: DpcrnConfig) -> None:
        super().__init__()
        self.config, bands = config, config.bands
        self.stft = Stft(config.n_fft, config.hop_length, causal=True)
        self.istft = Istft(self.stft)
        self.norm = norm(config, 2, bands[0]) if config.output == "mask" else nn.Identity()
        widths, kernels = [2, *config.channels], [WIDE, *[NARROW] * (len(config.channels) - 1)]
        levels = list(zip(widths, config.channels, bands, kernels, config.strides, strict=False))
        self.downs = nn.ModuleList(Down(*level) for level in levels)
        self.paths = nn.Sequential(*(DualPath(widths[-1], bands[-1], config) for _ in range(config.blocks)))
        self.ups = nn.ModuleList(
            Up(outputs, inputs, *sizes, last=index == len(levels))
            for index, (inputs, outputs, *sizes) in enumerate(reversed(levels), 1)
        )

    def forward_chunk(self, audio: Tensor) -> Tensor:
        """Process the next chunk of a stream, a multiple of ``stride`` long; the output is ``delay`` samples late.

        Within ``nn.streaming.streaming``, calls continue one stream.
        """
        spectrum = as_channels(self.stft.spectrum(audio))
        estimate = self._network(self.norm(spectrum))
        return self.istft(as_complex(complex_product(estimate, spectrum) if self.config.output == "mask" else estimate))

    def _network(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        x = self.paths(x)
        for up in self.ups:
            x = up(x, skips.pop())
        return x

    def terms(self, degraded: Tensor, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Enhanced audio; ``snr``, the negative signal-to-noise ratio in dB; and ``spectrum``,
        the logarithm of the sum of the mean squared errors of real parts, imaginary parts and magnitudes.
        """
        enhanced = self(degraded)
        clean = clean[..., : enhanced.shape[-1]]
        noise = (clean - enhanced).square().mean(-1) + 1e-8
        snr = 10 * (clean.square().mean(-1) / noise + 1e-8).log10()
        fake, real = (as_channels(self.stft.spectrum(audio)) for audio in (enhanced, clean))
        fake_size, real_size = ((power(spectrum.transpose(0, 1)) + 1e-8).sqrt() for spectrum in (fake, real))
        errors = 2 * F.mse_loss(fake, real) + F.mse_loss(fake_size, real_size)  # twice: the mean is over both parts
        return enhanced, {"snr": -snr.mean(), "spectrum": (errors + 1e-8).log()}

    @property
    def delay(self) -> int:
        """The number of samples by which the output of ``forward_chunk`` is late."""
        return self.istft.delay

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        return self.config.hop_length
