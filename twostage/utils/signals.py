"""SIGINT and SIGTERM: either ends the work as Ctrl-C does, with nothing half-written left."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

PATIENCE = 1.0  # seconds in which a second signal is the same request


class Once:
    """A handler of SIGINT and SIGTERM that raises KeyboardInterrupt, and not again at once.

    Whoever stops a process often signals it twice, and the second must not cut short what the first has begun.
    """

    def __init__(self) -> None:
        self._last = -inf

    def __call__(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if now > self._last + PATIENCE:
            self._last = now
            raise KeyboardInterrupt


def answer(handler: Any) -> dict[int, Any]:
    """Have SIGINT and SIGTERM answered by ``handler``; the handlers that they had."""
    return {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, with nothing half-written left."""
    if threading.current_thread() is not threading.main_thread() or isinstance(signal.getsignal(signal.SIGTERM), Once):
        yield
        return
    before = answer(Once())
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
