"""The interface that windows, streams, exports, costs and trainings require of a model. It does not import PyTorch.

``models.enhancer`` has a module that implements most of it.
"""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Enhancer(Protocol):
    """Degraded audio (B, inputs, T) -> enhanced audio (B, 1, T // hop_length * hop_length), both at ``sample_rate``.

    Lengths are in samples. Any object with these members is an enhancer; ``EnhancerModule`` implements most of them.
    """

    @property
    def sample_rate(self) -> int:
        """The sample rate of input and output in Hz."""
        ...

    @property
    def inputs(self) -> int:
        """The number of input channels: 1, or 2, the body-conduction microphone first and the air microphone second."""
        ...

    @property
    def hop_length(self) -> int:
        """The length of the output is a multiple of it."""
        ...

    @property
    def stride(self) -> int:
        """Windows that begin at multiples of it have the output of the whole signal; a multiple of ``hop_length``."""
        ...

    @property
    def context(self) -> float:
        """The largest number of input samples on each side that an output sample depends on; infinite: all of them."""
        ...

    @property
    def causal(self) -> bool:
        """Whether it processes a stream chunk by chunk: a ``CausalEnhancer``, or the ONNX file of a step."""
        ...

    @property
    def delay(self) -> int:
        """The number of samples by which the output of ``forward_chunk`` is late; the output of ``forward`` is not."""
        ...

    @property
    def latency(self) -> float:
        """The number of samples between an input sample and the output sample of the same time, in a stream."""
        ...

    @property
    def device(self) -> "torch.device":
        """The device on which audio must be."""
        ...

    def __call__(self, audio: "Tensor", /) -> "Tensor": ...


class CausalEnhancer(Enhancer, Protocol):
    """An enhancer that uses past samples only: a module whose submodules hold the state (``nn.streaming``)."""

    def forward_chunk(self, audio: "Tensor", /) -> "Tensor":
        """Process the next chunk, (B, inputs, T), T a multiple of ``stride`` -> (B, 1, T), ``delay`` samples late.

        Within ``nn.streaming.streaming``, calls continue one stream; outside of it, every call is the first of a
        stream.
        """
        ...
