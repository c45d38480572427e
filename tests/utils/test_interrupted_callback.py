"""Claims about signals that come while libsndfile calls Python, where an exception would be lost."""

import io
import signal
import time

import numpy as np
import pytest
import soundfile

from twostage.utils.signals import DebouncedInterrupt, answered


class Tapped(io.BytesIO):
    """A file whose reader is interrupted at the first sample that is asked for."""

    armed = False

    def readinto(self, buffer: object) -> int:
        if self.armed:
            self.armed = False
            signal.raise_signal(signal.SIGINT)
        return super().readinto(buffer)  # type: ignore[arg-type]


def test_an_interrupt_within_a_callback_is_answered_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    content = Tapped()
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
