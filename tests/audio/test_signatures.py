"""Claims about the kinds of files that a pipe tells from raw samples."""

from pathlib import Path

import numpy as np
import pytest

from twostage.audio import sound_files
from twostage.audio.signatures import ENOUGH, container_of, undecided

NAMES = {"wav": "WAV", "rf64": "RF64", "w64": "W64", "aiff": "AIFF", "flac": "FLAC", "ogg": "Ogg", "opus": "Ogg"}
NAMES |= {"mp3": "MP3", "au": "AU", "caf": "CAF"}


@pytest.mark.parametrize("suffix", NAMES)
def test_a_sound_file_is_known_by_its_beginning(tmp_path: Path, suffix: str) -> None:
    sound_files.write(tmp_path / f"a.{suffix}", 0.1 * np.sin(np.arange(48000) * 0.1), 48000)
    data = (tmp_path / f"a.{suffix}").read_bytes()
    assert container_of(data[:ENOUGH]) == NAMES[suffix]
    assert container_of(b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(20)) == "MP3"
    for have in range(10):  # nothing is played while it may still be a file
        assert undecided(data[:have]) or container_of(data[:have]) == NAMES[suffix]


def test_raw_samples_are_none_of_them() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        samples = (3000 * rng.standard_normal(ENOUGH // 2)).astype("<i2")
        samples[0] = -1025  # the bytes ff fb, which begin a frame of MP3
        assert container_of(samples.tobytes()) is None
    assert not undecided(bytes(16))
