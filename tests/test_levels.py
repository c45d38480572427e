import numpy as np
import pytest

from twostage.audio import levels


def noise(frames: int, channels: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((channels, frames))).astype(np.float32)


def test_rms_of_a_sine_and_of_nothing() -> None:
    assert levels.rms(np.sin(np.arange(20000) * 0.1)) == pytest.approx(0.5**0.5, rel=1e-3)
    assert levels.rms(np.zeros((2, 0))) == 0


def test_speech_is_levelled_and_silence_left() -> None:
    made = levels.levelled(noise(16000, 1)[0], 16000)
    assert levels.active_level(made, 16000) == pytest.approx(levels.LEVEL, abs=1e-3)
    assert made.dtype == np.float32
    assert not levels.levelled(np.zeros(100, np.float32), 16000).any()


def test_active_level_leaves_pauses_out() -> None:
    loud = 0.1 * np.sqrt(2) * np.sin(np.arange(16000) * 0.3).astype(np.float32)
    quiet = loud * 0.01
    assert levels.active_level(loud, 16000) == pytest.approx(-20, abs=0.05)
    assert levels.active_level(np.concatenate([loud, quiet, quiet]), 16000) == pytest.approx(-20, abs=0.05)
    assert levels.active_level(np.zeros(100), 16000) == -np.inf
    assert levels.active_level(np.array([0.1]), 16000) == pytest.approx(-20)


def test_the_meter_does_not_mind_blocks() -> None:
    given = noise(16000, 2) * np.linspace(0, 1, 16000, dtype=np.float32)
    whole, blocks = levels.LevelMeter(2, 16000), levels.LevelMeter(2, 16000)
    whole.add(given)
    for block in np.array_split(given, 37, axis=1):
        blocks.add(block)
    assert np.allclose(whole.levels(), blocks.levels())
    assert np.allclose(blocks.peak, np.abs(given).max(axis=1))
