"""Convolutions of short inputs as one matrix product.

torch's convolutions are optimized for long inputs and spend most of the time of a short chunk on preparation. These
have the same result up to rounding, for a batch of one and without gradient. They are fastest if ``x`` and ``weight``
have the channels-last memory layout.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

POSITIONS = 512  # for more positions, torch's convolutions are faster


def is_short(x: Tensor) -> bool:
    """Whether ``x`` (B, C, L) or (B, C, F, L) is processed faster here."""
    return (
        not torch.compiler.is_exporting()  # checked first, because exported models must not depend on the length
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
    windows = x.as_strided((out, kernel, channels), steps, x.storage_offset())
    return F.linear(windows.reshape(out, -1), weight.mT.reshape(outputs, -1), bias).t()[None]


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """``F.conv2d`` without padding: (1, C, F, L) -> (1, C', F', L')."""
    (_, channels, bands, length), (_, channel, band, frame) = x.shape, x.stride()
    outputs, _, tall, wide = weight.shape
    out_bands, out_frames = (bands - (tall - 1) * dilation[0] - 1) // stride[0] + 1, length - (wide - 1) * dilation[1]
    out_frames = (out_frames - 1) // stride[1] + 1
    steps = (stride[0] * band, stride[1] * frame, dilation[0] * band, dilation[1] * frame, channel)
    windows = x.as_strided((out_bands, out_frames, tall, wide, channels), steps, x.storage_offset())
    out = F.linear(windows.reshape(out_bands * out_frames, -1), weight.permute(0, 2, 3, 1).reshape(outputs, -1), bias)
    return out.view(out_bands, out_frames, outputs).permute(2, 0, 1)[None]
