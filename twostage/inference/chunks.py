"""A stream of sound through an enhancer, piece by piece, equal to the whole at once whatever its length.

A causal model carries its state from piece to piece; any other sees windows, with the context that they need.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import groupby, islice, repeat
from math import ceil, isfinite
from typing import Any

import numpy as np
import torch
from torch import nn

from twostage.audio.sound_files import Audio
from twostage.inference.windows import Enhancer, Window, device_of, forward_in_turn, inputs_of, windows
from twostage.nn.streaming import continued, forget, streaming, tail_length

PIECE = 10.0  # seconds that a causal model takes at once, however much is pushed: bounds the memory
LONGEST = 1e9  # seconds of a window that is to hold all of a signal


class Pieces:
    """A causal model, fed multiples of its stride: samples (inputs, T) in, (T',) out, ``latency`` late at most."""

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
        self._past = torch.zeros(self._inputs, tail_length(self._model) + 1)  # of which the signal's end is continued
        self._late = self._delay  # samples still to come that are of before the signal
        self._owed = 0  # samples that went in and have not come out

    def push(self, audio: Audio) -> Iterator[Audio]:
        self._owed += audio.shape[1]
        new = torch.from_numpy(audio[:, -self._past.shape[1] :].astype(np.float32))
        self._past = torch.cat((self._past, new), 1)[:, -self._past.shape[1] :]
        pending = np.concatenate([self._pending, audio], axis=1)
        ready = pending.shape[1] // self._stride * self._stride
        self._pending = pending[:, ready:].copy()
        for start in range(0, ready, self._longest):
            yield self._step(pending[:, start : min(start + self._longest, ready)])

    def flush(self) -> Iterator[Audio]:
        if self._owed:
            missing = self._delay + -(self._pending.shape[1] + self._delay) % self._stride
            owed, known = self._owed, self._past.shape[1]
            rest = np.concatenate([*self.push(continued(self._past, missing)[:, known:].numpy())])
            yield rest[:owed]

    def _step(self, piece: Audio) -> Audio:
        with torch.inference_mode():
            out = self._model.late(torch.from_numpy(piece)[None].to(self._device))[0, 0].float().cpu().numpy()
        early = min(self._late, len(out))
        self._late -= early
        self._owed -= len(out) - early
        return out[early:]


def _twin(model: nn.Module) -> nn.Module:
    """A model with state of its own and the same weights, not copies of them."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def enhance(
    model: Enhancer, blocks: Iterable[Audio], seconds: float, channels: Iterable[int], batch: int = 1
) -> Iterator[tuple[Audio, Audio]]:
    """Yield (input, enhanced) blocks (C, T) of a stream at the model's rate, each of ``channels`` by itself.

    Of a model with several inputs, each so many channels of the stream make one, whose input is the first of them.
    Pieces and windows are of ``seconds``, or all of it, if that or the context of a model that looks ahead is infinite;
    other channels come out as zeros. ``batch`` windows go through the model at once, which may change the last bits.
    """
    seconds, chosen = min(seconds, LONGEST), list(channels)
    if getattr(model, "causal", False):
        yield from _in_pieces(model, blocks, seconds, chosen)
    else:
        yield from _in_windows(model, blocks, seconds, chosen, batch)


def _in_windows(
    model: Enhancer, blocks: Iterable[Audio], seconds: float, channels: list[int], batch: int
) -> Iterator[tuple[Audio, Audio]]:
    seconds, reach = (seconds, model.context) if isfinite(model.context) else (LONGEST, 0)
    context = ceil(reach / model.stride) * model.stride
    alone = [forward_in_turn(model) for _ in channels]
    for group in _alike(windows(blocks, _whole_strides(model, seconds), context), batch):
        skip, keep = group[0].skip, group[0].keep
        given = [_grouped(window.audio, model) for window in group]
        rows = [audio[channel] for audio in given for channel in channels]
        runs = alone if batch == 1 else map(forward_in_turn, repeat(model))
        starts = range(0, len(rows), batch)
        made = [run(np.stack(rows[i : i + batch]), skip, keep) for i, run in zip(starts, runs, strict=False)]
        restored = iter(np.concatenate(made) if made else ())
        for audio in given:
            enhanced = np.zeros((len(audio), keep), np.float32)
            for channel in channels:
                enhanced[channel] = next(restored)
            yield audio[:, 0, skip : skip + keep], enhanced


def _alike(stream: Iterable[Window], most: int) -> Iterator[list[Window]]:
    """Windows that follow each other, of one length and place, in groups of at most ``most``."""
    for _, run in groupby(stream, lambda window: (window.audio.shape, window.skip, window.keep)):
        while group := list(islice(run, most)):
            yield group


def _in_pieces(
    model: Enhancer, blocks: Iterable[Audio], seconds: float, channels: list[int]
) -> Iterator[tuple[Audio, Audio]]:
    streams = {place: Pieces(model) for place in channels}
    waiting: list[Audio] = []
    for window in windows(blocks, _whole_strides(model, seconds), 0):
        given = _grouped(window.audio, model)
        waiting.append(given[:, 0])
        yield from _done(waiting, {place: [*stream.push(given[place])] for place, stream in streams.items()})
    if waiting:
        yield from _done(waiting, {place: [*stream.flush()] for place, stream in streams.items()})


def _done(waiting: list[Audio], made: dict[int, list[Audio]]) -> Iterator[tuple[Audio, Audio]]:
    """Take from the input that is ``waiting`` what has come out, as (input, enhanced), if anything has."""
    given = np.concatenate(waiting, axis=1)
    ready = min((sum(map(len, parts)) for parts in made.values()), default=given.shape[1])
    enhanced = np.zeros((len(given), ready), np.float32)
    for channel, parts in made.items():
        enhanced[channel] = np.concatenate([enhanced[channel, :0], *parts])
    waiting[:] = [given[:, ready:]]
    if ready:
        yield given[:, :ready], enhanced


def _grouped(audio: Audio, model: Enhancer) -> Audio:
    """Channels by the model that hears them: (C * inputs, T) -> (C, inputs, T)."""
    return audio.reshape(-1, inputs_of(model), audio.shape[1])


def _whole_strides(model: Enhancer, seconds: float) -> int:
    """Samples, one stride at least."""
    return max(1, round(seconds * model.sample_rate / model.stride)) * model.stride
