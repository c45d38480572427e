"""SEANet: a convolutional U-Net from waveforms to a waveform, trained against discriminators of it at three rates.

Source: Tagliasacchi, Li, Misiunas and Roblek, "SEANet: A Multi-modal Speech Enhancement Network", Interspeech 2020,
section 2: strides 2, 2, 8, 8, three residual units a level with dilations 1, 3, 9, ELU, weight normalization; MelGAN's
discriminators, hinge loss, feature matching. Channels, kernels and skips are those of the reimplementation by the
authors of EBEN, who count 8.3 M weights. What differs:
- with ``inputs: 1`` bone-conducted speech alone is heard; the paper's are an accelerometer and a noisy microphone
- ``causal``, not in the paper: every layer looks back alone. With ``channels: 8`` that is the streaming SEANet of Li et
  al., "Real-Time Speech Frequency Bandwidth Extension", ICASSP 2021, 0.7 M
- tanh bounds the output; a signal is continued to a whole number of strides
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.models.enhancer import EnhancerConfig, StreamingModule
from twostage.nn.dilated_unet import DilatedUnet
from twostage.nn.layers import Conv1d, receptive_field, weight_norm
from twostage.utils.errors import ConfigError

KERNEL = 7  # of the first and the last convolution


@dataclass(frozen=True)
class SeanetConfig(EnhancerConfig):
    """Sizes of the network."""

    sample_rate: int = 16000  # Hz
    inputs: int = 1  # microphones: 1, or 2, bone and then air
    channels: int = 32  # at the top; each stride doubles them
    strides: tuple[int, ...] = (2, 2, 8, 8)  # of each level
    bottleneck: int = 128  # channels at the bottom
    causal: bool = False  # sees the past alone

    def __post_init__(self) -> None:
        for name in ("inputs", "channels", "bottleneck"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}, must be at least 1")
        if not self.strides or any(stride < 2 or stride % 2 for stride in self.strides):
            raise ConfigError(f"model.strides is {list(self.strides)}, must be one or more, each even")


class SeanetUnit(nn.Module):
    """A residual unit: a dilated convolution and one of kernel size 1: (B, C, L) -> (B, C, L)."""

    def __init__(self, channels: int, dilation: int, causal: bool) -> None:
        super().__init__()
        self.conv1 = weight_norm(Conv1d(channels, channels, 3, dilation=dilation, causal=causal))
        self.conv2 = weight_norm(Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.elu(self.conv2(F.elu(self.conv1(x))))


class Seanet(StreamingModule):
    """Audio (B, inputs, T) -> (B, 1, T)."""

    def __init__(self, config: SeanetConfig) -> None:
        super().__init__()
        self.config, causal = config, config.causal
        self.conv_pre = weight_norm(Conv1d(config.inputs, config.channels, KERNEL, causal=causal))
        self.unet = DilatedUnet(
            config.channels,
            config.strides,
            config.bottleneck,
            unit=lambda channels, dilation: SeanetUnit(channels, dilation, causal),
            activation=nn.ELU(),
            causal=causal,
        )
        self.conv_post = weight_norm(Conv1d(config.channels, 1, KERNEL, causal=causal))

    def forward_chunk(self, audio: Tensor) -> Tensor:
        """The next chunk of a stream, or all of a signal, a multiple of ``stride`` long."""
        x = self.conv_pre(audio.to(next(self.conv_pre.parameters()).dtype))
        return torch.tanh(self.conv_post(x + self.unet(x)).float())

    @property
    def inputs(self) -> int:
        return self.config.inputs

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def causal(self) -> bool:
        """Whether ``forward_chunk`` can take a stream in chunks."""
        return self.config.causal

    @property
    def stride(self) -> int:
        """Samples in a step of the bottom: windows of a file must begin at multiples of it."""
        return self.unet.stride

    @property
    def context(self) -> int:
        """Samples that an output sample depends on, on each side, at most."""
        sides = self.unet.receptive_field + 2 * receptive_field([(KERNEL, 1)])
        return sides * (2 if self.causal else 1) + self.stride - 1

    @property
    def latency(self) -> float:
        """Samples after one, until the last that it depends on is there."""
        return float(self.stride - 1 if self.causal else self.context)
