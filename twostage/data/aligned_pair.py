"""A pair of recordings in step: the only place that applies an entry's delay, for whole files and for segments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from twostage.audio import sound_files
from twostage.audio.sound_files import Audio
from twostage.data.manifest import Entry
from twostage.utils.errors import AudioError, DataError

Read = Callable[[int, int], Audio]  # (start, samples) -> (samples,); a start before the file and an end behind it hold


class AlignedPair(NamedTuple):
    """Both channels of a pair (T,) and (T',) from the first moment that both have; one may go on for longer."""

    degraded: Audio
    clean: Audio

    def cut(self) -> "AlignedPair":
        """Both channels (T,) up to where the shorter one ends."""
        length = min(len(self.degraded), len(self.clean))
        return AlignedPair(self.degraded[:length], self.clean[:length])


@dataclass(frozen=True)
class Alignment:
    """How the degraded channel of a pair lies against the clean one, counted in samples at one rate."""

    name: str  # for messages
    delay: int  # samples that the degraded channel lags behind; negative: it leads

    @classmethod
    def of(cls, entry: Entry, sample_rate: int) -> Self:
        return cls(entry.name, round(entry.delay * sample_rate))

    def shared(self, clean: int, degraded: int) -> tuple[int, int]:
        """The part of the clean channel that the degraded one has as well, of channels of so many samples: [from, to).

        Raises DataError if there is none.
        """
        first, last = max(0, -self.delay), min(clean, degraded - self.delay)
        if last <= first:
            raise DataError(
                f"delay is {self.delay} samples: of {degraded} and {clean} samples, nothing is in common",
                subject=self.name,
            )
        return first, last

    def degraded_segment(self, read: Read, start: int, samples: int) -> Audio:
        """The degraded channel (samples,) beside the clean one from ``start`` on; ``read`` gives it as recorded."""
        return read(start + self.delay, samples)


def open_pair(entry: Entry, sample_rate: int) -> AlignedPair:
    """The first channels of a paired entry at ``sample_rate``, in step to the sample, by the entry's delay.

    A delay of either sign takes away the beginning that one channel lacks; the ends stay as they are.

    Raises:
        AudioError: a file cannot be read, or holds samples that are not finite.
        DataError: the entry has only one channel, or its delay leaves nothing in common.
    """
    if entry.clean is None or entry.degraded is None:
        raise DataError("has no second channel, needs both a clean and a degraded file", subject=entry.name)
    clean, degraded = read_mono(entry.clean, sample_rate), read_mono(entry.degraded, sample_rate)
    alignment = Alignment.of(entry, sample_rate)
    first, _ = alignment.shared(len(clean), len(degraded))
    left = len(degraded) - alignment.delay - first
    return AlignedPair(alignment.degraded_segment(lambda at, n: degraded[at : at + n], first, left), clean[first:])


def read_mono(path: str, sample_rate: int) -> Audio:
    """The first channel of a sound file (T,) at ``sample_rate``. AudioError also for samples that are not finite."""
    sound, rate = sound_files.read(path)
    if not np.isfinite(sound[0]).all():
        raise AudioError("holds samples that are not finite", subject=path)
    return sound_files.resample(sound[0], rate, sample_rate)
