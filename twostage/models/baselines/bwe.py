"""HiFi-GAN+: a feed-forward WaveNet on the waveform, trained with discriminators.

Source: Su, Wang, Finkelstein and Jin, "Bandwidth Extension is All You Need", ICASSP 2021. Its code is not public:
sizes (128 channels, two stacks of eight layers, dilations that are powers of three, 1 M parameters), discriminators and
losses are those of the public reimplementation, Spell, "hifi-gan-bwe", 2022. WaveNet: van den Oord et al., 2016,
equation 2, without conditioning, and not causal. Differences:
- 16 kHz in and out (theirs: 8 to 16 kHz, interpolated to 48 kHz), so the input already has the length of the output
- seven layers per stack: dilations of 3^0 to 3^6 reach 137 ms on each side at 16 kHz, as eight layers do at 48 kHz
- the last layer has no convolution for a next layer, whose output would be unused (8320 parameters)
- every layer pads with zeros, instead of padding the input only
- discriminators of the waveform at three rates and of a spectrogram; theirs are of four rates and of a mel spectrogram
- generator and discriminators share a learning rate and are updated in every step; theirs updates the generator at a
  hundredth of the rate in every other step
"""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from twostage.models.enhancer import EnhancerConfig, EnhancerModule
from twostage.nn.layers import Conv1d, receptive_field, weight_norm
from twostage.utils.errors import ConfigError


@dataclass(frozen=True)
class BweConfig(EnhancerConfig):
    """Sizes of the network."""

    sample_rate: int = 16000  # Hz
    channels: int = 128  # of every layer
    stacks: int = 2  # of dilated layers
    layers: int = 7  # of each stack
    kernel_size: int = 3  # samples
    dilation_base: int = 3  # layer i of a stack is dilated by its i-th power, from 0 on

    def __post_init__(self) -> None:
        for name in ("stacks", "layers", "dilation_base"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}, must be at least 1")
        if self.channels < 2 or self.channels % 2:
            raise ConfigError(f"model.channels is {self.channels}, must be even: half of them gate the others")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ConfigError(f"model.kernel_size is {self.kernel_size}, must be odd")

    @property
    def dilations(self) -> list[int]:
        return [self.dilation_base**layer for layer in range(self.layers)] * self.stacks


class GatedLayer(nn.Module):
    """A gated dilated convolution: (B, C, T) -> the next layer's input and a contribution to the output.

    Both are (B, C, T). The ``last`` layer has no next one, and its input is returned unchanged.
    """

    def __init__(self, channels: int, kernel_size: int, dilation: int, *, last: bool = False) -> None:
        super().__init__()
        self.conv = weight_norm(Conv1d(channels, channels, kernel_size, dilation=dilation))
        self.conv_skip = weight_norm(Conv1d(channels // 2, channels, 1))
        self.conv_next = None if last else weight_norm(Conv1d(channels // 2, channels, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gate = self.conv(x).chunk(2, 1)
        gated = torch.tanh(value) * torch.sigmoid(gate)
        if self.conv_next is not None:
            x = (x + self.conv_next(gated)) * sqrt(0.5)  # keeps the level constant from layer to layer
        return x, self.conv_skip(gated)


class Bwe(EnhancerModule):
    """Audio (B, 1, T) -> (B, 1, T)."""

    def __init__(self, config: BweConfig) -> None:
        super().__init__()
        self.config, dilations = config, config.dilations
        self.conv_pre = weight_norm(Conv1d(1, config.channels, 1))
        self.layers = nn.ModuleList(
            GatedLayer(config.channels, config.kernel_size, dilation, last=index == len(dilations))
            for index, dilation in enumerate(dilations, 1)
        )
        self.conv_post = weight_norm(Conv1d(config.channels, 1, 1))

    def forward(self, audio: Tensor) -> Tensor:
        x = self.conv_pre(audio.to(next(self.conv_pre.parameters()).dtype))
        total = torch.zeros_like(x)
        for layer in self.layers:
            x, contribution = layer(x)
            total = total + contribution
        return torch.tanh(self.conv_post(total / sqrt(len(self.layers))).float())

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def context(self) -> int:
        """The number of samples on each side that an output sample depends on."""
        return receptive_field((self.config.kernel_size, dilation) for dilation in self.config.dilations)

    @property
    def latency(self) -> float:
        """The number of future samples that an output sample depends on."""
        return float(self.context)
