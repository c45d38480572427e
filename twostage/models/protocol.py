"""The interface that windows, streams, exports, costs and trainings require of a model. It does not import PyTorch.

``models.enhancer`` has a module that implements most of it.
"""

from typing import TYPE_CHECKING, Protocol, TypeGuard

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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
    def device(self) -> "torch.device":
        """Where audio must be."""
        ...

    def __call__(self, audio: "Tensor", /) -> "Tensor": ...


class CausalEnhancer(Enhancer, Protocol):
    """An enhancer that uses past samples only. It is a module, and its leaves hold the state (``nn.streaming``)."""

    def forward_chunk(self, audio: "Tensor", /) -> "Tensor":
        """The next chunk of a stream, (B, inputs, T), T a multiple of ``stride`` -> (B, 1, T), ``delay`` samples late.

        Calls follow each other within ``nn.streaming.streaming``; outside, every call is the first of a stream.
        """
        ...


def is_causal(model: Enhancer) -> TypeGuard[CausalEnhancer]:
    """``model.causal``, in a way that a type checker understands."""
    return model.causal
