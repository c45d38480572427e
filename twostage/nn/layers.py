"""Convolutions with weight normalisation that folds away, the reach of a chain of them, the maps that judges give."""

from collections.abc import Iterable
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

M = TypeVar("M", bound=nn.Module)


def weight_norm(module: M, std: float | None = None) -> M:
    """Reparametrize ``module.weight`` as direction times length, first drawing it from N(0, std) where given.

    Source: Salimans and Kingma, "Weight Normalization", 2016, equation 2.
    """
    if std is not None:
        nn.init.normal_(module.weight, 0.0, std)  # type: ignore[arg-type]
    parametrizations.weight_norm(module)
    return module


def fold_weight_norm(model: M) -> M:
    """Replace every normalised weight below ``model`` by the plain one it stands for. Idempotent; returns ``model``."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return model


def reach(layers: Iterable[tuple[int, int]]) -> int:
    """Input steps that centred stride-one convolutions see on each side, from (kernel_size, dilation) pairs.

    >>> reach([(3, 1), (3, 3), (3, 5)])
    9
    """
    return sum((kernel_size - 1) * dilation // 2 for kernel_size, dilation in layers)


def feature_maps(x: Tensor, hidden: Iterable[nn.Module], last: nn.Module, slope: float) -> list[Tensor]:
    """What a judge makes of ``x`` (B, C, ...): each hidden layer's map, leaky ReLU behind it, and its flat logits."""
    maps = []
    for layer in hidden:
        x = F.leaky_relu(layer(x), slope)
        maps.append(x)
    return [*maps, last(x).flatten(1)]
