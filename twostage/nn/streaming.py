"""State that causal layers keep from one chunk of a signal to the next. Offline processing is a stream of one chunk.

Only leaf modules hold state. A causal convolution is ``Past`` followed by a convolution without padding; a transposed
convolution ends in ``Overlap``. Time is the last axis everywhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FADE = 512  # samples over which the value of the last sample fades out after the end


class StreamState(nn.Module):
    """A leaf that keeps ``value`` for the next call within ``streaming``; outside of it, every call starts anew."""

    value: Any  # a tensor; None at the start

    def __init__(self) -> None:
        super().__init__()
        self.value, self.streaming = None, False

    def keep(self, value: Any) -> None:
        if self.streaming:
            self.value = value


class Past(StreamState):
    """Prepends the last ``steps`` steps of the previous chunks, or zeros at the start: (..., L) -> (..., steps + L)."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        past = x.new_zeros(*x.shape[:-1], self.steps) if self.value is None else self.value
        x = torch.cat((past, x), -1)
        self.keep(x.narrow(-1, x.shape[-1] - self.steps, self.steps))
        return x

    def extra_repr(self) -> str:
        return str(self.steps)


class DelayLine(Past):
    """Delays a stream by ``steps`` steps, with zeros at the start: (..., L) -> (..., L)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., : x.shape[-1]]


class Overlap(StreamState):
    """Adds the tail of the previous chunk and keeps that of this chunk: (..., L + steps) -> (..., L)."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1] - self.steps
        if self.value is not None:  # for a short chunk, it can be longer than the chunk
            x = x + F.pad(self.value, (0, length))
        self.keep(x[..., length:])
        return x[..., :length]

    def extra_repr(self) -> str:
        return str(self.steps)


def stream_states(model: nn.Module) -> dict[str, StreamState]:
    """All modules in ``model`` that hold state, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, StreamState)}


def reset_streaming(model: nn.Module) -> None:
    """Return to the start of a stream."""
    for leaf in stream_states(model).values():
        leaf.value = None


class Delayed(Protocol):
    """The part of a streaming model that ``offline`` needs. Lengths are in samples."""

    @property
    def hop_length(self) -> int: ...

    @property
    def stride(self) -> int: ...

    @property
    def delay(self) -> int: ...

    def forward_chunk(self, audio: Tensor, /) -> Tensor: ...


def continued(audio: Tensor, steps: int) -> Tensor:
    """Extend a signal smoothly beyond its end: (..., T) -> (..., T + steps).

    Many recordings end in the middle of speech. Zeros after such an end are a step with energy at all frequencies. The
    frames that contain it contribute to the output before the end, where a model that restores high bands would produce
    a click. The extension is therefore the past, reflected at the last sample in time and sign, so that level and slope
    are continuous; if the signal is shorter than ``steps``, zeros are taken to precede it. The values do not depend on
    ``steps``.

    Source: Gustafsson, "Determining the initial states in forward-backward filtering", IEEE Transactions on Signal
    Processing 1996. There the last sample is added with constant weight; here it fades out, to leave no offset.

    >>> continued(torch.tensor([3.0, 1.5, 2.0]), 3).round(decimals=2).tolist()
    [3.0, 1.5, 2.0, 2.5, 1.0, 4.0]
    """
    past = F.pad(audio, (steps + 1, 0)).narrow(-1, audio.shape[-1], steps + 1)
    fade = (torch.arange(1, steps + 1, device=audio.device).clamp(max=FADE) * (torch.pi / FADE)).cos() + 1
    return torch.cat((audio, fade.to(audio.dtype) * past[..., -1:] - past[..., :-1].flip(-1)), -1)


def tail_length(model: Delayed) -> int:
    """The number of samples of ``continued`` after which the last output of a causal model is complete."""
    return model.delay + model.stride - 1


def with_tail(model: Delayed, audio: Tensor) -> Tensor:
    """Extend a signal (..., T) until the output of its last complete hop is available, to a multiple of the stride."""
    length = audio.shape[-1] // model.hop_length * model.hop_length
    needed = (length + tail_length(model)) // model.stride * model.stride
    return continued(audio, tail_length(model))[..., :needed]


def offline(model: Delayed, audio: Tensor) -> Tensor:
    """Run ``forward_chunk`` on a whole signal, without its delay: (B, C, T) -> (B, 1, T // hop_length * hop_length).

    ``forward_chunk`` takes multiples of ``stride`` and returns as many samples, ``delay`` late.
    """
    length = audio.shape[-1] // model.hop_length * model.hop_length
    return model.forward_chunk(with_tail(model, audio))[..., model.delay : model.delay + length]


@contextmanager
def streaming(model: nn.Module) -> Iterator[None]:
    """A context in which calls of ``model`` are chunks of one signal, from its start on.

    Use it under ``torch.inference_mode`` or ``no_grad``: otherwise the graph of every chunk is connected to the next.
    """
    reset_streaming(model)
    for leaf in stream_states(model).values():
        leaf.streaming = True
    try:
        yield
    finally:
        for leaf in stream_states(model).values():
            leaf.streaming = False
        reset_streaming(model)
