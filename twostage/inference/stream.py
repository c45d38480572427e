"""Streaming: speech is pushed in chunks of any size and restored with the latency of the model."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from math import isfinite
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from twostage.audio.highpass import CausalHighPass, ZeroPhaseHighPass
from twostage.audio.types import Audio
from twostage.inference.arrays import to_samples
from twostage.inference.chunks import live
from twostage.models.protocol import Enhancer
from twostage.utils.errors import AudioError, ConfigError

CHUNK = 0.1  # seconds that the zero-phase high-pass filters at once, for a model that looks ahead
LOUDEST = 200.0  # dB: maximum gain, more than the range of 32-bit samples


class Stream:
    """Restores one channel of speech at ``model.sample_rate``; the output is ``latency`` samples late.

    For a model with two inputs, bone and air, the pushed chunks have the shape (2, T).

    Everything below speech (an offset, a drift, movement) is removed first, unless ``audio.highpass`` has already
    removed it (``highpassed``). The concatenated output of ``push`` and ``flush`` is as long as what was pushed and
    equals the output of ``model`` for the whole of that signal. A causal model carries its state from chunk to chunk.
    Any other model runs in windows that keep ``seconds`` each; it waits for the context that they need on both sides.
    ``gain_db`` is applied to the input and removed from the output, because models are trained on speech at an active
    level of -26 dBFS. For two inputs, it can be two values, one for each channel; the output is then scaled like the
    first channel.

    Streams do not affect each other or the model. A ``with`` block closes the stream at its end.

    Raises:
        ConfigError: the model needs all of the signal at once, or a setting is out of range.
    """

    def __init__(
        self,
        model: Enhancer,
        *,
        seconds: float = 1.0,
        gain_db: float | Sequence[float] = 0.0,
        highpassed: bool = False,
    ) -> None:
        if not (isfinite(seconds) and seconds > 0 and np.isfinite(gain_db).all()):
            raise ConfigError(f"seconds is {seconds}, must be positive; gain_db is {gain_db}, must be finite")
        if np.abs(gain_db).max() > LOUDEST:
            raise ConfigError(f"gain_db is {gain_db}, must lie between -{LOUDEST:g} and {LOUDEST:g}")
        self.sample_rate, self.inputs = model.sample_rate, model.inputs
        if np.size(gain_db) not in (1, self.inputs):
            raise ConfigError(f"gain_db is {gain_db}, must be one number for each of {self.inputs} inputs, or for all")
        decibels = np.broadcast_to(np.asarray(gain_db, np.float32), self.inputs)
        self._gain = (10 ** (decibels[:, None] / 20)).astype(np.float32)
        self._work = live(model, seconds)
        self._high = _HighPass(model, highpassed)
        self.latency = self._work.latency + self._high.latency
        self._give_back: Callable[[Audio], Any] = lambda out: out
        self._closed = False

    def push(self, samples: Any) -> Any:
        """Push samples (T,), or (2, T), of any length T; returns the samples that are ready now, (T',).

        Arrays and tensors of any dtype that ``restore`` takes are accepted, integers at their full scale. The output,
        also of ``flush``, has the type of what was pushed last. Raises AudioError for another shape or dtype, for
        samples that are not finite, and for a closed stream; nothing is pushed in these cases. It is also raised if the
        output is not finite, for samples far beyond full scale.
        """
        if self._closed:
            raise AudioError("the stream is closed")
        converted = to_samples(samples, name="samples", wanted=self._wanted)
        audio = np.atleast_2d(converted.audio)
        if not (np.abs(audio) <= np.finfo(np.float32).max).all():
            raise AudioError("samples are NaN or infinite")
        self._give_back = converted.give_back
        return converted.give_back(self._out(self._work.push(self._high.push(audio) * self._gain)))

    def flush(self) -> Any:
        """End the signal and return the remaining output, (T',); the next push begins another signal."""
        filtered = self._high.flush() * self._gain
        remaining = self._out(chain(self._work.push(filtered), self._work.flush()))
        self.reset()
        return self._give_back(remaining)

    def reset(self) -> None:
        """Discard what was pushed and has not been returned; the next push begins another signal."""
        self._work.reset()
        self._high.reset()

    def _wanted(self, shape: tuple[int, ...]) -> str:
        """A description of the expected shape if this one is wrong; empty otherwise."""
        if self.inputs == 1:
            return "" if len(shape) == 1 else "(T,): the model takes one channel"
        return "" if len(shape) == 2 and shape[0] == self.inputs else f"({self.inputs}, T): bone and air"

    def close(self) -> None:
        """Release the state; nothing can be pushed any more."""
        self.reset()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _out(self, parts: Iterator[Audio]) -> Audio:
        output = np.concatenate([np.zeros(0, np.float32), *parts])
        output = (output / self._gain[0]).astype(np.float32, copy=False)
        if not np.isfinite(output).all():
            raise AudioError("the model's output is not finite: the samples are far beyond full scale")
        return output


class _HighPass:
    """Removes everything below speech like ``restore`` with the same model; does nothing if it was removed already."""

    def __init__(self, model: Enhancer, already_filtered: bool) -> None:
        self._already_filtered, self._causal = already_filtered, model.causal
        self._inputs, self._sample_rate = model.inputs, model.sample_rate
        self.reset()
        self.latency = self._filter.latency if isinstance(self._filter, ZeroPhaseHighPass) else 0

    def reset(self) -> None:
        self._filter: CausalHighPass | ZeroPhaseHighPass | None = None
        if not self._already_filtered and self._causal:
            self._filter = CausalHighPass(self._inputs, self._sample_rate)
        elif not self._already_filtered:
            self._filter = ZeroPhaseHighPass(self._inputs, self._sample_rate, round(CHUNK * self._sample_rate))

    def push(self, audio: NDArray[Any]) -> Audio:
        return audio.astype(np.float32) if self._filter is None else self._filter.push(audio)

    def flush(self) -> Audio:
        if isinstance(self._filter, ZeroPhaseHighPass):
            return self._filter.flush()
        return np.zeros((self._inputs, 0), np.float32)
