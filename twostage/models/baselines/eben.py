"""EBEN: a U-Net from the lowest bands of a filter bank to all bands; discriminators of the bands and of the waveform.

Source: Hauret, Joubaud, Zimpfer and Bavu, "EBEN: Extreme bandwidth extension network applied to speech signals captured
with noise-resilient body-conduction microphones", ICASSP 2023, section 2; M, P and N as settings (``bands``,
``input_bands``, ``taps``) are those of "Configurable EBEN", TASLP 2023. The sizes of layers, which have no biases, and
the positions of activations are those of the authors' code. Differences:
- padding with zeros, where theirs is by reflection at every layer; strided convolutions are centered; a signal is
  extended to a multiple of the stride, where theirs is cut
- ``causal``, not in the papers: all layers use the past only, and the filter bank adds a delay of 28 samples
- the discriminators of bands analyze the output waveform; theirs take the bands before the synthesis
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
    input_bands: int = 1  # lowest bands, which are the input
    taps: int = 32  # length of each filter of the bank
    channels: int = 32  # at the top; each stride doubles them
    strides: tuple[int, ...] = (2, 4, 8)  # of each level
    bottleneck: int = 64  # channels at the bottom
    causal: bool = False  # uses past samples only

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
        """Process the next chunk of a stream, or a signal, a multiple of ``stride`` long; ``delay`` samples late."""
        low_bands = self.pqmf.analysis(audio)[:, : self.config.input_bands]
        x = self.conv_pre(low_bands.to(self.conv_pre.weight.dtype))
        bands = self.conv_post(self.unet(x)).float()
        padding = (0, 0, 0, self.config.bands - self.config.input_bands)
        return self.pqmf.synthesis(torch.tanh(bands + F.pad(low_bands, padding)))

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def causal(self) -> bool:
        """Whether ``forward_chunk`` can process a stream in chunks."""
        return self.config.causal

    @property
    def delay(self) -> int:
        """The number of samples by which the output of ``forward_chunk`` is late: the delay of the filter bank."""
        return self.pqmf.delay

    @property
    def stride(self) -> int:
        """Samples per step at the bottom; windows of a file must begin at multiples of it."""
        return self.unet.stride * self.config.bands

    @property
    def context(self) -> int:
        """The largest number of samples on each side that an output sample depends on."""
        receptive_field = (self.unet.receptive_field + 2) * (2 if self.causal else 1)
        return self.delay + receptive_field * self.config.bands + self.stride - 1

    @property
    def latency(self) -> float:
        """The number of future samples that an output sample depends on."""
        return float(self.delay + self.stride - 1 if self.causal else self.context)
