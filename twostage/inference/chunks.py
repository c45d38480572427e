"""A stream of sound through an enhancer, equal to the output for the whole signal however it is cut into chunks.

A causal model carries its state from chunk to chunk. Any other model runs in windows, with the context that they need.
"""

from collections.abc import Iterable, Iterator
from math import ceil, isfinite
from typing import Protocol

import numpy as np

from twostage.audio.continuation import continued
from twostage.audio.types import Audio
from twostage.inference.runners import chunk_runner, window_runner
from twostage.inference.windows import Window, Windower, windows
from twostage.models.protocol import Enhancer
from twostage.utils.errors import ConfigError

CHUNK_SECONDS = 10.0  # seconds that a causal model takes at once, however much is pushed: bounds the memory
LONGEST = 1e9  # seconds of a window that is to hold all of a signal


class Channel(Protocol):
    """One signal through a model: (inputs, T) of any T in, (T',) out, at most ``latency`` samples late."""

    latency: int

    def push(self, audio: Audio) -> Iterator[Audio]:
        """Process more of the signal; returns what is ready, in parts."""
        ...

    def flush(self) -> Iterator[Audio]:
        """End the signal; returns the rest."""
        ...

    def reset(self) -> None:
        """Discard what was pushed: the next push begins another signal."""
        ...


class ChunkedChannel:
    """A causal model, which is fed multiples of its stride. It waits for one stride at most."""

    def __init__(self, model: Enhancer) -> None:
        self._step = chunk_runner(model)
        self._stride, self._delay, self._inputs = model.stride, model.delay, model.inputs
        self._longest = ceil(CHUNK_SECONDS * model.sample_rate / model.stride) * model.stride
        self.latency = model.stride + model.delay
        self.reset()

    def reset(self) -> None:
        self._step.reset()
        self._pending = np.zeros((self._inputs, 0), np.float32)
        # what the signal's end is continued with
        self._past = np.zeros((self._inputs, self._delay + self._stride), np.float32)
        self._early = self._delay  # samples still to come that are of before the signal
        self._owed = 0  # samples that went in and have not come out

    def push(self, audio: Audio) -> Iterator[Audio]:
        known = self._past.shape[1]
        self._owed += audio.shape[1]
        self._past = np.concatenate([self._past, audio[:, -known:]], axis=1, dtype=np.float32)[:, -known:]
        pending = np.concatenate([self._pending, audio], axis=1)
        ready = pending.shape[1] // self._stride * self._stride
        self._pending = pending[:, ready:].copy()
        for start in range(0, ready, self._longest):
            yield self._forward(pending[:, start : min(start + self._longest, ready)])

    def flush(self) -> Iterator[Audio]:
        if self._owed:
            missing = self._delay + -(self._pending.shape[1] + self._delay) % self._stride
            owed, known = self._owed, self._past.shape[1]
            rest = np.concatenate([*self.push(continued(self._past, missing)[:, known:])])
            yield rest[:owed]

    def _forward(self, chunk: Audio) -> Audio:
        out = self._step(chunk)
        dropped = min(self._early, len(out))
        self._early -= dropped
        self._owed -= len(out) - dropped
        return out[dropped:]


class WindowedChannel:
    """A model that looks ahead, run on windows of ``keep`` samples with their context. It waits for both.

    ``keep`` is a multiple of the stride. The first window keeps ``first`` samples, if that is given. ``batch`` windows
    are processed by the model at once, which may change the last bits.
    """

    def __init__(self, model: Enhancer, keep: int, context: int, *, first: int | None = None, batch: int = 1) -> None:
        self._model, self._keep, self._context, self._first, self._batch = model, keep, context, first, batch
        self.latency = keep + context + 1
        self.reset()

    def reset(self) -> None:
        self._windower, self._run = Windower(self._keep, self._context, self._first), window_runner(self._model)
        self._alike: list[Window] = []  # windows of one length and place, less than a batch

    def push(self, audio: Audio) -> Iterator[Audio]:
        for window in self._windower.push(audio):
            yield from self._add(window)

    def flush(self) -> Iterator[Audio]:
        for window in self._windower.flush():
            yield from self._add(window)
        yield from self._forward()

    def _add(self, window: Window) -> Iterator[Audio]:
        if self._alike and _shape(window) != _shape(self._alike[0]):
            yield from self._forward()
        self._alike.append(window)
        if len(self._alike) >= self._batch:
            yield from self._forward()

    def _forward(self) -> Iterator[Audio]:
        if not self._alike:
            return
        run = self._run if self._batch == 1 else window_runner(self._model)  # what is made at once hands nothing on
        stacked = np.stack([window.audio for window in self._alike])
        skip, keep = self._alike[0].skip, self._alike[0].keep
        self._alike = []
        yield from run(stacked, skip, keep)


def _shape(window: Window) -> tuple[object, ...]:
    return window.audio.shape, window.skip, window.keep


def live(model: Enhancer, seconds: float) -> Channel:
    """A channel for a signal that arrives sample by sample: windows keep ``seconds``, with the least possible delay.

    Raises ConfigError if the model needs all of the signal at once.
    """
    if model.causal:
        return ChunkedChannel(model)
    if not isfinite(model.context):
        raise ConfigError("this model needs all of the signal at once (it also reads it backwards): it cannot stream")
    return WindowedChannel(model, _whole_strides(model, seconds), _context(model))


def _recorded(model: Enhancer, seconds: float, batch: int) -> Channel:
    """A channel for a complete signal. All windows but the last have the same size, so that memory is reused."""
    if model.causal:
        return ChunkedChannel(model)
    keep = _whole_strides(model, seconds if isfinite(model.context) else LONGEST)
    context = _context(model) if isfinite(model.context) else 0
    return WindowedChannel(model, keep, context, first=keep + context, batch=batch)


def enhance(
    model: Enhancer, blocks: Iterable[Audio], seconds: float, channels: Iterable[int], batch: int = 1
) -> Iterator[tuple[Audio, Audio]]:
    """Yield (input, enhanced) blocks (C, T) of a stream at the model's rate, each of ``channels`` separately.

    For a model with several inputs, as many channels of the stream form one signal, whose input is the first of them.
    Chunks and windows have ``seconds``, or the whole signal if that or the context of a model that looks ahead is
    infinite. All other channels are output as zeros. ``batch`` windows are processed at once, which may change the last
    bits.
    """
    seconds = min(seconds, LONGEST)
    work = {place: _recorded(model, seconds, batch) for place in channels}
    waiting: list[Audio] = []
    at_once = seconds if model.causal or isfinite(model.context) else LONGEST
    for chunk in windows(blocks, _whole_strides(model, at_once), 0):
        grouped = chunk.audio.reshape(-1, model.inputs, chunk.audio.shape[1])  # one signal for each group of inputs
        waiting.append(grouped[:, 0])
        yield from _done(waiting, {place: [*channel.push(grouped[place])] for place, channel in work.items()})
    if waiting:
        yield from _done(waiting, {place: [*channel.flush()] for place, channel in work.items()})


def _done(waiting: list[Audio], outputs: dict[int, list[Audio]]) -> Iterator[tuple[Audio, Audio]]:
    """Take from the input that is ``waiting`` what has come out, as (input, enhanced), if anything has."""
    pending = np.concatenate(waiting, axis=1)
    ready = min((sum(map(len, parts)) for parts in outputs.values()), default=pending.shape[1])
    enhanced = np.zeros((len(pending), ready), np.float32)
    for channel, parts in outputs.items():
        enhanced[channel] = np.concatenate([enhanced[channel, :0], *parts])
    waiting[:] = [pending[:, ready:]]
    if ready:
        yield pending[:, :ready], enhanced


def _context(model: Enhancer) -> int:
    """The context in samples, a multiple of the stride."""
    return ceil(model.context / model.stride) * model.stride


def _whole_strides(model: Enhancer, seconds: float) -> int:
    """A number of samples that is a multiple of the stride, at least one."""
    return max(1, round(seconds * model.sample_rate / model.stride)) * model.stride
