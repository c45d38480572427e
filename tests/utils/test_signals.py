"""Tests of signals: those that arrive while libsndfile calls Python, and systems that cannot block them."""

import io
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from twostage.utils.signals import DebouncedInterrupt, answered, interrupt_blocked


class InterruptedRead(io.BytesIO):
    """A file that raises SIGINT once while it is read."""

    armed = False

    def readinto(self, buffer: object) -> int:
        if self.armed:
            self.armed = False
            signal.raise_signal(signal.SIGINT)
        return super().readinto(buffer)  # type: ignore[arg-type]


def test_an_interrupt_during_a_callback_is_raised_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    content = InterruptedRead()
    soundfile.write(content, np.ones(1000) / 2, 16000, format="WAV")
    content.seek(0)
    with answered(DebouncedInterrupt()):
        file = soundfile.SoundFile(content)
        content.armed = True
        samples = file.read()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(5)
    assert len(samples) == 1000
    assert capsys.readouterr().err == ""


def test_processes_start_on_systems_that_cannot_block_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twostage.utils.signals.signal", SimpleNamespace(SIGINT=signal.SIGINT))  # as on Windows
    with interrupt_blocked():
        started = True
    assert started


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")
def test_an_interrupt_is_blocked_within_the_block_only() -> None:
    with interrupt_blocked():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
