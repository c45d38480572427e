"""Layers with optional causality, which then use past steps only, and weight normalization that can be folded away.

Causal and non-causal layers have the same weights under the same names.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from twostage.nn import short
from twostage.nn.streaming import Overlap, Past, StreamState

M = TypeVar("M", bound=nn.Module)
Size = tuple[int, int]  # bands, then frames


class Conv1d(nn.Conv1d):
    """(B, C, L) -> (B, C', L); with a ``stride``, at most the kernel size, -> (B, C', L / stride)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        causal: bool = False,
    ) -> None:
        past = (kernel_size - 1) * dilation + 1 - stride
        self.sides = 0 if causal else past // 2
        super().__init__(inputs, outputs, kernel_size, stride, self.sides, dilation, bias=bias)
        self.past = Past(past) if causal and past else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.past(x)
        if short.is_short(x):
            x = F.pad(x, (self.sides, self.sides))
            return short.conv1d(x, self.weight, self.bias, self.stride[0], self.dilation[0])
        if torch.compiler.is_exporting():  # one operator; in-place changes of the view below would become scatters
            return super().forward(x)
        x, weight = _as_2d(x), self.weight[:, :, None]
        return F.conv2d(x, weight, self.bias, (1, *self.stride), (0, self.sides), (1, *self.dilation))[:, :, 0]


class Conv2d(nn.Conv2d):
    """(B, C, F, L) -> (B, C', F, L); with a ``stride``, at most the kernel size, -> (B, C', F / s, L / s')."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: Size,
        *,
        stride: Size = (1, 1),
        dilation: Size = (1, 1),
        causal: bool = False,
        bias: bool = True,
    ) -> None:
        bands, frames = ((k - 1) * d + 1 - s for k, d, s in zip(kernel_size, dilation, stride, strict=True))
        self.sides = (bands // 2, 0 if causal else frames // 2)
        super().__init__(inputs, outputs, kernel_size, stride, self.sides, dilation, bias=bias)
        self.past = Past(frames) if causal and frames else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.past(x)
        if short.is_short(x):
            x = F.pad(x, (self.sides[1], self.sides[1], self.sides[0], self.sides[0]))
            return short.conv2d(x, self.weight, self.bias, self.stride, self.dilation)
        return super().forward(_channels_last(x))


class ConvTranspose1d(nn.ConvTranspose1d):
    """(B, C, L) -> (B, C', L * rate); ``kernel_size`` is the rate plus an even number, or any number if causal."""

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, rate: int, *, bias: bool = True, causal: bool = False
    ) -> None:
        overlap = kernel_size - rate
        self.sides = 0 if causal else overlap // 2
        super().__init__(inputs, outputs, kernel_size, rate, self.sides, bias=bias)
        self.overlap = Overlap(overlap) if causal and overlap else None

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        bias = self.bias if self.overlap is None else None  # if added before the overlap, it would count twice
        if torch.compiler.is_exporting():
            x = F.conv_transpose1d(x, self.weight, bias, self.stride, self.sides)
        else:
            x, weight = _as_2d(x), self.weight[:, :, None]
            x = F.conv_transpose2d(x, weight, bias, (1, *self.stride), (0, self.sides))[:, :, 0]
        if self.overlap is None:
            return x
        x = self.overlap(x)
        return x if self.bias is None else x + self.bias[:, None]


class ConvTranspose2d(nn.ConvTranspose2d):
    """(B, C, F, L) -> (B, C', F * s, L * s'); ``kernel_size`` of each axis as for ConvTranspose1d."""

    def __init__(
        self, inputs: int, outputs: int, kernel_size: Size, stride: Size, *, causal: bool = False, bias: bool = True
    ) -> None:
        bands, frames = (k - s for k, s in zip(kernel_size, stride, strict=True))
        self.sides = (bands // 2, 0 if causal else frames // 2)
        super().__init__(inputs, outputs, kernel_size, stride, self.sides, bias=bias)
        self.overlap = Overlap(frames) if causal and frames else None

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.overlap is None:
            return super().forward(_channels_last(x), output_size)
        x = self.overlap(F.conv_transpose2d(_channels_last(x), self.weight, None, self.stride, self.sides))
        return x if self.bias is None else x + self.bias[:, None, None]


class GRU(nn.GRU):
    """A unidirectional GRU over (B, L, C) that carries its hidden state: -> (B, L, hidden_size)."""

    def __init__(self, inputs: int, hidden_size: int, layers: int = 1) -> None:
        super().__init__(inputs, hidden_size, layers, batch_first=True)
        self.hidden = StreamState()

    def forward(self, input: Any, hx: Any = None) -> Any:
        torch_gru: Any = super()  # whose types differ from version to version
        x, last = torch_gru.forward(input, self.hidden.value if hx is None else hx)
        self.hidden.keep(last)
        return x


class LSTM(nn.LSTM):
    """A unidirectional LSTM over (B, L, C) that carries its hidden state and cell: -> (B, L, hidden_size)."""

    def __init__(self, inputs: int, hidden_size: int, layers: int = 1) -> None:
        super().__init__(inputs, hidden_size, layers, batch_first=True)
        self.state = StreamState()

    def forward(self, input: Any, hx: Any = None) -> Any:
        torch_lstm: Any = super()  # whose types differ from version to version
        state = self.state.value if hx is None else hx
        x, last = torch_lstm.forward(input, None if state is None else tuple(state))
        self.state.keep(torch.stack(last))
        return x


def _as_2d(x: Tensor) -> Tensor:
    """(B, C, L) -> (B, C, 1, L), because torch optimizes the memory layout of 2D convolutions only."""
    return _channels_last(x[:, :, None])


def _channels_last(x: Tensor) -> Tensor:
    """Use the channels-last layout on a CPU without gradient: forward is up to twice as fast, backward is slower."""
    faster = x.device.type == "cpu" and not torch.is_grad_enabled()
    return x.contiguous(memory_format=torch.channels_last) if faster else x


def weight_norm(module: M, std: float | None = None) -> M:
    """Reparametrize ``module.weight`` as direction times length, initialized from N(0, std) if ``std`` is given.

    Source: Salimans and Kingma, "Weight Normalization", 2016, equation 2.
    """
    if std is not None:
        nn.init.normal_(module.weight, 0.0, std)  # type: ignore[arg-type]
    hooks = set(module._load_state_dict_pre_hooks)
    parametrizations.weight_norm(module)
    # torch's hook for old names of weights is a local function, which prevents pickling of the module
    for key in set(module._load_state_dict_pre_hooks) - hooks:
        del module._load_state_dict_pre_hooks[key]
    return module


def fold_weight_norm(model: M) -> M:
    """Replace every normalized weight in ``model`` by the plain weight. Idempotent; returns ``model``."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
        if isinstance(module, Conv1d | Conv2d):
            module.weight.data = module.weight.data.movedim(1, -1).contiguous().movedim(-1, 1)  # fastest for `short`
    return model


def receptive_field(layers: Iterable[tuple[int, int]]) -> int:
    """Input steps on each side that centered stride-one convolutions use, from (kernel_size, dilation) pairs.

    >>> receptive_field([(3, 1), (3, 3), (3, 5)])
    9
    """
    return sum((kernel_size - 1) * dilation // 2 for kernel_size, dilation in layers)


def feature_maps(x: Tensor, hidden: Iterable[nn.Module], last: nn.Module, slope: float) -> list[Tensor]:
    """Feature maps of a discriminator for ``x`` (B, C, ...): hidden layers, after leaky ReLU, and flattened logits."""
    maps = []
    for layer in hidden:
        x = F.leaky_relu(layer(x), slope)
        maps.append(x)
    return [*maps, last(x).flatten(1)]
