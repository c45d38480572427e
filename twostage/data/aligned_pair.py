"""Aligns pairs: the only module that applies delay, drift and polarity, to files and to segments."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from math import ceil, floor
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from twostage.audio.resampling import cut
from twostage.audio.speech import read_speech
from twostage.audio.types import Audio
from twostage.data.manifest import Entry
from twostage.utils.errors import AudioError, DataError

TAPS, PHASES, KAISER = 48, 4096, 9.0  # of the interpolation: taps, fractions of a sample, beta of the Kaiser window
BLOCK = 1 << 15  # samples interpolated at once, to bound memory
Read = Callable[[int, int], Audio]  # (start, samples) -> (samples,); the range may extend beyond the file


class AlignedPair(NamedTuple):
    """Both channels of a pair, (T,) and (T',), from the first sample that both have; one may be longer."""

    degraded: Audio
    clean: Audio

    def cut(self) -> "AlignedPair":
        """Both channels (T,) up to where the shorter one ends."""
        length = min(len(self.degraded), len(self.clean))
        return AlignedPair(self.degraded[:length], self.clean[:length])


@dataclass(frozen=True)
class Alignment:
    """The alignment of the degraded channel of a pair relative to the clean one, in samples at one rate.

    The sensor keeps its polarity, because that is the input of a model in use: if the channels disagree, the clean
    channel is inverted. The clean channel keeps its clock: if the clocks drift apart, the degraded channel, which
    contains nothing at the top of the band, is interpolated.
    """

    name: str  # for messages
    delay: float  # samples by which the degraded channel lags; negative: it leads; an integer without drift
    drift: float = 0.0  # increase of the delay per sample of the clean channel
    inverted: bool = False  # the polarities are opposite

    @classmethod
    def of(cls, entry: Entry, sample_rate: int) -> Self:
        delay = entry.delay * sample_rate
        return cls(entry.name, delay if entry.drift else round(delay), entry.drift * 1e-6, entry.inverted)

    def shared(self, clean: int, degraded: int) -> tuple[int, int]:
        """The part [from, to) of the clean channel that the degraded one shares, for channels of these lengths.

        Raises DataError if there is none.
        """
        first, last = max(0, ceil(-self.delay / (1 + self.drift))), min(clean, self.length(degraded))
        if last <= first:
            raise DataError(
                f"delay is {self.delay:.0f} samples: of {degraded} and {clean} samples, nothing is in common",
                subject=self.name,
            )
        return first, last

    def length(self, degraded: int) -> int:
        """The end of a degraded channel of this length, on the clean channel's clock."""
        return floor((degraded - 1 - self.delay) / (1 + self.drift)) + 1

    def degraded_segment(self, read: Read, start: int, samples: int) -> Audio:
        """The degraded channel (samples,), aligned with the clean one from ``start`` on; ``read`` reads the file."""
        if not self.drift:
            return read(start + round(self.delay), samples)
        positions = self.delay + (1 + self.drift) * np.arange(start, start + samples)
        first = floor(positions[0]) - TAPS // 2 + 1
        return interpolate(read(first, floor(positions[-1]) + TAPS // 2 + 1 - first), positions - first)

    def clean_segment(self, read: Read, start: int, samples: int) -> Audio:
        """The clean channel (samples,) from ``start`` on, with the polarity of the degraded one."""
        segment = read(start, samples)
        return -segment if self.inverted else segment


def open_pair(entry: Entry, sample_rate: int) -> AlignedPair:
    """The first channels of a paired entry at ``sample_rate``, aligned to the sample and with one polarity.

    A delay of either sign removes the beginning that one channel lacks; the ends are not changed. A drift is
    compensated by interpolating the degraded channel, an opposite polarity by inverting the clean one.

    Raises:
        AudioError: a file cannot be read, or contains samples that are not finite.
        DataError: the entry has only one channel, or its delay leaves nothing in common.
    """
    if entry.clean is None or entry.degraded is None:
        raise DataError("has no second channel, needs both a clean and a degraded file", subject=entry.name)
    clean, degraded = read_mono(entry.clean, sample_rate), read_mono(entry.degraded, sample_rate)
    alignment = Alignment.of(entry, sample_rate)
    first, _ = alignment.shared(len(clean), len(degraded))
    return AlignedPair(
        alignment.degraded_segment(partial(cut, degraded), first, alignment.length(len(degraded)) - first),
        alignment.clean_segment(partial(cut, clean), first, len(clean) - first),
    )


def interpolate(audio: Audio, places: NDArray[np.floating]) -> Audio:
    """Interpolate audio (T,) at the positions ``places`` (N,) in samples, by Kaiser-windowed sinc functions.

    Beyond the ends, the signal is zero. The positions are rounded to 1/4096 of a sample, which causes noise at -70 dB
    relative to a tone at 0.4 of the sample rate, and less for lower tones.
    """
    padded = np.pad(audio, TAPS // 2)
    out = np.empty(len(places), np.float32)
    for start in range(0, len(places), BLOCK):
        positions = places[start : start + BLOCK] + TAPS // 2
        base = np.floor(positions).astype(int)
        phases = np.rint((positions - base) * PHASES).astype(int)
        taps = padded[np.clip(base[:, None] + np.arange(1 - TAPS // 2, TAPS // 2 + 1), 0, len(padded) - 1)]
        out[start : start + BLOCK] = np.einsum("nk,nk->n", taps, _sincs()[phases])
    return out


@cache
def _sincs() -> Audio:
    """Filter taps (PHASES + 1, TAPS) for every fraction of a sample."""
    distance = np.arange(1 - TAPS // 2, TAPS // 2 + 1) - np.arange(PHASES + 1)[:, None] / PHASES
    window = np.i0(KAISER * np.sqrt(np.clip(1 - (distance / (TAPS // 2)) ** 2, 0, 1))) / np.i0(KAISER)
    return (np.sinc(distance) * window).astype(np.float32)


def read_mono(path: str, sample_rate: int) -> Audio:
    """The first channel of a sound file (T,) at ``sample_rate``, without everything below speech.

    Raises AudioError also for samples that are not finite.
    """
    audio, _ = read_speech(path, sample_rate)
    if not np.isfinite(audio).all():
        raise AudioError("holds samples that are not finite", subject=path)
    return audio
