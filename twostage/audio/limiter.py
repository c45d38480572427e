"""A look-ahead limiter: attenuates the signal around samples that are too loud and does not change the rest."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from twostage.audio.types import Audio

HOLD, FADE = 0.01, 0.01  # seconds on each side: the gain is held (longer than a pitch period), then fades


def limited(blocks: Iterable[Audio], ceiling: float, sample_rate: int) -> Iterator[Audio]:
    """Limit a stream of blocks (C, T) to ``ceiling``; the gain is the same for all channels, to keep their balance.

    The gain is a sliding minimum of the gains that the samples need, smoothed by a Hann window. It is never above the
    gain that the sample itself needs.
    """
    hold, fade = (max(1, round(seconds * sample_rate)) for seconds in (HOLD, FADE))
    window = np.hanning(2 * fade + 3)[1:-1]
    window /= window.sum()
    lookahead, past_gains, pending = hold + fade, np.ones(hold + fade), list[Audio]()
    available = 0
    for block in blocks:
        pending.append(block)
        available += block.shape[1]
        if available > lookahead:
            audio = np.concatenate(pending, axis=1)
            gains = np.concatenate([past_gains, _required_gain(audio, ceiling)])
            ready = available - lookahead
            yield _attenuated(audio[:, :ready], gains, hold, window, ceiling)
            past_gains, pending, available = gains[ready : ready + lookahead], [audio[:, ready:]], lookahead
    if available:
        audio = np.concatenate(pending, axis=1)
        gains = np.concatenate([past_gains, _required_gain(audio, ceiling), np.ones(lookahead)])
        yield _attenuated(audio, gains, hold, window, ceiling)


def _required_gain(audio: Audio, ceiling: float) -> NDArray[np.float64]:
    """The gain that each sample of (C, T) needs, over all channels: (T,)."""
    return ceiling / np.maximum(np.abs(audio).max(axis=0).astype(np.float64), ceiling)


def _attenuated(
    audio: Audio, gains: NDArray[np.float64], hold: int, window: NDArray[np.float64], ceiling: float
) -> Audio:
    if gains.min() == 1:
        return audio
    lowest = _sliding_minimum(gains, 2 * hold + 1)
    gain = np.convolve(lowest, window, mode="valid")
    return (audio * gain).clip(-ceiling, ceiling).astype(np.float32)


def _sliding_minimum(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """The minimum of every ``width`` consecutive values: (N,) -> (N - width + 1,), in log2(width) passes.

    >>> _sliding_minimum(np.array([3.0, 1.0, 2.0, 5.0, 4.0]), 3).tolist()
    [1.0, 1.0, 2.0]
    """
    spanned = 1
    while 2 * spanned <= width:
        values = np.minimum(values[:-spanned], values[spanned:])
        spanned *= 2
    remaining = width - spanned
    return np.minimum(values[: len(values) - remaining], values[remaining:])
