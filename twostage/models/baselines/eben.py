"""EBEN: a U-Net on the lowest of a few bands, which gives all of them back; discriminators of bands and of sound.

Source: Hauret, Joubaud, Zimpfer and Bavu, "EBEN: Extreme bandwidth extension network applied to speech signals captured
with noise-resilient body-conduction microphones", ICASSP 2023, section 2; M, P and N as settings (``bands``,
``input_bands``, ``taps``) are those of "Configurable EBEN", TASLP 2023. Sizes of layers, which have no biases, and
where activations stand are those of the authors' code. What differs from them:
- zeros before and after a signal, where theirs is reflected at every layer; a strided convolution looks as far back as
  ahead; a signal is continued to a whole number of strides, where theirs is cut to one
- ``causal``, not in the papers: every layer looks back alone, and the bands' filters add 28 samples
- the discriminators of bands split the finished sound again; theirs are shown the bands that it was made of
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.models.enhancer import EnhancerConfig, StreamingModule
from twostage.nn.dilated_unet import DilatedUnet
from twostage.nn.layers import Conv1d, weight_norm
from twostage.nn.pqmf import Pqmf
from twostage.utils.errors import ConfigError

SLOPE = 0.01


@dataclass(frozen=True)
class EbenConfig(EnhancerConfig):
    """Sizes of the network and of its filter bank."""

    sample_rate: int = 16000  # Hz
    bands: int = 4  # of the filter bank
    input_bands: int = 1  # lowest bands, which go in
    taps: int = 32  # of each filter, for each band
    channels: int = 32  # at the top; each stride doubles them
    strides: tuple[int, ...] = (2, 4, 8)  # of each level
    bottleneck: int = 64  # channels at the bottom
    causal: bool = False  # sees the past alone

    def __post_init__(self) -> None:
        if self.bands < 2:
            raise ConfigError(f"model.bands is {self.bands}, must be at least 2")
        if not 1 <= self.input_bands <= self.bands:
            raise ConfigError(f"model.input_bands is {self.input_bands}, must be from 1 to model.bands, {self.bands}")
        if self.taps < 4 * self.bands or self.taps % (2 * self.bands):
            raise ConfigError(f"model.taps is {self.taps}, must be a multiple of {2 * self.bands}, and two at least")
        for name in ("channels", "bottleneck"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}, must be at least 1")
        if not self.strides or any(stride < 2 or stride % 2 for stride in self.strides):
            raise ConfigError(f"model.strides is {list(self.strides)}, must be one or more, each even")


class EbenUnit(nn.Module):
    """A residual unit: a dilated convolution and one of kernel size 1: (B, C, L) -> (B, C, L)."""

    def __init__(self, channels: int, dilation: int, causal: bool) -> None:
        super().__init__()
        self.conv1 = weight_norm(Conv1d(channels, channels, 3, dilation=dilation, bias=False, causal=causal))
        self.conv2 = weight_norm(Conv1d(channels, channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.leaky_relu(self.conv2(self.conv1(x)), SLOPE)


class Eben(StreamingModule):
    """Audio (B, 1, T) -> (B, 1, T)."""

    def __init__(self, config: EbenConfig) -> None:
        super().__init__()
        self.config, causal = config, config.causal
        self.pqmf = Pqmf(config.bands, config.taps)
        self.conv_pre = Conv1d(config.input_bands, config.channels, 3, bias=False, causal=causal)
        self.unet = DilatedUnet(
            config.channels,
            config.strides,
            config.bottleneck,
            unit=lambda channels, dilation: EbenUnit(channels, dilation, causal),
            activation=nn.LeakyReLU(SLOPE),
            bias=False,
            causal=causal,
        )
        self.conv_post = Conv1d(config.channels, config.bands, 3, bias=False, causal=causal)

    def forward_chunk(self, audio: Tensor) -> Tensor:
        """The next chunk of a stream, or all of a signal, a multiple of ``stride`` long, ``delay`` samples late."""
        low_bands = self.pqmf.analysis(audio)[:, : self.config.input_bands]
        x = self.conv_pre(low_bands.to(self.conv_pre.weight.dtype))
        bands = self.conv_post(self.unet(x)).float()
        silent = (0, 0, 0, self.config.bands - self.config.input_bands)
        return self.pqmf.synthesis(torch.tanh(bands + F.pad(low_bands, silent)))

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def causal(self) -> bool:
        """Whether ``forward_chunk`` can take a stream in chunks."""
        return self.config.causal

    @property
    def delay(self) -> int:
        """Samples by which what ``forward_chunk`` gives is late: those that the bands' filters take."""
        return self.pqmf.delay

    @property
    def stride(self) -> int:
        """Samples in a step of the bottom: windows of a file must begin at multiples of it."""
        return self.unet.stride * self.config.bands

    @property
    def context(self) -> int:
        """Samples that an output sample depends on, on each side, at most."""
        sides = (self.unet.receptive_field + 2) * (2 if self.causal else 1)
        return self.delay + sides * self.config.bands + self.stride - 1

    @property
    def latency(self) -> float:
        """Samples after one, until the last that it depends on is there."""
        return float(self.delay + self.stride - 1 if self.causal else self.context)
