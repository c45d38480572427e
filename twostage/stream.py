"""Speech as it comes: pushed in pieces of any size, restored as soon as the model can."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from math import ceil, isfinite
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from twostage.audio import Audio
from twostage.errors import AudioError, ConfigError
from twostage.nn.streaming import forget, streaming
from twostage.windows import Cutter, Enhancer, Window, device_of, forward, inputs_of

PIECE = 10.0  # seconds that a causal model takes at once, however much is pushed: bounds the memory


class Stream:
    """One channel of speech at ``model.sample_rate``, which comes out ``latency`` samples after it went in.

    A model of two inputs makes it of two, bone and air: what is pushed is (2, T) then.

    All that ``push`` and ``flush`` return, joined, is as long as what was pushed and equals ``model`` of the whole.
    A causal model carries its state from piece to piece; any other runs in windows that keep ``seconds`` each, with
    the context that they need on both sides, for which it waits. ``gain_db`` is applied to what goes in and taken back
    from what comes out: models are trained on speech at an active level of -26 dBFS. Two of them, for two inputs, are
    each channel's; what comes out is as the first.

    Streams do not disturb each other, nor the model. A ``with`` block closes one at its end.

    Raises:
        ConfigError: the model needs all of the signal at once, or a setting is out of range.
    """

    def __init__(self, model: Enhancer, *, seconds: float = 1.0, gain_db: float | Sequence[float] = 0.0) -> None:
        if not (isfinite(seconds) and seconds > 0 and np.isfinite(gain_db).all()):
            raise ConfigError(f"seconds is {seconds}, must be positive; gain_db is {gain_db}, must be finite")
        self.sample_rate, self.inputs = model.sample_rate, inputs_of(model)
        if np.size(gain_db) not in (1, self.inputs):
            raise ConfigError(f"gain_db is {gain_db}, must be one number for each of {self.inputs} inputs, or for all")
        decibels = np.broadcast_to(np.asarray(gain_db, np.float32), self.inputs)
        self._gain = (10 ** (decibels[:, None] / 20)).astype(np.float32)
        self._work = _Pieces(model) if getattr(model, "causal", False) else _Windows(model, seconds)
        self.latency = self._work.latency
        self._closed = False

    def push(self, samples: ArrayLike) -> Audio:
        """Samples (T,), or (2, T), T of any size, in; those that are ready now, (T',) float32, out.

        Raises AudioError for another shape, samples that are not finite, a stream that is closed; nothing is taken in.
        """
        if self._closed:
            raise AudioError("the stream is closed")
        audio = np.asarray(samples, np.float32)
        if self.inputs == 1 and audio.ndim != 1:
            raise AudioError(f"samples have shape {audio.shape}, wanted (T,): a stream is of one channel")
        if self.inputs > 1 and (audio.ndim != 2 or len(audio) != self.inputs):
            raise AudioError(f"samples have shape {audio.shape}, wanted ({self.inputs}, T): bone and air")
        if not np.isfinite(audio).all():
            raise AudioError("samples are NaN or infinite")
        return self._out(self._work.push(np.atleast_2d(audio) * self._gain))

    def flush(self) -> Audio:
        """The rest, (T',): the signal ends here; the next push begins another."""
        rest = self._out(self._work.flush())
        self.reset()
        return rest

    def reset(self) -> None:
        """Forget what was pushed and has not come out; the next push begins another signal."""
        self._work.reset()

    def close(self) -> None:
        """Let the state go; nothing can be pushed any more."""
        self.reset()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _out(self, parts: Iterator[Audio]) -> Audio:
        return (np.concatenate([np.zeros(0, np.float32), *parts]) / self._gain[0]).astype(np.float32, copy=False)


class _Pieces:
    """A causal model, fed multiples of its stride."""

    def __init__(self, model: Any) -> None:
        self._model: Any = _twin(model)
        self._stride, self._delay = model.stride, model.delay
        self._device, self._inputs = device_of(model), inputs_of(model)
        self._longest = ceil(PIECE * model.sample_rate / model.stride) * model.stride
        self.latency = model.stride + model.delay
        self._open = ExitStack()
        self._open.enter_context(streaming(self._model))
        self.reset()

    def reset(self) -> None:
        forget(self._model)
        self._pending = np.zeros((self._inputs, 0), np.float32)
        self._late = self._delay  # samples still to come that are of before the signal
        self._owed = 0  # samples that went in and have not come out

    def push(self, audio: Audio) -> Iterator[Audio]:
        self._owed += audio.shape[1]
        pending = np.concatenate([self._pending, audio], axis=1)
        ready = pending.shape[1] // self._stride * self._stride
        self._pending = pending[:, ready:].copy()
        for start in range(0, ready, self._longest):
            yield self._step(pending[:, start : min(start + self._longest, ready)])

    def flush(self) -> Iterator[Audio]:
        if self._owed:
            missing = self._delay + -(self._pending.shape[1] + self._delay) % self._stride
            owed = self._owed
            rest = np.concatenate([*self.push(np.zeros((self._inputs, missing), np.float32))])
            yield rest[:owed]

    def _step(self, piece: Audio) -> Audio:
        with torch.inference_mode():
            out = self._model.late(torch.from_numpy(piece)[None].to(self._device))[0, 0].cpu().numpy()
        early = min(self._late, len(out))
        self._late -= early
        self._owed -= len(out) - early
        return out[early:]


class _Windows:
    """A model that looks ahead, run on windows with their context."""

    def __init__(self, model: Enhancer, seconds: float) -> None:
        if not isfinite(model.context):
            raise ConfigError(
                "this model needs all of the signal at once (it also reads it backwards): it cannot stream"
            )
        stride = model.stride
        self._model = model
        self._keep = max(1, round(seconds * model.sample_rate / stride)) * stride
        self._context = ceil(model.context / stride) * stride
        self.latency = self._keep + self._context + 1
        self.reset()

    def reset(self) -> None:
        self._cutter = Cutter(self._keep, self._context)

    def push(self, audio: Audio) -> Iterator[Audio]:
        return map(self._forward, self._cutter.push(audio))

    def flush(self) -> Iterator[Audio]:
        return map(self._forward, self._cutter.flush())

    def _forward(self, window: Window) -> Audio:
        return forward(self._model, window.audio, window.skip, window.keep)


def _twin(model: nn.Module) -> nn.Module:
    """A model with state of its own and the same weights, not copies of them."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
