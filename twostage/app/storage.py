"""Limits the disk space of a server for all visitors together: uploads, intermediate files and results."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from twostage.utils.errors import TwoStageError


class StorageFull(TwoStageError):
    """There is no space left until uploaded or restored files are deleted."""


class Reservation:
    """Reserved bytes; those that have ``arrived`` on the disk are counted there instead."""

    def __init__(self, size: int) -> None:
        self.size = size

    def arrived(self, size: int) -> None:
        self.size = max(0, self.size - size)


class Storage:
    """At most ``mb`` megabytes of files in ``home`` and reservations."""

    def __init__(self, home: Path, mb: int) -> None:
        self.home, self._mb = home, mb
        self._lock, self._reservations = threading.Lock(), set[Reservation]()

    def used(self) -> int:
        """Bytes of the files in ``home``."""
        total = 0
        for folder, _, names in os.walk(self.home):
            for name in names:
                with suppress(OSError):  # deleted in the meantime
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total

    @contextmanager
    def reserve(self, size: int) -> Iterator[Reservation]:
        """Reserve ``size`` bytes within the block. Raises StorageFull."""
        reservation = Reservation(size)
        with self._lock:
            used = self.used() + sum(other.size for other in self._reservations)
            if used + size > self._mb * 1_000_000:
                raise StorageFull(
                    f"No room: {size / 1e6:.1f} MB are needed, {used / 1e6:.1f} of {self._mb} MB are used on this "
                    "server by uploads and results, which are deleted after some time."
                )
            self._reservations.add(reservation)
        try:
            yield reservation
        finally:
            with self._lock:
                self._reservations.discard(reservation)
