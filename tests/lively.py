"""Models whose output depends on all of their context, so that a wrong sample anywhere is seen."""

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def lively(model: M, dtype: torch.dtype = torch.float64) -> M:
    """A folded model in eval mode, with random weights at which every layer passes its input on.

    Initial values are all but silent. In double precision, rounding does not hide what is compared.
    """
    torch.manual_seed(0)
    model = model.fold().to(dtype).eval().requires_grad_(False)  # type: ignore[operator]
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape) * (weight[0].numel() if weight.ndim > 1 else 100) ** -0.5)
    return model
