"""SIGINT and SIGTERM: both end the work like Ctrl-C and leave no incomplete files. Owns `signal`."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from types import FrameType
from typing import Any

PATIENCE = 1.0  # seconds within which a second signal counts as the same request
AGAIN = 0.01  # seconds after which a signal that could not be handled is sent again


class DebouncedInterrupt:
    """A handler of SIGINT and SIGTERM that raises KeyboardInterrupt, but not twice in quick succession.

    A process is often signaled twice, and the second signal must not interrupt the cleanup that the first has started.
    """

    def __init__(self) -> None:
        self._last = -inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _in_callback(frame):
            retry = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
            retry.daemon = True
            retry.start()
            return
        now = time.monotonic()
        if now > self._last + PATIENCE:
            self._last = now
            raise KeyboardInterrupt


class Interruption:
    """Records whether SIGINT or SIGTERM was received: a training then finishes its step and saves its state.

    A second signal raises KeyboardInterrupt without waiting for the end of the step.
    """

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: object) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True

    @contextmanager
    def watch(self) -> Iterator["Interruption"]:
        """Handle both signals within the block."""
        with answered(self):
            yield self


def answer(handler: Any) -> dict[int, Any]:
    """Install ``handler`` for SIGINT and SIGTERM; returns their previous handlers."""
    return {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}


def ignore() -> None:
    """Ignore both signals for the rest of the process."""
    answer(signal.SIG_IGN)


@contextmanager
def answered(handler: Any) -> Iterator[None]:
    """Handle SIGINT and SIGTERM with ``handler`` within the block."""
    previous = answer(handler)
    try:
        yield
    finally:
        for number, previous_handler in previous.items():
            signal.signal(number, previous_handler)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the work like Ctrl-C, without incomplete files."""
    if not _in_main_thread() or isinstance(signal.getsignal(signal.SIGTERM), DebouncedInterrupt):
        yield
        return
    with answered(DebouncedInterrupt()):
        yield


@contextmanager
def termination_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block, because some libraries install their own."""
    previous = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if _in_main_thread():
            signal.signal(signal.SIGTERM, previous)


@contextmanager
def interrupt_blocked() -> Iterator[None]:
    """Block SIGINT, if the system supports it; a process started in the block inherits this and never receives it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _in_callback(frame: FrameType | None) -> bool:
    """Whether libsndfile is calling Python code, where an exception would be printed and lost."""
    while frame is not None:
        if frame.f_code.co_name.startswith("vio_") and frame.f_globals.get("__name__") == "soundfile":
            return True
        frame = frame.f_back
    return False


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
