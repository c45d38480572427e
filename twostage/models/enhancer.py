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
from twostage.nn.layers import fold_weight_norm
from twostage.nn.streaming import offline


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """A context in which a module runs in evaluation mode; afterwards, every part is in its previous mode again."""
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    training_parts = [part for part in parts if part.training]
    for part in training_parts:
        part.training = False
    try:
        yield
    finally:
        for part in training_parts:
            part.training = True


class EnhancerConfig:
    """Base class of the settings of all enhancers."""

    @property
    def inputs(self) -> int:
        """The number of input channels."""
        return 1


class EnhancerModule(nn.Module):
    """An enhancer as a module. Subclasses define ``config``, ``sample_rate`` and ``context``; others have defaults."""

    config: Any  # a frozen dataclass: the settings that the module was built from

    @property
    def sample_rate(self) -> int:
        """The sample rate of input and output in Hz."""
        raise NotImplementedError(f"{type(self).__name__}.sample_rate")

    @property
    def context(self) -> float:
        """The largest number of samples on each side that an output sample depends on."""
        raise NotImplementedError(f"{type(self).__name__}.context")

    @property
    def inputs(self) -> int:
        """The number of input channels."""
        return 1

    @property
    def hop_length(self) -> int:
        """The length of the output is a multiple of this number of samples."""
        return 1

    @property
    def stride(self) -> int:
        """Windows of a longer signal, and chunks of a stream, begin at multiples of this number of samples."""
        return self.hop_length

    @property
    def causal(self) -> bool:
        """Whether it processes a stream chunk by chunk."""
        return False

    @property
    def delay(self) -> int:
        """The number of samples by which the output of ``forward_chunk`` is late."""
        return 0

    @property
    def latency(self) -> float:
        """The number of samples between an input sample and the output sample of the same time, in a stream."""
        return self.stride + (self.delay if self.causal else self.context)

    @property
    def device(self) -> torch.device:
        """The device of its weights and buffers; the CPU if it has none."""
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    def prepare(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Measure statistics on pairs of degraded and clean audio before the first step; none by default."""

    def terms(self, degraded: Tensor, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Enhanced audio, and the system's own loss terms by name, which ``weights.own`` weights; none by default."""
        return self(degraded), {}

    def fold(self) -> Self:
        """Fold weight normalization away for inference; the output stays the same."""
        return fold_weight_norm(self)


class StreamingModule(EnhancerModule):
    """A module whose ``forward`` is a stream of one chunk; ``forward_chunk`` returns audio ``delay`` samples late."""

    def forward(self, audio: Tensor) -> Tensor:
        return offline(self, audio)

    def forward_chunk(self, audio: Tensor) -> Tensor:
        """As ``CausalEnhancer.forward_chunk``. If the module is not causal, the chunk is the whole signal."""
        raise NotImplementedError(f"{type(self).__name__}.forward_chunk")
