"""Reads speech for everything except restoring: one channel, one sample rate, nothing below speech."""

from pathlib import Path

import numpy as np

from twostage.audio import sound_files
from twostage.audio.highpass import highpass
from twostage.audio.levels import rms
from twostage.audio.types import Audio

HARMLESS = 0.01  # of the amplitude of the speech: sound below speech that is no louder is not removed
ENDS = 0.1  # seconds at each end that are ignored for this, because speech and drift cannot be separated there


def read_speech(path: str | Path, sample_rate: int | None = None) -> tuple[Audio, int]:
    """The first channel (T,) of a sound file at ``sample_rate`` (default: its own), and that rate.

    One sample that is not finite makes all samples so; callers have to check.
    """
    audio, file_rate = sound_files.read(path)
    target_rate = sample_rate or file_rate
    return sound_files.resample(without_drift(audio[0], file_rate), file_rate, target_rate), target_rate


def without_drift(audio: Audio, sample_rate: int) -> Audio:
    """Audio (..., T) without everything below speech; identical to the input if there is hardly anything below."""
    speech = highpass(audio, sample_rate)
    end = round(ENDS * sample_rate)
    middle = slice(end, -end) if audio.shape[-1] > 3 * end else slice(None)
    low = np.asarray(audio - speech)[..., middle]
    return audio if rms(low) <= HARMLESS * rms(speech[..., middle]) else speech
