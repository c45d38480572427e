"""A look-ahead limiter: attenuates the signal around samples that are too loud, and leaves the rest as it is."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from twostage.audio.types import Audio

HOLD, FADE = 0.01, 0.01  # seconds on either side for which the gain is held, longer than a pitch period, and then fades


def limited(blocks: Iterable[Audio], ceiling: float, sample_rate: int) -> Iterator[Audio]:
    """A stream of blocks (C, T) with no sample beyond ``ceiling``: one gain for all channels keeps their balance.

    The gain at a sample is the mean, weighted by a Hann window, of the lowest that is needed around each of its
    neighbors: smooth, and never above what the sample itself needs.
    """
    hold, fade = (max(1, round(seconds * sample_rate)) for seconds in (HOLD, FADE))
    window = np.hanning(2 * fade + 3)[1:-1]
    window /= window.sum()
    side, before, waiting = hold + fade, np.ones(hold + fade), list[Audio]()
    have = 0
    for block in blocks:
        waiting.append(block)
        have += block.shape[1]
        if have > side:
            audio = np.concatenate(waiting, axis=1)
            needed = np.concatenate([before, _needed(audio, ceiling)])
            ready = have - side
            yield _turned_down(audio[:, :ready], needed, hold, window, ceiling)
            before, waiting, have = needed[ready : ready + side], [audio[:, ready:]], side
    if have:
        audio = np.concatenate(waiting, axis=1)
        needed = np.concatenate([before, _needed(audio, ceiling), np.ones(side)])
        yield _turned_down(audio, needed, hold, window, ceiling)


def _needed(audio: Audio, ceiling: float) -> NDArray[np.float64]:
    """The gain that each sample of (C, T) needs, (T,)."""
    return ceiling / np.maximum(np.abs(audio).max(axis=0).astype(np.float64), ceiling)


def _turned_down(
    audio: Audio, needed: NDArray[np.float64], hold: int, window: NDArray[np.float64], ceiling: float
) -> Audio:
    if needed.min() == 1:
        return audio
    lowest = _sliding_minimum(needed, 2 * hold + 1)
    gain = np.convolve(lowest, window, mode="valid")
    return (audio * gain).clip(-ceiling, ceiling).astype(np.float32)


def _sliding_minimum(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """The lowest of every ``width`` values in a row: (N,) -> (N - width + 1,), in log2(width) passes.

    >>> _sliding_minimum(np.array([3.0, 1.0, 2.0, 5.0, 4.0]), 3).tolist()
    [1.0, 1.0, 2.0]
    """
    spanned = 1
    while 2 * spanned <= width:
        values = np.minimum(values[:-spanned], values[spanned:])
        spanned *= 2
    rest = width - spanned
    return np.minimum(values[: len(values) - rest], values[rest:])
