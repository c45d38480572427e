"""Runs an enhancer on a stream of sound; the output equals that for the whole signal, whatever the chunks.

A causal model carries its state from chunk to chunk. Any other model runs in windows with the context that it needs.
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

CHUNK_SECONDS = 10.0  # seconds that a causal model processes at once, to bound the memory
LONGEST = 1e9  # seconds of a window that holds the whole signal


class Channel(Protocol):
    """Runs a model on one signal: (inputs, T) of any T in, (T',) out, at most ``latency`` samples late."""

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
    """Runs a causal model on multiples of its stride; it waits for at most one stride."""

    def __init__(self, model: Enhancer) -> None:
        self._step = chunk_runner(model)
        self._stride, self._delay, self._inputs = model.stride, self._step.delay, model.inputs
        self._longest = ceil(CHUNK_SECONDS * model.sample_rate / model.stride) * model.stride
        self.latency = self._stride + self._delay
        self.reset()

    def reset(self) -> None:
        self._step.reset()
        self._pending = np.zeros((self._inputs, 0), np.float32)
        # the end of the signal, from which its continuation is computed
        self._past = np.zeros((self._inputs, self._delay + self._stride), np.float32)
        self._to_drop = self._delay  # output samples still to come that precede the signal
        self._outstanding = 0  # samples pushed and not yet returned

    def push(self, audio: Audio) -> Iterator[Audio]:
        length = self._past.shape[1]
        self._outstanding += audio.shape[1]
        self._past = np.concatenate([self._past, audio[:, -length:]], axis=1, dtype=np.float32)[:, -length:]
        pending = np.concatenate([self._pending, audio], axis=1)
        ready = pending.shape[1] // self._stride * self._stride
        self._pending = pending[:, ready:].copy()
        for start in range(0, ready, self._longest):
            yield self._forward(pending[:, start : min(start + self._longest, ready)])

    def flush(self) -> Iterator[Audio]:
        if self._outstanding:
            missing = self._delay + -(self._pending.shape[1] + self._delay) % self._stride
            outstanding, length = self._outstanding, self._past.shape[1]
            output = np.concatenate([*self.push(continued(self._past, missing)[:, length:])])
            yield output[:outstanding]

    def _forward(self, chunk: Audio) -> Audio:
        out = self._step(chunk)
        dropped = min(self._to_drop, len(out))
        self._to_drop -= dropped
        self._outstanding -= len(out) - dropped
        return out[dropped:]


class WindowedChannel:
    """Runs a model that looks ahead on windows of ``keep`` samples with context; it waits for both.

    ``keep`` is a multiple of the stride. The first window keeps ``first`` samples if that is given. ``batch`` windows
    are processed by the model at once, which may change the last bits.
    """

    def __init__(self, model: Enhancer, keep: int, context: int, *, first: int | None = None, batch: int = 1) -> None:
        self._model, self._keep, self._context, self._first, self._batch = model, keep, context, first, batch
        self.latency = keep + context + 1
        self.reset()

    def reset(self) -> None:
        self._windower, self._run = Windower(self._keep, self._context, self._first), window_runner(self._model)
        self._batched: list[Window] = []  # windows of equal shape, fewer than a batch

    def push(self, audio: Audio) -> Iterator[Audio]:
        for window in self._windower.push(audio):
            yield from self._add(window)

    def flush(self) -> Iterator[Audio]:
        for window in self._windower.flush():
            yield from self._add(window)
        yield from self._forward()

    def _add(self, window: Window) -> Iterator[Audio]:
        if self._batched and _shape(window) != _shape(self._batched[0]):
            yield from self._forward()
        self._batched.append(window)
        if len(self._batched) >= self._batch:
            yield from self._forward()

    def _forward(self) -> Iterator[Audio]:
        if not self._batched:
            return
        run = self._run if self._batch == 1 else window_runner(self._model)  # batched windows do not reuse results
        stacked = np.stack([window.audio for window in self._batched])
        skip, keep = self._batched[0].skip, self._batched[0].keep
        self._batched = []
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
    """A channel for a complete signal. All windows except the last have the same size, so that memory is reused."""
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
    runs = {index: _recorded(model, seconds, batch) for index in channels}
    pending: list[Audio] = []
    chunk_seconds = seconds if model.causal or isfinite(model.context) else LONGEST
    for chunk in windows(blocks, _whole_strides(model, chunk_seconds), 0):
        grouped = chunk.audio.reshape(-1, model.inputs, chunk.audio.shape[1])  # one signal per group of inputs
        pending.append(grouped[:, 0])
        yield from _take_ready(pending, {index: [*channel.push(grouped[index])] for index, channel in runs.items()})
    if pending:
        yield from _take_ready(pending, {index: [*channel.flush()] for index, channel in runs.items()})


def _take_ready(pending: list[Audio], outputs: dict[int, list[Audio]]) -> Iterator[tuple[Audio, Audio]]:
    """Remove the part of the pending input for which there is output, and yield both as (input, enhanced)."""
    joined = np.concatenate(pending, axis=1)
    ready = min((sum(map(len, parts)) for parts in outputs.values()), default=joined.shape[1])
    enhanced = np.zeros((len(joined), ready), np.float32)
    for channel, parts in outputs.items():
        enhanced[channel] = np.concatenate([enhanced[channel, :0], *parts])
    pending[:] = [joined[:, ready:]]
    if ready:
        yield joined[:, :ready], enhanced


def _context(model: Enhancer) -> int:
    """The context in samples, a multiple of the stride."""
    return ceil(model.context / model.stride) * model.stride


def _whole_strides(model: Enhancer, seconds: float) -> int:
    """A number of samples that is a multiple of the stride, at least one."""
    return max(1, round(seconds * model.sample_rate / model.stride)) * model.stride
