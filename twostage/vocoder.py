"""Stage two: the HiFi-GAN generator, log-mels to a waveform.

Source: Kong, Kim and Bae, "HiFi-GAN: Generative Adversarial Networks for Efficient and High Fidelity Speech
Synthesis", NeurIPS 2020, section 2.2 and appendix A.1. Module names are those of the authors' checkpoints.
"""

from dataclasses import dataclass, field
from math import ceil, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.errors import ConfigError
from twostage.features import MelConfig
from twostage.griffinlim import GriffinLim
from twostage.nn.layers import fold_weight_norm, reach, weight_norm

SLOPE = 0.1
LAST_SLOPE = 0.01  # the authors' code leaves torch's default before the output convolution; their weights expect it


@dataclass(frozen=True)
class VocoderConfig:
    """Sizes of a generator. ``resblock`` is the paper's type, 1 (two convolutions a dilation) or 2 (one).

    ``griffin_lim``: iterations that finish its output at inference (not in training); 0 for the paper's vocoder.
    ``heard_below``: Hz, up to which they take phase and harmonics from the restored input, if there is one.
    """

    mel: MelConfig = field(default_factory=MelConfig)
    upsample_rates: tuple[int, ...] = (8, 8, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16, 4, 4)
    upsample_initial_channel: int = 256
    resblock: int = 1
    resblock_kernel_sizes: tuple[int, ...] = (3, 7)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5))
    griffin_lim: int = 0
    heard_below: float = 0.0

    def __post_init__(self) -> None:
        if prod(self.upsample_rates) != self.mel.hop_length:
            raise ConfigError(
                f"vocoder.upsample_rates multiply to {prod(self.upsample_rates)}, "
                f"mel.hop_length is {self.mel.hop_length}"
            )
        if len(self.upsample_kernel_sizes) != len(self.upsample_rates):
            raise ConfigError("vocoder.upsample_kernel_sizes and vocoder.upsample_rates differ in length")
        for rate, kernel_size in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            if kernel_size < rate or (kernel_size - rate) % 2:
                raise ConfigError(
                    f"vocoder.upsample_kernel_sizes: {kernel_size} must be its rate {rate} plus an even number"
                )
        if len(self.resblock_dilation_sizes) != len(self.resblock_kernel_sizes):
            raise ConfigError("vocoder.resblock_dilation_sizes and vocoder.resblock_kernel_sizes differ in length")
        if any(kernel_size % 2 == 0 for kernel_size in self.resblock_kernel_sizes):
            raise ConfigError(f"vocoder.resblock_kernel_sizes must be odd: {self.resblock_kernel_sizes}")
        if self.griffin_lim < 0:
            raise ConfigError(f"vocoder.griffin_lim is {self.griffin_lim}, must not be negative")
        if not self.heard_below >= 0 or (self.heard_below and not self.griffin_lim):
            raise ConfigError(f"vocoder.heard_below is {self.heard_below}, must be 0, or positive with griffin_lim")
        if self.resblock not in RESBLOCKS:
            raise ConfigError(f"vocoder.resblock is {self.resblock}, must be 1 or 2")
        if self.upsample_initial_channel % 2 ** len(self.upsample_rates):
            raise ConfigError(
                f"vocoder.upsample_initial_channel is {self.upsample_initial_channel}, "
                f"must divide by {2 ** len(self.upsample_rates)}"
            )


def _conv(channels: int, kernel_size: int, dilation: int) -> nn.Conv1d:
    padding = (kernel_size - 1) * dilation // 2
    return weight_norm(nn.Conv1d(channels, channels, kernel_size, dilation=dilation, padding=padding))


class ResBlock1(nn.Module):
    """Residual pairs of convolutions, the first of each pair dilated: (B, C, T) -> (B, C, T)."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_conv(channels, kernel_size, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(_conv(channels, kernel_size, 1) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x

    @staticmethod
    def reach(kernel_size: int, dilations: tuple[int, ...]) -> int:
        return reach([(kernel_size, d) for d in dilations] + [(kernel_size, 1)] * len(dilations))


class ResBlock2(nn.Module):
    """Residual dilated convolutions: (B, C, T) -> (B, C, T)."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(channels, kernel_size, dilation) for dilation in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, SLOPE))
        return x

    @staticmethod
    def reach(kernel_size: int, dilations: tuple[int, ...]) -> int:
        return reach([(kernel_size, d) for d in dilations])


RESBLOCKS: dict[int, type[ResBlock1] | type[ResBlock2]] = {1: ResBlock1, 2: ResBlock2}


class Vocoder(nn.Module):
    """HiFi-GAN generator: (B, n_mels, L) log-mels -> (B, 1, L * hop_length) audio in [-1, 1]."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = [config.upsample_initial_channel // 2**i for i in range(len(config.upsample_rates) + 1)]
        blocks = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))
        self.conv_pre = weight_norm(nn.Conv1d(config.mel.n_mels, channels[0], 7, padding=3))
        self.ups = nn.ModuleList(
            weight_norm(nn.ConvTranspose1d(wide, narrow, kernel_size, rate, padding=(kernel_size - rate) // 2))
            for wide, narrow, kernel_size, rate in zip(
                channels, channels[1:], config.upsample_kernel_sizes, config.upsample_rates, strict=False
            )
        )
        # one flat list, level by level: the order in which published checkpoints number their blocks
        self.resblocks = nn.ModuleList(
            RESBLOCKS[config.resblock](c, k, tuple(d)) for c in channels[1:] for k, d in blocks
        )
        self.conv_post = weight_norm(nn.Conv1d(channels[-1], 1, 7, padding=3))
        self.griffin_lim = None
        if config.griffin_lim:
            self.griffin_lim = GriffinLim(config.mel, config.griffin_lim, config.heard_below)

    def forward(self, mel: Tensor, heard: Tensor | None = None) -> Tensor:
        """``heard`` (B, 1, T), T at least L * hop_length: the input that ``mel`` was restored from, for Griffin-Lim."""
        x = self.conv_pre(mel)
        for up, blocks in zip(self.ups, self._levels(), strict=True):
            x = up(F.leaky_relu(x, SLOPE))
            x = torch.stack([block(x) for block in blocks]).mean(0)
        audio = torch.tanh(self.conv_post(F.leaky_relu(x, LAST_SLOPE)))
        return self.griffin_lim(audio, mel, heard) if self.griffin_lim and not self.training else audio

    def _levels(self) -> list[list[nn.Module]]:
        width = len(self.config.resblock_kernel_sizes)
        blocks = list(self.resblocks)
        return [blocks[i : i + width] for i in range(0, len(blocks), width)]

    def fold(self) -> "Vocoder":
        """Fold weight normalisation away for inference; the output stays the same."""
        return fold_weight_norm(self)

    @property
    def context(self) -> int:
        """Frames of mel that an output sample depends on, on each side."""
        config, rate, frames = self.config, 1, 3.0
        widest = max(
            RESBLOCKS[config.resblock].reach(k, tuple(d))
            for k, d in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        )
        for up, kernel_size in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            frames += kernel_size / (2 * up) / rate
            rate *= up
            frames += widest / rate
        return ceil(frames + 3 / rate) + (self.griffin_lim.context if self.griffin_lim else 0)
