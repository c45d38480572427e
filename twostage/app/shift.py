"""When the page closes: work that is under way is stopped and waited for, none begins."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from twostage.utils.errors import TwoStageError

PATIENCE = 60.0  # seconds; a window of sound is at most some seconds of work


class Closing(TwoStageError):
    """The page closes before what was asked for is done."""


class Shift:
    """A time of work between its making and `close`; whoever works calls `go_on` now and then."""

    def __init__(self) -> None:
        self._state, self._working, self._closed = threading.Condition(), 0, False

    @contextmanager
    def work(self) -> Iterator[None]:
        with self._state:
            self.go_on()
            self._working += 1
        try:
            yield
        finally:
            with self._state:
                self._working -= 1
                self._state.notify_all()

    def go_on(self) -> None:
        """Raises Closing after `close`."""
        if self._closed:
            raise Closing("The page is closing; nothing more is done.")

    def close(self) -> None:
        """End the shift: when this returns nobody works, or the patience is over."""
        with self._state:
            self._closed = True
            self._state.wait_for(lambda: not self._working, PATIENCE)
