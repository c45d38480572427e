"""A U-Net along time: dilated residual units, strided convolutions between them, and additive skips.

Sources: Tagliasacchi, Li, Misiunas and Roblek, "SEANet", Interspeech 2020, section 2, and Hauret et al., "EBEN", ICASSP
2023, which adopts it. The positions of activations are those of the latter's code.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from twostage.nn.layers import Conv1d, ConvTranspose1d, receptive_field, weight_norm

DILATIONS = (1, 3, 9)
BOTTOM = 7  # kernel size of the convolutions at the bottom


class DilatedUnet(nn.Module):
    """(B, channels, L) -> (B, channels, L), L a multiple of ``stride``. Each level doubles the channels.

    ``unit`` builds a residual unit of kernel size 3 from its channels and dilation. ``strides``, all even, are those of
    the levels; ``bottleneck`` is the number of channels inside the bottleneck.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        bottleneck: int,
        *,
        unit: Callable[[int, int], nn.Module],
        activation: nn.Module,
        bias: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.strides, self.activation = tuple(strides), activation
        widths = [channels * 2**level for level in range(len(strides) + 1)]
        levels = list(zip(pairwise(widths), strides, strict=True))
        options = {"bias": bias, "causal": causal}
        self.downs = nn.ModuleList(
            nn.Sequential(
                *(unit(narrow, dilation) for dilation in DILATIONS),
                weight_norm(Conv1d(narrow, wide, 2 * stride, stride=stride, **options)),
            )
            for (narrow, wide), stride in levels
        )
        self.bottom = nn.Sequential(
            activation,
            weight_norm(Conv1d(widths[-1], bottleneck, BOTTOM, **options)),
            activation,
            weight_norm(Conv1d(bottleneck, widths[-1], BOTTOM, **options)),
            activation,
        )
        self.ups = nn.ModuleList(
            nn.Sequential(
                weight_norm(ConvTranspose1d(wide, narrow, 2 * stride, stride, **options)),
                activation,
                *(unit(narrow, dilation) for dilation in DILATIONS),
            )
            for (narrow, wide), stride in reversed(levels)
        )

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.downs:
            x = down(self.activation(x))
            skips.append(x)
        x = self.bottom(x)
        for up in self.ups:
            x = up(x + skips.pop())
        return x

    @property
    def stride(self) -> int:
        return prod(self.strides)

    @property
    def receptive_field(self) -> int:
        """Steps on each side, beyond its stride, that an output step depends on; if causal, twice as many, all past."""
        steps, step = 0, 1
        for stride in self.strides:
            steps += 2 * (receptive_field((3, dilation) for dilation in DILATIONS) + stride // 2) * step
            step *= stride
        return steps + 2 * receptive_field([(BOTTOM, 1)]) * step
