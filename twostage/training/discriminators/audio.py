"""Discriminators of waveforms: from audio (B, 1, T) to lists of feature maps, the last of which are the logits.

Sources: Kong et al., "HiFi-GAN", 2020, section 2.3, for multi-period and multi-scale discriminators; Kumar et al.,
"MelGAN", 2019, section 2.2, for the multi-scale ones that HiFi-GAN's are based on; Jang et al., "UnivNet", Interspeech
2021, for the multi-resolution ones.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from twostage.models.features import Stft
from twostage.nn.layers import feature_maps, weight_norm
from twostage.training.discriminators.bands import MultiBand
from twostage.utils.errors import ConfigError

SLOPE, MELGAN_SLOPE = 0.1, 0.2
COMPRESSION = 0.3  # exponent of magnitudes


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The kinds of discriminators and their sizes. Kinds with a count of 0 or an empty list are not used."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)  # samples, of HiFi-GAN's multi-period discriminators
    scales: int = 3  # of HiFi-GAN's multi-scale discriminators: sample rates 1, 1/2, 1/4, ...
    width: float = 1.0  # factor of all channel counts; 1: as in the papers
    resolutions: tuple[int, ...] = ()  # spectrogram windows in samples; UnivNet: 512, 1024, 2048
    melgan: int = 0  # number of MelGAN discriminators: sample rates 1, 1/2, 1/4, ...
    melgan_groups: int = 0  # groups of their inner convolutions; 0: four channels per group
    bands: int = 0  # number of upper bands, out of of_bands, for EBEN's discriminators; 0: none
    of_bands: int = 4  # number of bands into which the signal is split for them

    def __post_init__(self) -> None:
        if self.width * 16 < 1 or (self.width * 16) % 1:
            raise ConfigError(f"discriminator.width is {self.width}, must be a multiple of 1/16")
        if any(n < 8 or n % 8 for n in self.resolutions):  # the hop is a quarter, and an even number
            raise ConfigError(f"discriminator.resolutions is {self.resolutions}, must be multiples of 8")
        if self.scales < 0 or any(p < 2 for p in self.periods):
            raise ConfigError("discriminator: periods must be at least 2, scales not negative")
        if self.melgan < 0 or self.melgan_groups < 0:
            raise ConfigError(
                f"discriminator.melgan is {self.melgan}, melgan_groups {self.melgan_groups}, must not be negative"
            )
        if not 0 <= self.bands <= self.of_bands or self.of_bands < 2:
            raise ConfigError(
                f"discriminator.bands is {self.bands}, must be from 0 to of_bands, which is {self.of_bands}, at least 2"
            )
        if not (self.periods or self.scales or self.resolutions or self.melgan or self.bands):
            raise ConfigError("discriminator: one of periods, scales, resolutions, melgan and bands must be present")


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
        return feature_maps(x, self.convs, self.conv_post, SLOPE)


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
        return feature_maps(audio, self.convs, self.conv_post, SLOPE)


class SpectrogramDiscriminator(nn.Module):
    """Convolutions on a magnitude spectrogram, strided along frequency; the hop is a quarter of ``n_fft``.

    Magnitudes are raised to the power COMPRESSION, as before the discriminator of Cao et al., "CMGAN", Interspeech
    2022: otherwise loud harmonics would mask errors between them.
    """

    def __init__(self, n_fft: int, width: float = 1.0) -> None:
        super().__init__()
        self.stft = Stft(n_fft, n_fft // 4)
        channels = int(width * 32)
        kernels, strides = ((3, 9), (3, 9), (3, 9), (3, 9), (3, 3)), (1, 2, 2, 2, 1)  # time, frequency
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(channels if i else 1, channels, k, (1, s), (k[0] // 2, k[1] // 2)))
            for i, (k, s) in enumerate(zip(kernels, strides, strict=True))
        )
        self.conv_post = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, audio: Tensor) -> list[Tensor]:
        missing = -audio.shape[-1] % self.stft.hop_length  # so that the last samples are included
        x = self.stft(F.pad(audio, (0, missing))).pow(COMPRESSION).mT[:, None]  # (B, 1, frames, bins)
        return feature_maps(x, self.convs, self.conv_post, SLOPE)


class MelganDiscriminator(nn.Module):
    """Grouped convolutions on the raw waveform at one resolution, each at a quarter of the rate of its predecessor.

    ``groups`` is reduced to a divisor of the channels where necessary; 0: groups of four channels each.
    """

    def __init__(self, width: float = 1.0, groups: int = 0) -> None:
        super().__init__()
        sizes = [int(width * c) for c in (16, 64, 256, 1024, 1024)]
        self.convs = nn.ModuleList(
            [
                weight_norm(nn.Conv1d(1, sizes[0], 15, padding=7, padding_mode="reflect")),
                *(
                    weight_norm(nn.Conv1d(i, o, 41, 4, 20, groups=gcd(i, o, groups or max(1, i // 4))))
                    for i, o in pairwise(sizes)
                ),
                weight_norm(nn.Conv1d(sizes[-1], sizes[-1], 5, padding=2)),
            ]
        )
        self.conv_post = weight_norm(nn.Conv1d(sizes[-1], 1, 3, padding=1))

    def forward(self, audio: Tensor) -> list[Tensor]:
        return feature_maps(audio, self.convs, self.conv_post, MELGAN_SLOPE)


class Family(nn.Module):
    """Discriminators of one kind: (B, 1, T) -> a list of maps for each."""

    def __init__(self, discriminators: Iterable[nn.Module]) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(discriminators)

    def forward(self, audio: Tensor) -> list[list[Tensor]]:
        return [discriminator(audio) for discriminator in self.discriminators]


class Halving(Family):
    """Discriminators of one kind, each at half the rate of its predecessor: (B, 1, T) -> a list of maps for each."""

    def forward(self, audio: Tensor) -> list[list[Tensor]]:
        results = []
        for discriminator in self.discriminators:
            results.append(discriminator(audio))
            audio = F.avg_pool1d(audio, 4, 2, padding=2)
        return results


def multi_period(periods: Iterable[int], width: float = 1.0) -> Family:
    """Multi-period discriminator."""
    return Family(PeriodDiscriminator(period, width) for period in periods)


def multi_scale(scales: int, width: float = 1.0) -> Halving:
    """Multi-scale discriminator; the first scale uses spectral normalization."""
    return Halving(ScaleDiscriminator(width, spectral=scale == 0) for scale in range(scales))


def multi_resolution(resolutions: Iterable[int], width: float = 1.0) -> Family:
    """Multi-resolution spectrogram discriminator."""
    return Family(SpectrogramDiscriminator(n_fft, width) for n_fft in resolutions)


class Discriminators(nn.Module):
    """All discriminators of a configuration as one module: (B, 1, T) -> list of lists of maps."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.mpd = multi_period(config.periods, width)
        self.msd = multi_scale(config.scales, width)
        self.mrsd = multi_resolution(config.resolutions, width)
        self.melgan = Halving(MelganDiscriminator(width, config.melgan_groups) for _ in range(config.melgan))
        self.bands = MultiBand(config.bands, config.of_bands, width) if config.bands else None

    def forward(self, audio: Tensor) -> list[list[Tensor]]:
        results = [*self.mpd(audio), *self.msd(audio), *self.mrsd(audio), *self.melgan(audio)]
        return [*results, *self.bands(audio)] if self.bands else results
