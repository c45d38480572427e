"""Limits the disk space of a server, over all visitors: uploads, intermediate files and results."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from twostage.utils.errors import TwoStageError


class StorageFull(TwoStageError):
    """There is no space left until uploaded or restored files are deleted."""


class Reservation:
    """Bytes that are reserved; those that have ``arrived`` on the disk are counted there."""

    def __init__(self, size: int) -> None:
        self.size = size

    def arrived(self, size: int) -> None:
        self.size = max(0, self.size - size)


class Storage:
    """At most ``mb`` megabytes in ``home`` and on the way to it."""

    def __init__(self, home: Path, mb: int) -> None:
        self.home, self._mb = home, mb
        self._lock, self._promised = threading.Lock(), set[Reservation]()

    def used(self) -> int:
        """Bytes of the files in ``home``."""
        total = 0
        for folder, _, names in os.walk(self.home):
            for name in names:
                with suppress(OSError):  # deleted meanwhile
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total

    @contextmanager
    def reserve(self, size: int) -> Iterator[Reservation]:
        """Reserve ``size`` bytes within the block. Raises StorageFull."""
        promise = Reservation(size)
        with self._lock:
            taken = self.used() + sum(other.size for other in self._promised)
            if taken + size > self._mb * 1_000_000:
                raise StorageFull(
                    f"No room: {size / 1e6:.1f} MB are wanted, {taken / 1e6:.1f} of {self._mb} MB are taken on this "
                    "server by what was uploaded or restored; some of it is deleted before long."
                )
            self._promised.add(promise)
        try:
            yield promise
        finally:
            with self._lock:
                self._promised.discard(promise)
