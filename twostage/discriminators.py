"""Judges of waveforms. Each maps audio (B, 1, T) to a list of lists of feature maps, the last of each its logits.

Source: Kong et al., "HiFi-GAN", 2020, section 2.3; the multi-scale one after Kumar et al., "MelGAN", 2019.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from twostage.errors import ConfigError
from twostage.nn.layers import weight_norm

SLOPE = 0.1


@dataclass(frozen=True)
class DiscriminatorConfig:
    """``width`` scales every channel count; 1 is the paper's. ``scales`` counts resolutions 1, 1/2, 1/4, ..."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    scales: int = 3
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.width * 16 < 1 or (self.width * 16) % 1:
            raise ConfigError(f"discriminator.width is {self.width}, must be a multiple of 1/16")
        if self.scales < 0 or any(p < 2 for p in self.periods) or not (self.periods or self.scales):
            raise ConfigError("discriminator: periods must be at least 2, scales not negative, one of the two present")


class PeriodDiscriminator(nn.Module):
    """Folds time into a grid of columns ``period`` apart and convolves along the columns."""

    def __init__(self, period: int, width: float = 1.0) -> None:
        super().__init__()
        self.period = period
        sizes = [1] + [int(width * c) for c in (32, 128, 512, 1024, 1024)]
        strides = (3, 3, 3, 3, 1)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(i, o, (5, 1), (s, 1), (2, 0)))
            for i, o, s in zip(sizes, sizes[1:], strides, strict=False)
        )
        self.conv_post = weight_norm(nn.Conv2d(sizes[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, audio: Tensor) -> list[Tensor]:
        missing = -audio.shape[-1] % self.period
        x = F.pad(audio, (0, missing), mode="reflect").unflatten(-1, (-1, self.period))
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
            maps.append(x)
        return [*maps, self.conv_post(x).flatten(1)]


class ScaleDiscriminator(nn.Module):
    """Grouped, strided convolutions on the raw waveform at one resolution."""

    def __init__(self, width: float = 1.0, spectral: bool = False) -> None:
        super().__init__()
        norm = parametrizations.spectral_norm if spectral else weight_norm
        sizes = [1] + [int(width * c) for c in (128, 128, 256, 512, 1024, 1024, 1024)]
        kernels, strides, groups = (15, 41, 41, 41, 41, 41, 5), (1, 2, 2, 4, 4, 1, 1), (1, 4, 16, 16, 16, 16, 1)
        self.convs = nn.ModuleList(
            norm(nn.Conv1d(i, o, k, s, k // 2, groups=min(g, i, o)))
            for i, o, k, s, g in zip(sizes, sizes[1:], kernels, strides, groups, strict=False)
        )
        self.conv_post = norm(nn.Conv1d(sizes[-1], 1, 3, padding=1))

    def forward(self, audio: Tensor) -> list[Tensor]:
        x, maps = audio, []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
            maps.append(x)
        return [*maps, self.conv_post(x).flatten(1)]


class MultiPeriod(nn.Module):
    """MPD: one judge a period, (B, 1, T) -> list of maps each."""

    def __init__(self, periods: tuple[int, ...], width: float = 1.0) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(PeriodDiscriminator(p, width) for p in periods)

    def forward(self, audio: Tensor) -> list[list[Tensor]]:
        return [judge(audio) for judge in self.discriminators]


class MultiScale(nn.Module):
    """MSD: one judge a halving of the rate, the first with spectral norm, (B, 1, T) -> list of maps each."""

    def __init__(self, scales: int, width: float = 1.0) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(ScaleDiscriminator(width, spectral=i == 0) for i in range(scales))

    def forward(self, audio: Tensor) -> list[list[Tensor]]:
        results = []
        for judge in self.discriminators:
            results.append(judge(audio))
            audio = F.avg_pool1d(audio, 4, 2, padding=2)
        return results


class Discriminators(nn.Module):
    """MPD and MSD as one: (B, 1, T) -> list of lists of maps."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.mpd = MultiPeriod(tuple(config.periods), config.width)
        self.msd = MultiScale(config.scales, config.width)

    def forward(self, audio: Tensor) -> list[list[Tensor]]:
        return [*self.mpd(audio), *self.msd(audio)]
