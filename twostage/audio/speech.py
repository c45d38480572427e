"""Speech of sound files for everything except restoring: one channel, one rate, nothing below speech."""

from pathlib import Path

import numpy as np

from twostage.audio import sound_files
from twostage.audio.highpass import highpass
from twostage.audio.levels import rms
from twostage.audio.types import Audio

HARMLESS = 0.01  # of the speech's amplitude: what lies below it and is no louder than that stays
ENDS = 0.1  # seconds at either end that do not count for that, where speech and drift cannot be told apart


def read_speech(path: str | Path, sample_rate: int | None = None) -> tuple[Audio, int]:
    """The first channel (T,) of a sound file at ``sample_rate`` (default: its own), and that rate.

    A sample that is not finite makes all of them so; the caller decides what that means.
    """
    sound, rate = sound_files.read(path)
    wanted = sample_rate or rate
    return sound_files.resample(without_drift(sound[0], rate), rate, wanted), wanted


def without_drift(audio: Audio, sample_rate: int) -> Audio:
    """Audio (..., T) without everything below speech; identical to the input if there is hardly anything below."""
    high = highpass(audio, sample_rate)
    end = round(ENDS * sample_rate)
    inside = slice(end, -end) if audio.shape[-1] > 3 * end else slice(None)
    low = np.asarray(audio - high)[..., inside]
    return audio if rms(low) <= HARMLESS * rms(high[..., inside]) else high
