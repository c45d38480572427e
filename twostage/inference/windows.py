"""Cuts a stream of sound into windows with context, and splices the low band of the input into the output."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from twostage.audio.sound_files import match_length
from twostage.audio.types import Audio

CROSSOVER = 0.032  # seconds: length of the crossover's filter; its slope is about 100 Hz wide


@dataclass(frozen=True)
class Window:
    """Audio (C, T): the ``keep`` samples from ``skip`` on are used, the others are context."""

    audio: Audio
    skip: int
    keep: int


class Windower:
    """Cuts a stream of (C, T) blocks into windows of ``keep`` samples with ``context`` on each side.

    At the ends of the stream there is no context. The last window keeps the remaining samples, at most
    ``keep + context``. The first window keeps ``first`` samples, if that is given.
    """

    def __init__(self, keep: int, context: int, first: int | None = None) -> None:
        self._keep, self._context = keep, context
        self._pending: list[Audio] = []
        self._available, self._skip, self._end = 0, 0, first or keep

    def push(self, block: Audio) -> Iterator[Window]:
        self._pending.append(block)
        self._available += block.shape[1]
        while self._available > self._end + self._context:  # if no more followed, this would be the last window
            audio = np.concatenate(self._pending, axis=1)
            yield Window(audio[:, : self._end + self._context], self._skip, self._end - self._skip)
            drop = max(0, self._end - self._context)
            self._skip, self._available, self._pending = self._end - drop, self._available - drop, [audio[:, drop:]]
            self._end = self._skip + self._keep

    def flush(self) -> Iterator[Window]:
        if self._available > self._skip:
            yield Window(np.concatenate(self._pending, axis=1), self._skip, self._available - self._skip)


def windows(blocks: Iterable[Audio], keep: int, context: int) -> Iterator[Window]:
    """All windows of a stream of (C, T) blocks; only the last has another size, so that memory is reused."""
    windower = Windower(keep, context, first=keep + context)
    for block in blocks:
        yield from windower.push(block)
    yield from windower.flush()


def keep_low_band(pairs: Iterable[tuple[Audio, Audio]], cutoff: float, sample_rate: int) -> Iterator[Audio]:
    """Combine the input below ``cutoff`` Hz with the enhanced above: (input, enhanced) blocks (C, T) to blocks (C, T).

    The crossover is a linear-phase low-pass and its complement, so equal inputs come out unchanged. 0 Hz keeps nothing.
    """
    if not cutoff:
        yield from (enhanced for _, enhanced in pairs)
        return
    half_length = round(CROSSOVER / 2 * sample_rate)
    taps = _low_pass(half_length, cutoff / sample_rate)
    difference = enhanced = None
    for original, restored in pairs:
        if difference is None or enhanced is None:
            difference, enhanced = np.zeros((len(original), half_length), np.float32), restored[:, :0]
        # enhanced + low(original - enhanced) is low(original) + high(enhanced) with one filter
        difference = np.concatenate([difference, original - restored], axis=1)
        enhanced = np.concatenate([enhanced, restored], axis=1)
        ready = difference.shape[1] - 2 * half_length
        if ready > 0:
            yield enhanced[:, :ready] + _convolved(difference, taps)
            difference, enhanced = difference[:, ready:], enhanced[:, ready:]
    if difference is not None and enhanced is not None:
        difference = match_length(difference, difference.shape[1] + half_length)
        difference = np.pad(difference, [(0, 0), (max(0, 2 * half_length + 1 - difference.shape[1]), 0)])
        yield enhanced + _convolved(difference, taps)[:, -enhanced.shape[1] :]


def _low_pass(half_length: int, cutoff: float) -> Audio:
    """A Hamming-windowed sinc (2 half_length + 1,) with unit gain at 0 Hz; ``cutoff`` in cycles per sample."""
    taps = np.sinc(2 * cutoff * np.arange(-half_length, half_length + 1)) * np.hamming(2 * half_length + 1)
    return (taps / taps.sum()).astype(np.float32)


def _convolved(audio: Audio, taps: Audio) -> Audio:
    """Valid convolution of (C, T) with taps (K,): (C, T - K + 1). By FFT, because K is in the hundreds."""
    size = 1 << (audio.shape[1] - 1).bit_length()
    spectrum = np.fft.rfft(audio, size) * np.fft.rfft(taps, size)
    return np.fft.irfft(spectrum, size)[:, len(taps) - 1 : audio.shape[1]].astype(np.float32)
