"""EBEN's discriminators of bands: each processes the upper bands of the audio jointly, with a different dilation.

Source: Hauret et al., "EBEN", ICASSP 2023, section 2.2; sizes, slope and dilations are those of the authors' code.
Differences: every convolution keeps or halves the length, whatever its dilation; and channel counts are rounded down to
multiples of the number of bands.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from twostage.nn.layers import feature_maps, weight_norm
from twostage.nn.pqmf import Pqmf

SLOPE = 0.2
DILATIONS = (1, 2, 3)
TAPS = 8  # length of each filter of the bank, per band


class BandDiscriminator(nn.Module):
    """Dilated convolutions with a group of channels for each band; only the last mixes bands: (B, bands, L) -> maps."""

    def __init__(self, bands: int, dilation: int, width: float = 1.0) -> None:
        super().__init__()
        sizes = [bands] + [bands * max(1, int(width * c / bands)) for c in (30, 60, 120, 240, 480, 960, 960)]
        kernels, strides = (3, 7, 7, 7, 7, 7, 5), (1, 2, 2, 2, 2, 2, 1)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv1d(i, o, k, s, dilation * (k // 2), dilation, groups=bands))
            for i, o, k, s in zip(sizes, sizes[1:], kernels, strides, strict=False)
        )
        self.conv_post = weight_norm(nn.Conv1d(sizes[-1], 1, 3, padding=1))

    def forward(self, bands: Tensor) -> list[Tensor]:
        return feature_maps(bands, self.convs, self.conv_post, SLOPE)


class MultiBand(nn.Module):
    """One discriminator for each dilation, on the upper ``bands`` of ``of_bands``: (B, 1, T) -> lists of maps."""

    def __init__(self, bands: int, of_bands: int, width: float = 1.0) -> None:
        super().__init__()
        self.count, self.pqmf = bands, Pqmf(of_bands, TAPS * of_bands)
        self.discriminators = nn.ModuleList(BandDiscriminator(bands, dilation, width) for dilation in DILATIONS)

    def forward(self, audio: Tensor) -> list[list[Tensor]]:
        padded = F.pad(audio, (0, -audio.shape[-1] % self.pqmf.bands))  # so that the last samples are included
        upper = self.pqmf.analysis(padded)[:, -self.count :]
        return [discriminator(upper) for discriminator in self.discriminators]
