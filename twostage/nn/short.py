"""Convolutions of a few positions as one matrix product.

torch's convolutions are made for long inputs and spend most of the time of a short chunk on preparation. These give the
same result up to rounding, for a batch of one and without gradient. They are fastest if the channels of a position lie
side by side in ``x`` and ``weight``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

POSITIONS = 512  # above about as many, torch's convolutions are the faster


def is_short(x: Tensor) -> bool:
    """Whether ``x`` (B, C, L) or (B, C, F, L) is processed faster here."""
    return (
        not torch.compiler.is_exporting()  # first: of any length, what is exported holds no decision on one
        and not torch.is_grad_enabled()
        and x.numel() <= POSITIONS * x.shape[1]
        and x.shape[0] == 1
        and x.is_cpu
    )


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int) -> Tensor:
    """``F.conv1d`` without padding: (1, C, L) -> (1, C', L')."""
    (_, channels, length), (_, channel, frame), (outputs, _, kernel) = x.shape, x.stride(), weight.shape
    out = (length - (kernel - 1) * dilation - 1) // stride + 1
    steps = (stride * frame, dilation * frame, channel)
    seen = x.as_strided((out, kernel, channels), steps, x.storage_offset())
    return F.linear(seen.reshape(out, -1), weight.mT.reshape(outputs, -1), bias).t()[None]


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """``F.conv2d`` without padding: (1, C, F, L) -> (1, C', F', L')."""
    (_, channels, bands, length), (_, channel, band, frame) = x.shape, x.stride()
    outputs, _, tall, wide = weight.shape
    high, long = (bands - (tall - 1) * dilation[0] - 1) // stride[0] + 1, length - (wide - 1) * dilation[1]
    long = (long - 1) // stride[1] + 1
    steps = (stride[0] * band, stride[1] * frame, dilation[0] * band, dilation[1] * frame, channel)
    seen = x.as_strided((high, long, tall, wide, channels), steps, x.storage_offset())
    out = F.linear(seen.reshape(high * long, -1), weight.permute(0, 2, 3, 1).reshape(outputs, -1), bias)
    return out.view(high, long, outputs).permute(2, 0, 1)[None]
