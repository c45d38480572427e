"""Tests of signals that arrive while libsndfile calls Python, where an exception would be lost."""

import io
import signal
import time

import numpy as np
import pytest
import soundfile

from twostage.utils.signals import DebouncedInterrupt, answered


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
