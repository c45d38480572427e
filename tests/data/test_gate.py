"""Tests of the noise gate: it attenuates steady noise, and keeps louder sound and the length."""

import numpy as np
import pytest

from twostage.audio.levels import rms
from twostage.data.gate import gate

RATE = 16000


def voice(seconds: float = 4.0) -> np.ndarray:
    """Harmonics and silence, alternating every half second."""
    time = np.arange(round(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * 125 * k * time) / k for k in range(1, 20))
    return (0.1 * tones * (time % 1 < 0.5)).astype(np.float32)


def noise(frames: int, level: float) -> np.ndarray:
    return (level * np.random.default_rng(0).standard_normal(frames)).astype(np.float32)


def gain_db(after: np.ndarray, before: np.ndarray) -> float:
    return 20 * np.log10(rms(after) / rms(before))


@pytest.mark.parametrize(("depth", "least"), [(6.0, 5.5), (12.0, 9.5), (20.0, 12.5)])
def test_noise_in_pauses_is_attenuated_by_at_most_the_depth(depth: float, least: float) -> None:
    speech = voice()
    noisy = speech + noise(len(speech), 1e-3)
    pauses = (np.arange(len(speech)) / RATE) % 1 > 0.6  # without the frames that contain the end of a voice
    # the parts of the noise that exceed its mean remain, however large the depth
    assert -depth <= gain_db(gate(noisy, RATE, depth)[pauses], noisy[pauses]) <= -least


def test_a_voice_far_above_the_noise_is_not_changed() -> None:
    speech = voice()
    gated = gate(speech + noise(len(speech), 1e-4), RATE, 20.0)
    voiced = (np.arange(len(speech)) / RATE) % 1 < 0.5
    assert gain_db(gated[voiced], speech[voiced]) == pytest.approx(0, abs=0.5)
    assert gain_db(gated[voiced] - speech[voiced], speech[voiced]) < -30


def test_a_depth_of_zero_changes_nothing() -> None:
    noisy = voice(1.0) + noise(RATE, 1e-2)
    assert np.abs(gate(noisy, RATE, 0.0) - noisy).max() < 1e-5


def test_silence_stays_silent() -> None:
    assert not gate(np.zeros(5000, np.float32), RATE, 20.0).any()


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
@pytest.mark.parametrize("frames", [0, 1, 100, 511, 512, 20001])
def test_the_length_is_kept_even_below_one_frame(frames: int, sample_rate: int) -> None:
    gated = gate(noise(frames, 0.1), sample_rate, 20.0)
    assert gated.shape == (frames,)
    assert gated.dtype == np.float32
    assert np.isfinite(gated).all()


def test_long_audio_is_gated_in_equal_parts_of_a_minute_or_more() -> None:
    speech = voice(130.0)
    long = speech + noise(len(speech), 1e-3)
    gated = gate(long, RATE, 12.0)
    for part in (slice(65 * RATE), slice(65 * RATE, None)):
        assert np.array_equal(gated[part], gate(long[part], RATE, 12.0))


def test_speech_just_after_a_minute_is_not_taken_for_noise() -> None:
    long = voice(60.05)
    rest = slice(60 * RATE, None)
    assert rms(gate(long, RATE, 20.0)[rest]) > 0.9 * rms(long[rest])
