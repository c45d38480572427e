"""A patch discriminator of log-mels: distinguishes restored ones, which an L1 loss smooths, from clean ones.

Source: the patches of Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks" (pix2pix), CVPR
2017, section 3.2.2, and its layout: every hidden convolution except the last halves the map. It is much narrower, and
uses weight normalization like the other discriminators.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from twostage.models.restorer import with_frequency
from twostage.nn.layers import feature_maps, weight_norm
from twostage.utils.errors import ConfigError

SLOPE = 0.2  # as in pix2pix


@dataclass(frozen=True)
class MelDiscriminatorConfig:
    """Sizes of the discriminator of log-mels.

    At the defaults a logit covers 47 bands by 47 frames, which are 0.75 s at 16 kHz.
    """

    channels: tuple[int, ...] = (16, 32, 64, 64)  # of each hidden convolution
    kernel_size: int = 3  # size of every convolution in bands and frames; odd

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ConfigError(
                f"mel_discriminator.channels is {list(self.channels)}, must be one or more, each at least 1"
            )
        if self.kernel_size < 3 or self.kernel_size % 2 == 0:
            raise ConfigError(f"mel_discriminator.kernel_size is {self.kernel_size}, must be odd and at least 3")


class MelDiscriminator(nn.Module):
    """(B, n_mels, L) log-mels -> a list with one list of feature maps, the last of which are the logits."""

    def __init__(self, config: MelDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        sizes, size = (2, *config.channels), config.kernel_size
        strides = (2,) * (len(config.channels) - 1) + (1,)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(i, o, size, s, size // 2)) for i, o, s in zip(sizes, sizes[1:], strides, strict=False)
        )
        self.conv_post = weight_norm(nn.Conv2d(sizes[-1], 1, size, padding=size // 2))

    def forward(self, mel: Tensor) -> list[list[Tensor]]:
        return [feature_maps(with_frequency(mel), self.convs, self.conv_post, SLOPE)]
