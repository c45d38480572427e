"""A queue of work in order of arrival. Closing it stops running work, waits for its end, and starts no more."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from twostage.app.limits import Limits
from twostage.utils.errors import TwoStageError

PATIENCE = 60.0  # seconds to wait for running work, which stops after a window
GLANCE = 0.5  # seconds between checks whether clients are still connected


class Busy(TwoStageError):
    """The queue is full."""


class Closing(TwoStageError):
    """The server closes before the requested work is done."""


class WorkQueue:
    """Runs ``jobs`` at once while at most ``places`` wait, until `close`; running work calls `check_open` regularly."""

    def __init__(self, jobs: int = Limits.jobs, places: int = Limits.queue) -> None:
        self._state, self._working, self._closed = threading.Condition(), 0, False
        self._jobs, self._places = jobs, places
        self._waiting: deque[object] = deque()

    @contextmanager
    def work(
        self, check: Callable[[], None] = lambda: None, report: Callable[[int], None] = lambda earlier: None
    ) -> Iterator[None]:
        """Wait for a free job, or raise Busy if too many wait already.

        While waiting, ``check`` is called, which raises an exception if the client has disconnected, and ``report``,
        with the number of earlier requests that are not finished.
        """
        self._begin(check, report)
        try:
            yield
        finally:
            with self._state:
                self._working -= 1
                self._state.notify_all()

    def check_space(self) -> None:
        """Raises Busy if a new request would have to wait and the queue is full."""
        if self._working >= self._jobs and self.waiting >= self._places:
            raise Busy(f"The queue is full ({self.waiting} waiting). Try again in a moment.")

    def _begin(self, check: Callable[[], None], report: Callable[[int], None]) -> None:
        ticket = object()
        with self._state:
            self.check_open()
            self.check_space()
            self._waiting.append(ticket)
            try:
                while self._working >= self._jobs or self._waiting[0] is not ticket:
                    report(self._working + self._waiting.index(ticket))
                    self._state.wait(GLANCE)
                    self.check_open()
                    check()
                self._working += 1
            finally:
                self._waiting.remove(ticket)
                self._state.notify_all()

    @property
    def waiting(self) -> int:
        """The number of requests without a job."""
        return len(self._waiting)

    def check_open(self) -> None:
        """Raises Closing after `close`."""
        if self._closed:
            raise Closing("The server is closing and accepts no more work.")

    def close(self) -> None:
        """Close the queue and wait until no work is running, for at most PATIENCE seconds."""
        with self._state:
            self._closed = True
            self._state.notify_all()
            self._state.wait_for(lambda: not self._working, PATIENCE)
