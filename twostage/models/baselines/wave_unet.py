"""Wave-U-Net: a U-Net on the waveform, trained on the squared error of samples.

Source: Stoller, Ewert and Dixon, "Wave-U-Net: A Multi-Scale Neural Network for End-to-End Audio Source Separation",
ISMIR 2018, section 3.1 (the base architecture, M1 of their variants); for speech, Macartney and Weyde, "Improved Speech
Enhancement with the Wave-U-Net", arXiv 1811.11307, 2018. The slope of leaky ReLUs is that of the authors' code.
Differences:
- 16 kHz (theirs: 22.05 kHz) and one output, speech, where theirs separates music into two
- ten levels, where theirs has twelve: fewer suffice for speech (Macartney and Weyde), and an output sample depends on
  1.1 s on each side, not 4.4 s; with ``levels: 12`` the sizes are those of the paper, 10.3 million parameters
- a signal is padded with zeros to a multiple of the stride, instead of cut into segments of 16384 samples
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.models.enhancer import EnhancerConfig, EnhancerModule
from twostage.nn.layers import Conv1d
from twostage.utils.errors import ConfigError

SLOPE = 0.2


@dataclass(frozen=True)
class WaveUnetConfig(EnhancerConfig):
    """Sizes of the network."""

    sample_rate: int = 16000  # Hz
    levels: int = 10  # each halves the rate
    channels: int = 24  # times l at level l, counted from 1; the bottom is one more level
    down_kernel_size: int = 15  # samples, on the way down
    up_kernel_size: int = 5  # samples, on the way up

    def __post_init__(self) -> None:
        for name in ("levels", "channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}, must be at least 1")
        for name in ("down_kernel_size", "up_kernel_size"):
            if getattr(self, name) < 1 or getattr(self, name) % 2 == 0:
                raise ConfigError(f"model.{name} is {getattr(self, name)}, must be odd")


def interpolated(x: Tensor) -> Tensor:
    """Insert the mean of each two neighbors after the first, and repeat the last: (B, C, L) -> (B, C, 2 L).

    The given steps keep their positions, as the inverse of the decimation; centered interpolation would shift them.

    >>> interpolated(torch.tensor([[[0.0, 2.0, 6.0]]])).tolist()
    [[[0.0, 1.0, 2.0, 4.0, 6.0, 6.0]]]
    """
    next_steps = torch.cat([x[..., 1:], x[..., -1:]], -1)
    return torch.stack([x, (x + next_steps) / 2], -1).flatten(-2)


class WaveUnet(EnhancerModule):
    """Audio (B, 1, T) -> (B, 1, T)."""

    def __init__(self, config: WaveUnetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * (level + 1) for level in range(config.levels + 1)]
        steps = list(pairwise(widths))
        self.downs = nn.ModuleList(
            Conv1d(narrow, wide, config.down_kernel_size) for narrow, wide in [(1, widths[0]), *steps[:-1]]
        )
        self.bottom = Conv1d(*steps[-1], config.down_kernel_size)
        self.ups = nn.ModuleList(
            Conv1d(narrow + wide, narrow, config.up_kernel_size) for narrow, wide in reversed(steps)
        )
        self.conv_post = Conv1d(1 + widths[0], 1, 1)

    def forward(self, audio: Tensor) -> Tensor:
        padded = F.pad(audio, (0, -audio.shape[-1] % self.stride))
        x, skips = padded.to(self.conv_post.weight.dtype), []
        for down in self.downs:
            skips.append(F.leaky_relu(down(x), SLOPE))
            x = skips[-1][..., ::2]
        x = F.leaky_relu(self.bottom(x), SLOPE)
        for up in self.ups:
            x = F.leaky_relu(up(torch.cat([skips.pop(), interpolated(x)], 1)), SLOPE)
        x = self.conv_post(torch.cat([padded.to(x.dtype), x], 1))
        return torch.tanh(x[..., : audio.shape[-1]].float())

    def terms(self, degraded: Tensor, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Enhanced audio, and ``mse``: the mean squared error of its samples."""
        enhanced = self(degraded)
        return enhanced, {"mse": F.mse_loss(enhanced, clean)}

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def stride(self) -> int:
        """Samples per step at the bottom; windows of a file must begin at multiples of it."""
        return 2**self.config.levels

    @property
    def context(self) -> int:
        """The largest number of samples on each side that an output sample depends on."""
        down, up = self.config.down_kernel_size // 2, self.config.up_kernel_size // 2
        return (down + up + 1) * (self.stride - 1) + down * self.stride  # 1: for the interpolation

    @property
    def latency(self) -> float:
        """The number of future samples that an output sample depends on."""
        return float(self.context)
