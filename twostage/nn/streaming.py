"""What a causal layer carries from one piece of a signal to the next; the whole at once is the stream's only piece.

Leaves alone hold state. A causal convolution is ``Past`` and a convolution without padding; a transposed one ends in
``Overlap``. Time is the last axis everywhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Carry(nn.Module):
    """A leaf that keeps ``carried`` for the next call within ``streaming``; outside, every call is the first."""

    carried: Any  # a tensor, or several by name; None at the start

    def __init__(self) -> None:
        super().__init__()
        self.carried, self.streaming = None, False

    def keep(self, value: Any) -> None:
        if self.streaming:
            self.carried = value


class Past(Carry):
    """The ``steps`` before what comes in, zeros at the start, and what comes in: (..., L) -> (..., steps + L)."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        past = x.new_zeros(*x.shape[:-1], self.steps) if self.carried is None else self.carried
        x = torch.cat((past, x), -1)
        self.keep(x.narrow(-1, x.shape[-1] - self.steps, self.steps))
        return x

    def extra_repr(self) -> str:
        return str(self.steps)


class Late(Past):
    """What comes in, ``steps`` later, zeros at the start: (..., L) -> (..., L)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., : x.shape[-1]]


class Overlap(Carry):
    """Adds what hung over the end of the last piece, holds back what hangs over this: (..., L + steps) -> (..., L)."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1] - self.steps
        if self.carried is not None:  # it may hang over a short piece's end as well
            x = x + F.pad(self.carried, (0, length))
        self.keep(x[..., length:])
        return x[..., :length]

    def extra_repr(self) -> str:
        return str(self.steps)


def carries(model: nn.Module) -> dict[str, Carry]:
    """Every leaf of ``model`` that holds state, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Carry)}


def forget(model: nn.Module) -> None:
    """Go back to the start of a stream."""
    for leaf in carries(model).values():
        leaf.carried = None


class Delayed(Protocol):
    """A model that streams, as far as ``offline`` needs to know it; lengths in samples."""

    @property
    def hop_length(self) -> int: ...

    @property
    def stride(self) -> int: ...

    @property
    def delay(self) -> int: ...

    def late(self, audio: Tensor, /) -> Tensor: ...


def with_tail(model: Delayed, audio: Tensor) -> Tensor:
    """A signal (..., T) and the silence with which the last sample of its last whole hop comes out: whole strides."""
    length, tail = audio.shape[-1] // model.hop_length * model.hop_length, model.delay + model.stride - 1
    return F.pad(audio, (0, tail))[..., : (length + tail) // model.stride * model.stride]


def offline(model: Delayed, audio: Tensor) -> Tensor:
    """What ``late`` makes of all of a signal, in time: (B, C, T) -> (B, 1, T // hop_length * hop_length).

    ``late`` takes multiples of ``stride`` and gives as many samples, ``delay`` later.
    """
    length = audio.shape[-1] // model.hop_length * model.hop_length
    return model.late(with_tail(model, audio))[..., model.delay : model.delay + length]


@contextmanager
def streaming(model: nn.Module) -> Iterator[None]:
    """Within, calls of ``model`` are pieces of one signal, from its start on.

    Under ``torch.inference_mode`` or ``no_grad``: else the graph of every piece hangs on the next.
    """
    forget(model)
    for leaf in carries(model).values():
        leaf.streaming = True
    try:
        yield
    finally:
        for leaf in carries(model).values():
            leaf.streaming = False
        forget(model)
