"""Speech of sound files as everything but restoring wants it: one channel, one rate, nothing below speech."""

from pathlib import Path

from twostage.audio import sound_files
from twostage.audio.highpass import highpass
from twostage.audio.sound_files import Audio


def read_speech(path: str | Path, sample_rate: int | None = None) -> tuple[Audio, int]:
    """The first channel (T,) of a sound file at ``sample_rate`` (default: its own), and that rate.

    A sample that is not finite makes all of them so: whoever reads says what that means.
    """
    sound, rate = sound_files.read(path)
    high = highpass(sound[0], rate)
    wanted = sample_rate or rate
    return sound_files.resample(high, rate, wanted), wanted
