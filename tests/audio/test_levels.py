"""Tests of the level meters: RMS and active speech level after ITU-T P.56."""

import numpy as np
import pytest

from twostage.audio import levels, sound_files


def noise(frames: int, channels: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((channels, frames))).astype(np.float32)


def test_rms_of_a_sine_and_of_an_empty_array() -> None:
    assert levels.rms(np.sin(np.arange(20000) * 0.1)) == pytest.approx(0.5**0.5, rel=1e-3)
    assert levels.rms(np.zeros((2, 0))) == 0


def test_speech_is_leveled_and_silence_stays_silent() -> None:
    output = levels.leveled(noise(16000, 1)[0], 16000)
    assert levels.active_level(output, 16000) == pytest.approx(levels.LEVEL, abs=1e-3)
    assert output.dtype == np.float32
    assert not levels.leveled(np.zeros(100, np.float32), 16000).any()
    almost = (1e-41 * noise(16000, 1)[0].astype(np.float64)).astype(np.float32)
    assert almost.any()
    assert np.array_equal(levels.leveled(almost, 16000), almost)


def test_the_active_level_ignores_pauses() -> None:
    loud = 0.1 * np.sqrt(2) * np.sin(np.arange(16000) * 0.3).astype(np.float32)
    quiet = loud * 0.01
    assert levels.active_level(loud, 16000) == pytest.approx(-20, abs=0.05)
    assert levels.active_level(np.concatenate([loud, quiet, quiet]), 16000) == pytest.approx(-20, abs=0.05)
    assert levels.active_level(np.zeros(100), 16000) == -np.inf
    assert levels.active_level(np.array([0.1]), 16000) == pytest.approx(-20)


def test_the_meter_measures_the_same_in_blocks() -> None:
    inputs = noise(16000, 2) * np.linspace(0, 1, 16000, dtype=np.float32)
    whole, blocks = levels.LevelMeter(2, 16000), levels.LevelMeter(2, 16000)
    whole.add(inputs)
    for block in np.array_split(inputs, 37, axis=1):
        blocks.add(block)
    assert np.allclose(whole.levels(), blocks.levels())
    assert np.allclose(blocks.peak, np.abs(inputs).max(axis=1))


def disturbance(kind: str, frames: int, above_db: float, level: float) -> np.ndarray:
    """A sound that is not speech, (frames,), ``above_db`` above the speech level."""
    rng, time = np.random.default_rng(1), np.arange(frames) / 16000
    amplitude, output = 10 ** ((level + above_db) / 20), np.zeros(frames)
    if kind == "click":
        output[frames // 2] = 18 * amplitude  # so that a frame of 20 ms has this level
    elif kind == "taps":
        for place in (0.2, 0.5, 0.8):
            output[int(place * frames) :][:32] = 3.2 * amplitude
    elif kind == "door":
        output[frames // 2 :] = (
            amplitude * np.exp(-time[: frames - frames // 2] / 0.1) * rng.standard_normal(frames - frames // 2)
        )
    elif kind == "hum":
        output = amplitude * 2**0.5 * np.sin(2 * np.pi * 50 * time)
    elif kind == "rumble":
        output = amplitude * 2**0.5 * np.sin(2 * np.pi * 30 * time + 3 * np.sin(2 * np.pi * 2 * time))
    return output


@pytest.mark.parametrize("above_db", [20.0, 30.0, 40.0])
@pytest.mark.parametrize("kind", ["click", "taps", "door", "hum", "rumble"])
def test_loud_disturbances_do_not_change_the_speech_level(kind: str, above_db: float) -> None:
    for name in ("clean", "throat"):
        inputs = sound_files.read(f"samples/{name}.flac")[0][0]
        level = levels.active_level(inputs, 16000)
        actual = levels.active_level(inputs + disturbance(kind, len(inputs), above_db, level), 16000)
        assert actual == pytest.approx(level, abs=1.0)


def test_a_single_word_in_noise_counts_as_speech() -> None:
    word = sound_files.read("samples/clean.flac")[0][0][20000:28000]
    recording = 0.001 * np.random.default_rng(0).standard_normal(20 * 16000).astype(np.float32)
    recording[100000:108000] += word
    assert levels.active_level(recording, 16000) == pytest.approx(levels.active_level(word, 16000), abs=0.5)


def test_mains_hum_and_an_offset_do_not_change_the_level() -> None:
    time = np.arange(32000) / 16000
    voice = 0.1 * np.sin(2 * np.pi * 100 * time)
    for hertz in (0.0, 16.7, 50.0, 60.0):
        disturbed = voice + 0.5 * np.cos(2 * np.pi * hertz * time)
        assert levels.active_level(disturbed, 16000) == pytest.approx(levels.active_level(voice, 16000), abs=0.1)
