"""The one interface of every model: what windows, streams, exports, costs and trainings ask of it, and no more.

``Enhancer`` is what they ask, ``EnhancerModule`` a module that answers most of it, ``StreamingModule`` one whose
forward is the only chunk of its stream.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, Self, TypeGuard

import torch
from torch import Tensor, nn

from twostage.nn.layers import fold_weight_norm
from twostage.nn.streaming import offline


class Enhancer(Protocol):
    """Degraded audio (B, inputs, T) -> enhanced audio (B, 1, T // hop_length * hop_length), both at ``sample_rate``.

    Lengths are in samples. Whatever has all of these is an enhancer; ``EnhancerModule`` gives a module most of them.
    """

    @property
    def sample_rate(self) -> int:
        """Hz, of what comes in and of what goes out."""
        ...

    @property
    def inputs(self) -> int:
        """Channels that are heard at once: 1, or 2, the microphone on the body first and the one in the air second."""
        ...

    @property
    def hop_length(self) -> int:
        """What goes out is a multiple of it."""
        ...

    @property
    def stride(self) -> int:
        """A window that begins at a multiple of it gives what the whole signal gives there; a multiple of the hop."""
        ...

    @property
    def context(self) -> float:
        """An output sample depends on at most so many input samples on each side; infinite: on all of them."""
        ...

    @property
    def causal(self) -> bool:
        """Whether it takes a stream chunk by chunk: a ``CausalEnhancer``."""
        ...

    @property
    def delay(self) -> int:
        """Samples by which what a causal one makes of a chunk is late; what it makes of the whole is not."""
        ...

    @property
    def latency(self) -> float:
        """Samples that an output sample waits for input, from its own on."""
        ...

    @property
    def device(self) -> torch.device:
        """Where audio must be."""
        ...

    def __call__(self, audio: Tensor, /) -> Tensor: ...


class CausalEnhancer(Enhancer, Protocol):
    """An enhancer that sees the past alone. It is a module, whose leaves hold the state (``nn.streaming``)."""

    def forward_chunk(self, audio: Tensor, /) -> Tensor:
        """The next chunk of a stream, (B, inputs, T), T a multiple of ``stride`` -> (B, 1, T), ``delay`` samples late.

        Calls follow each other within ``nn.streaming.streaming``; outside, every call is the first of a stream.
        """
        ...


def is_causal(model: Enhancer) -> TypeGuard[CausalEnhancer]:
    """``model.causal``, in a way that a type checker understands."""
    return model.causal


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Within, a module runs as for use, whatever mode a training left it or its parts in; then as it was."""
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    trained = [part for part in parts if part.training]
    for part in trained:
        part.training = False
    try:
        yield
    finally:
        for part in trained:
            part.training = True


class EnhancerConfig:
    """What the settings of every enhancer say, besides their own fields."""

    @property
    def inputs(self) -> int:
        """Channels that the enhancer hears at once."""
        return 1


class EnhancerModule(nn.Module):
    """A module that is an enhancer. Its own are ``config``, ``sample_rate`` and ``context``; the rest has defaults."""

    config: Any  # a frozen dataclass; what the module was built from

    @property
    def sample_rate(self) -> int:
        """Hz, of what comes in and of what goes out."""
        raise NotImplementedError(f"{type(self).__name__}.sample_rate")

    @property
    def context(self) -> float:
        """Samples that an output sample depends on, on each side, at most."""
        raise NotImplementedError(f"{type(self).__name__}.context")

    @property
    def inputs(self) -> int:
        """Channels that are heard at once."""
        return 1

    @property
    def hop_length(self) -> int:
        """Samples that what goes out is a multiple of."""
        return 1

    @property
    def stride(self) -> int:
        """Samples that a window of a longer signal, or a chunk of a stream, begins at a multiple of."""
        return self.hop_length

    @property
    def causal(self) -> bool:
        """Whether it takes a stream chunk by chunk."""
        return False

    @property
    def delay(self) -> int:
        """Samples by which what it makes of a chunk is late."""
        return 0

    @property
    def latency(self) -> float:
        """Samples that an output sample waits for, from its own on."""
        return self.stride + (self.delay if self.causal else self.context)

    @property
    def device(self) -> torch.device:
        """That of its weights and buffers; the CPU if it has none."""
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    def prepare(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Measure what is to be measured on pairs of degraded and clean audio before the first step: here nothing."""

    def terms(self, degraded: Tensor, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Enhanced audio, and loss terms of the system's own by name, which ``weights.own`` weighs: here none."""
        return self(degraded), {}

    def fold(self) -> Self:
        """Fold weight normalization away for inference; the output stays the same."""
        return fold_weight_norm(self)


class StreamingModule(EnhancerModule):
    """A module whose forward is the only chunk of its stream: ``forward_chunk`` gives audio ``delay`` samples late."""

    def forward(self, audio: Tensor) -> Tensor:
        return offline(self, audio)

    def forward_chunk(self, audio: Tensor) -> Tensor:
        """As ``CausalEnhancer.forward_chunk``; of one that is not causal, the chunk is all of the signal."""
        raise NotImplementedError(f"{type(self).__name__}.forward_chunk")
