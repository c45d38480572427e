"""Speech as it comes: pushed in pieces of any size, restored as soon as the model can."""

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from twostage.audio.sound_files import Audio
from twostage.inference.chunks import live
from twostage.models.enhancer import Enhancer
from twostage.utils.errors import AudioError, ConfigError

LOUDEST = 200.0  # dB of gain: more than from the quietest bit of 32 to full scale


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
        if np.abs(gain_db).max() > LOUDEST:
            raise ConfigError(f"gain_db is {gain_db}, must lie between -{LOUDEST:g} and {LOUDEST:g}")
        self.sample_rate, self.inputs = model.sample_rate, model.inputs
        if np.size(gain_db) not in (1, self.inputs):
            raise ConfigError(f"gain_db is {gain_db}, must be one number for each of {self.inputs} inputs, or for all")
        decibels = np.broadcast_to(np.asarray(gain_db, np.float32), self.inputs)
        self._gain = (10 ** (decibels[:, None] / 20)).astype(np.float32)
        self._work = live(model, seconds)
        self.latency = self._work.latency
        self._closed = False

    def push(self, samples: ArrayLike) -> Audio:
        """Samples (T,), or (2, T), T of any size, in; those that are ready now, (T',) float32, out.

        Raises AudioError for another shape, samples that are not finite, a stream that is closed; nothing is taken in.
        So does what comes out where it is not finite, of samples far beyond full scale.
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
        made = (np.concatenate([np.zeros(0, np.float32), *parts]) / self._gain[0]).astype(np.float32, copy=False)
        if not np.isfinite(made).all():
            raise AudioError("the model's output is not finite: samples this large are no sound")
        return made
