"""Tests of recognizing sound files in a pipe of raw samples."""

from pathlib import Path

import numpy as np
import pytest

from twostage.audio import sound_files
from twostage.audio.signatures import ENOUGH, container_of, undecided

NAMES = {"wav": "WAV", "rf64": "RF64", "w64": "W64", "aiff": "AIFF", "flac": "FLAC", "ogg": "Ogg", "opus": "Ogg"}
NAMES |= {"mp3": "MP3", "au": "AU", "caf": "CAF"}


@pytest.mark.parametrize("suffix", NAMES)
def test_a_sound_file_is_recognized_by_its_first_bytes(tmp_path: Path, suffix: str) -> None:
    sound_files.write(tmp_path / f"a.{suffix}", 0.1 * np.sin(np.arange(48000) * 0.1), 48000)
    data = (tmp_path / f"a.{suffix}").read_bytes()
    assert container_of(data[:ENOUGH]) == NAMES[suffix]
    assert container_of(b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(20)) == "MP3"
    for length in range(10):  # undecided as long as it may still become a file
        assert undecided(data[:length]) or container_of(data[:length]) == NAMES[suffix]


def test_raw_samples_are_not_recognized_as_a_file() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        samples = (3000 * rng.standard_normal(ENOUGH // 2)).astype("<i2")
        samples[0] = -1025  # the bytes ff fb, the start of an MP3 frame
        assert container_of(samples.tobytes()) is None
    assert not undecided(bytes(16))
