"""Residual blocks of HiFi-GAN, used by the generator and by the encoder of the sensor's waveform.

Source: Kong et al., "HiFi-GAN", NeurIPS 2020, appendix A.1: types 1 and 2.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from twostage.nn.layers import Conv1d, receptive_field, weight_norm

SLOPE = 0.1

# Outputs of convolutions are modified in place, to save memory and the time to allocate it


class ResBlock1(nn.Module):
    """Residual pairs of convolutions, the first of each pair dilated: (B, C, T) -> (B, C, T)."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...], causal: bool) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            weight_norm(Conv1d(channels, channels, kernel_size, dilation=dilation, causal=causal))
            for dilation in dilations
        )
        self.convs2 = nn.ModuleList(
            weight_norm(Conv1d(channels, channels, kernel_size, causal=causal)) for _ in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = plain(F.leaky_relu_(dilated(F.leaky_relu(x, SLOPE)), SLOPE)).add_(x)
        return x

    @staticmethod
    def receptive_field(kernel_size: int, dilations: tuple[int, ...]) -> int:
        return receptive_field([(kernel_size, d) for d in dilations] + [(kernel_size, 1)] * len(dilations))


class ResBlock2(nn.Module):
    """Residual dilated convolutions: (B, C, T) -> (B, C, T)."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...], causal: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            weight_norm(Conv1d(channels, channels, kernel_size, dilation=dilation, causal=causal))
            for dilation in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(F.leaky_relu(x, SLOPE)).add_(x)
        return x

    @staticmethod
    def receptive_field(kernel_size: int, dilations: tuple[int, ...]) -> int:
        return receptive_field([(kernel_size, d) for d in dilations])


RESBLOCKS: dict[int, type[ResBlock1] | type[ResBlock2]] = {1: ResBlock1, 2: ResBlock2}
