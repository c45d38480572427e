"""Convolutions of a few positions as one matrix product.

torch's own are made for long inputs and spend a piece of a stream on preparing; these give the same to rounding, for a
batch of one, without gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

POSITIONS = 512  # above about as many, torch's convolutions are the faster


def is_short(x: Tensor) -> bool:
    """Whether ``x`` (B, C, L) or (B, C, F, L) is better taken here."""
    return (
        not torch.compiler.is_exporting()  # first: of any length, what is exported holds no decision on one
        and not torch.jit.is_tracing()
        and x.shape[0] == 1
        and x[0, 0].numel() <= POSITIONS
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
    )


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """``F.conv1d`` without padding: (1, C, L) -> (1, C', L')."""
    return conv2d(x[:, :, None], weight[:, :, None], bias, (1, 1), (1, dilation))[:, :, 0]


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """``F.conv2d`` without padding: (1, C, F, L) -> (1, C', F', L')."""
    kernel = weight.shape[2:]
    out = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(x.shape[2:], kernel, dilation, stride, strict=True)]
    _, channel, band, frame = x.stride()
    steps = (stride[0] * band, stride[1] * frame, channel, dilation[0] * band, dilation[1] * frame)
    seen = x.as_strided((*out, x.shape[1], *kernel), steps).reshape(out[0] * out[1], -1)
    return F.linear(seen, weight.flatten(1), bias).unflatten(0, out).permute(2, 0, 1)[None]
