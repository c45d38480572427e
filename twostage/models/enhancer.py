"""Base classes of models: ``EnhancerModule`` implements most of ``Enhancer``, ``StreamingModule`` adds streaming.

The interface itself is declared in ``models.protocol``.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from twostage.models.protocol import CausalEnhancer as CausalEnhancer
from twostage.models.protocol import Enhancer as Enhancer
from twostage.models.protocol import is_causal as is_causal
from twostage.nn.layers import fold_weight_norm
from twostage.nn.streaming import offline


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
    """What the settings of every enhancer contain, in addition to their own fields."""

    @property
    def inputs(self) -> int:
        """Channels that the enhancer hears at once."""
        return 1


class EnhancerModule(nn.Module):
    """An enhancer as a module. Subclasses define ``config``, ``sample_rate`` and ``context``; the rest has defaults."""

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
    """A module whose forward is a stream of one chunk; ``forward_chunk`` returns audio ``delay`` samples late."""

    def forward(self, audio: Tensor) -> Tensor:
        return offline(self, audio)

    def forward_chunk(self, audio: Tensor) -> Tensor:
        """As ``CausalEnhancer.forward_chunk``; of one that is not causal, the chunk is all of the signal."""
        raise NotImplementedError(f"{type(self).__name__}.forward_chunk")
