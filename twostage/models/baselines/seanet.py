"""SEANet: a convolutional U-Net on the waveform, trained with waveform discriminators at three rates.

Source: Tagliasacchi, Li, Misiunas and Roblek, "SEANet: A Multi-modal Speech Enhancement Network", Interspeech 2020,
section 2: strides 2, 2, 8, 8, three residual units a level with dilations 1, 3, 9, ELU, weight normalization; MelGAN's
discriminators, hinge loss, feature matching. Channels, kernels and skips are those of the reimplementation by the
authors of EBEN, who count 8.3 M weights. Differences:
- with ``inputs: 1``, the input is bone-conducted speech only; in the paper, an accelerometer and a noisy microphone
- ``causal``, not in the paper: all layers use the past only. With ``channels: 8`` it is the streaming SEANet of Li et
  al., "Real-Time Speech Frequency Bandwidth Extension", ICASSP 2021, 0.7 M
- tanh bounds the output; a signal is extended to a multiple of the stride
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
    inputs: int = 1  # microphones: 1 (bone), or 2 (bone, then air)
    channels: int = 32  # at the top; each stride doubles them
    strides: tuple[int, ...] = (2, 2, 8, 8)  # of each level
    bottleneck: int = 128  # channels at the bottom
    causal: bool = False  # uses past samples only

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
        """Process the next chunk of a stream, or a whole signal, a multiple of ``stride`` long."""
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
        """Whether ``forward_chunk`` can process a stream in chunks."""
        return self.config.causal

    @property
    def stride(self) -> int:
        """Samples per step at the bottom; windows of a file must begin at multiples of it."""
        return self.unet.stride

    @property
    def context(self) -> int:
        """The largest number of samples on each side that an output sample depends on."""
        receptive_fields = self.unet.receptive_field + 2 * receptive_field([(KERNEL, 1)])
        return receptive_fields * (2 if self.causal else 1) + self.stride - 1

    @property
    def latency(self) -> float:
        """The number of future samples that an output sample depends on."""
        return float(self.stride - 1 if self.causal else self.context)
