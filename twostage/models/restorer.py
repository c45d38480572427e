"""Stage one: a 2D ResUNet that restores the log-mel spectrogram of bone-conducted speech.

Source: Liu et al., "VoiceFixer: A Unified Framework for High-Fidelity Speech Restoration", Interspeech 2022, section
3.1 (analysis module), and its authors' code. Differences:
- size: 16 to 128 channels and one residual block per level, where theirs has 32 to 384 and four, 65 M parameters
- 16 kHz, 80 mels and natural logarithms of magnitudes, where theirs has 44.1 kHz, 128 mels and common logarithms
- weight normalization, where theirs uses batch normalization: without statistics of the utterance or the batch, windows
  of a file have the same output as the whole file
- convolutions with a kernel of their stride for pooling, and transposed ones for upsampling, where theirs has 2x2
  average pooling and 3x3 transposed convolutions
- bands are halved at every level, and frames according to ``time_strides``; theirs halves both at all six levels
- the blocks at the bottom are dilated in time
- the last convolution is 3x3, directly after the last block, where theirs has one more block and a 1x1 convolution
- a skip is merged by a 1x1 convolution before the block, where theirs does this in the first block, whose shortcut is
  such a convolution; leaky ReLUs have a slope of 0.1, theirs 0.01
- a second input channel is the frequency coordinate of each band; theirs has mels only
- the mask is the output of the network; theirs first removes noise, by a mask from linear layers and GRUs on the mel,
  and takes the result in addition to the input
- with ``mel.causal``, every layer uses the past only; with ``look_ahead``, the newest log-mel is one more channel, and
  the others are delayed
"""

from dataclasses import dataclass, field
from math import log, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.models.features import MelConfig
from twostage.nn.layers import Conv2d, ConvTranspose2d, fold_weight_norm, weight_norm
from twostage.nn.streaming import DelayLine
from twostage.utils.errors import ConfigError

SLOPE = 0.1
FEATURES = {"pitch": 2}  # rows of each input feature besides log-mels
MEAN, SCALE = -6.0, 2.5  # of the log-mels of speech, roughly: normalize the input of the network


@dataclass(frozen=True)
class RestorerConfig:
    """Sizes of the U-Net.

    With ``mel.causal``, a frame depends on the frames up to its own or, where time is pooled, on those pooled with it,
    and on ``look_ahead`` later ones, for which a stream waits. With two inputs, the mask is still added to the log-mel
    of the bone-conduction microphone.
    """

    mel: MelConfig = field(default_factory=MelConfig)  # must equal the settings of the vocoder
    channels: tuple[int, ...] = (16, 32, 64, 96, 128)  # of each level of the U-Net
    time_strides: tuple[int, ...] = (2, 1, 1, 1)  # frames that each pooling between two levels combines
    band_strides: tuple[int, ...] = ()  # bands that each pooling combines; empty: two
    blocks: int = 1  # residual blocks per level, in encoder and decoder
    dilations: tuple[int, ...] = (1, 2, 4)  # in frames, of the residual blocks at the bottom
    output: str = "mask"  # mask: a gain in the log domain, unbounded, added to the input; mapping: the log-mel itself
    inputs: int = 1  # microphones: 1 (bone), or 2 (bone, then air)
    features: tuple[str, ...] = ()  # input features besides log-mels: "pitch"
    look_ahead: int = 0  # frames of the future that a frame depends on, with mel.causal; the output is as many late

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.time_strides) + 1:
            raise ConfigError(
                f"restorer.channels has {len(self.channels)} levels, restorer.time_strides {len(self.time_strides)}: "
                "there must be one stride between two levels"
            )
        if self.band_strides and len(self.band_strides) != len(self.time_strides):
            raise ConfigError("restorer.band_strides and restorer.time_strides differ in length")
        if min(*self.channels, *self.time_strides, *self.dilations, *self.band_strides, self.blocks) < 1:
            raise ConfigError("restorer: channels, dilations, blocks and all strides must be at least 1")
        pooled = prod(bands for bands, _ in self.strides)
        if self.mel.n_mels % pooled:
            raise ConfigError(
                f"mel.n_mels is {self.mel.n_mels}, must be divisible by {pooled}, the product of restorer.band_strides "
                "(by default a 2 for each of restorer.time_strides)"
            )
        if self.look_ahead < 0 or (self.look_ahead and not self.mel.causal):
            raise ConfigError(f"restorer.look_ahead is {self.look_ahead}, must be 0, or positive with mel.causal")
        if self.output not in ("mask", "mapping"):
            raise ConfigError(f"restorer.output is {self.output!r}, must be 'mask' or 'mapping'")
        if self.inputs not in (1, 2):
            raise ConfigError(f"restorer.inputs is {self.inputs}, must be 1 (bone) or 2 (bone and air)")
        for name in self.features:
            if name not in FEATURES:
                raise ConfigError(f"restorer.features: no feature {name!r}; there are {', '.join(FEATURES)}")
        if len(set(self.features)) < len(self.features):
            raise ConfigError(f"restorer.features is {list(self.features)}: a name occurs twice")

    @property
    def strides(self) -> list[tuple[int, int]]:
        """The strides of each pooling layer, in bands and in time."""
        return list(zip(self.band_strides or [2] * len(self.time_strides), self.time_strides, strict=True))

    @property
    def rows(self) -> tuple[int, ...]:
        """The numbers of input rows: the bands of each input, then the rows of each feature."""
        return (self.mel.n_mels,) * self.inputs + tuple(FEATURES[name] for name in self.features)


def with_frequency(mel: Tensor) -> Tensor:
    """Normalized log-mels (B, n_mels, L) and the frequency coordinate of each band: (B, 2, n_mels, L).

    Without it, convolutions could not distinguish a low band from a high one.
    """
    frequency = torch.linspace(-1, 1, mel.shape[-2], device=mel.device)[:, None].expand_as(mel)
    return torch.stack([(mel - MEAN) / SCALE, frequency], 1)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around an identity, the first dilated in time: (B, C, F, L) -> (B, C, F, L)."""

    def __init__(self, channels: int, dilation: int = 1, *, causal: bool = False) -> None:
        super().__init__()
        self.conv1 = weight_norm(Conv2d(channels, channels, (3, 3), dilation=(1, dilation), causal=causal))
        self.conv2 = weight_norm(Conv2d(channels, channels, (3, 3), causal=causal), std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, SLOPE)), SLOPE))


class _FeatureDelay(DelayLine):
    """Delays features by ``look_ahead`` frames. Before the start, log-mels are ``MEAN``, as in padded convolutions."""

    start: Tensor

    def __init__(self, config: RestorerConfig) -> None:
        super().__init__(config.look_ahead)
        start = torch.zeros(sum(config.rows), 1)
        start[: config.inputs * config.mel.n_mels] = MEAN
        self.register_buffer("start", start, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features - self.start) + self.start


class Restorer(nn.Module):
    """ResUNet: (B, n_mels, L) log-mels of bone-conducted speech -> (B, n_mels, L) log-mels of clean speech.

    With more inputs or features, the input has the shape (B, sum(config.rows), L) of ``RestorerFeatures``: their rows
    follow the log-mel of the bone channel.
    """

    def __init__(self, config: RestorerConfig) -> None:
        super().__init__()
        self.config, causal = config, config.mel.causal
        top, levels = config.channels[0], list(zip(config.channels, config.channels[1:], config.strides, strict=False))

        def blocks(channels: int) -> nn.Sequential:
            return nn.Sequential(*(ResBlock(channels, causal=causal) for _ in range(config.blocks)))

        self.delay_line = _FeatureDelay(config) if config.look_ahead else None
        rows = config.inputs + sum(config.rows[config.inputs :])
        self.conv_pre = weight_norm(Conv2d(1 + rows * (2 if self.delay_line else 1), top, (3, 3), causal=causal))
        self.encoder = nn.ModuleList(blocks(narrow) for narrow, _, _ in levels)
        self.downs = nn.ModuleList(weight_norm(Conv2d(narrow, wide, s, stride=s)) for narrow, wide, s in levels)
        self.bottleneck = nn.Sequential(*(ResBlock(config.channels[-1], d, causal=causal) for d in config.dilations))
        self.ups = nn.ModuleList(
            weight_norm(ConvTranspose2d(wide, narrow, s, s)) for narrow, wide, s in reversed(levels)
        )
        self.merges = nn.ModuleList(
            weight_norm(Conv2d(2 * narrow, narrow, (1, 1))) for narrow, _, _ in reversed(levels)
        )
        self.decoder = nn.ModuleList(blocks(narrow) for narrow, _, _ in reversed(levels))
        self.conv_post = weight_norm(Conv2d(top, 1, (3, 3), causal=causal), std=1e-4)

    def forward(self, features: Tensor) -> Tensor:
        look_ahead, frames = self.config.look_ahead, features.shape[-1]
        if not look_ahead or not frames:
            return self.forward_chunk(features)
        return self.forward_chunk(F.pad(features, (0, look_ahead), mode="replicate"))[..., look_ahead:]

    def forward_chunk(self, features: Tensor) -> Tensor:
        """Process the next chunk of a stream; the output is ``look_ahead`` frames late."""
        delayed = features if self.delay_line is None else self.delay_line(features)
        mel = delayed[:, : self.config.mel.n_mels]
        x = self._as_channels(delayed)
        if self.delay_line is not None:
            newest = self._as_channels(features)
            x = torch.cat([x, newest[:, :1], newest[:, 2:]], 1)  # the frequency is there already
        x = F.pad(x, (0, -mel.shape[-1] % self.stride, 0, 0), mode="replicate")
        x = self._unet(x.to(next(self.conv_pre.parameters()).dtype))[:, 0, :, : mel.shape[-1]].float() * SCALE
        restored = mel + x if self.config.output == "mask" else x + MEAN
        return restored.clamp_min(log(self.config.mel.clamp))

    def _as_channels(self, features: Tensor) -> Tensor:
        """Rows (B, R, L) to channels (B, C, n_mels, L): bone, frequency, air, and features repeated in all bands."""
        inputs, n_mels = self.config.inputs, self.config.mel.n_mels
        bone, *others = features.split(self.config.rows, 1)
        air = [(mel[:, None] - MEAN) / SCALE for mel in others[: inputs - 1]]
        feature_channels = [rows[:, :, None].expand(-1, -1, n_mels, -1) for rows in others[inputs - 1 :]]
        return torch.cat([with_frequency(bone), *air, *feature_channels], 1)

    def _unet(self, x: Tensor) -> Tensor:
        x, skips = self.conv_pre(x), []
        for blocks, down in zip(self.encoder, self.downs, strict=True):
            skips.append(blocks(x))
            x = down(F.leaky_relu(skips[-1], SLOPE))
        x = self.bottleneck(x)
        for up, merge, blocks in zip(self.ups, self.merges, self.decoder, strict=True):
            x = blocks(merge(torch.cat([up(F.leaky_relu(x, SLOPE)), skips.pop()], 1)))
        return self.conv_post(F.leaky_relu(x, SLOPE))

    def fold(self) -> "Restorer":
        """Fold weight normalization away for inference; the output stays the same."""
        return fold_weight_norm(self)

    @property
    def stride(self) -> int:
        """The number of frames that are pooled into one at the bottom; windows of a file begin at multiples of it."""
        return prod(self.config.time_strides)

    @property
    def context(self) -> int:
        """The largest number of mel frames on each side that a restored frame depends on."""
        frames, stride = 2, 1
        for step in self.config.time_strides:
            frames += 2 * 2 * self.config.blocks * stride + (step - 1) * stride
            stride *= step
        frames += stride * sum(d + 1 for d in self.config.dilations) + stride
        return frames * (2 if self.config.mel.causal else 1)  # if causal, all of them in the past
