"""The status of a live stream while it runs: level, load, latency, lost sound."""

import time
from collections.abc import Callable
from math import log10

import numpy as np

from twostage.audio.types import Audio

QUIET = 1e-6  # lowest amplitude that is reported, relative to full scale


class Meter:
    """Counts hops; ``report`` passes a status line to ``say`` every ``pace`` seconds, or never if that is 0.

    ``latency``: seconds, of the stream and the devices together. The sound waiting in buffers is added to it.
    """

    def __init__(self, hop_seconds: float, latency: float, say: Callable[[str], None], pace: float) -> None:
        self._hop, self.latency, self._say, self._pace = hop_seconds, latency, say, pace
        self.xruns, self.lost_seconds, self.hops, self.late_hops = 0, 0.0, 0, 0
        self._begin()

    def _begin(self) -> None:
        self._since, self._power, self._work, self._count, self._waiting = time.monotonic(), 0.0, 0.0, 0, 0.0

    def hop(self, samples: Audio, work: float, waiting: float = 0.0) -> None:
        """Count a hop (T,) that took ``work`` seconds, while ``waiting`` seconds of sound were still waiting."""
        self.hops += 1
        self.late_hops += work > self._hop
        self._count += 1
        self._power += float(np.square(samples).mean()) if samples.size else 0.0
        self._work += work
        self._waiting = max(self._waiting, waiting)

    def report(self) -> None:
        """Say the status if it is time. Not for a device's callback, which must not wait for a terminal."""
        if self._pace and time.monotonic() - self._since >= self._pace:
            self._say(self.line())
            self._begin()

    def xrun(self) -> None:
        """Count an underrun or overrun of the device."""
        self.xruns += 1

    def lost(self, seconds: float) -> None:
        """Count sound that was skipped in order to catch up."""
        self.xruns += 1
        self.lost_seconds += seconds

    def line(self) -> str:
        """The state since the last line."""
        count = max(1, self._count)
        level = 10 * log10(max(QUIET**2, self._power / count))
        load, late = self._work / (count * self._hop), 1000 * (self.latency + self._waiting)
        return f"input level {level:.0f} dBFS, load {load:.2f}, {late:.0f} ms late, sound lost {self.xruns} times"
