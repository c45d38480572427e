"""Tests of the sensor fit: it measures known sensors, and simulations with the fit measure the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twostage.audio import sound_files
from twostage.data.manifest import Entry
from twostage.data.sensor_fit import (
    FittedSensor,
    Recording,
    SensorStatistics,
    fit_sensor,
    load_recordings,
    measure_sensor,
)
from twostage.data.sensor_plot import draw_sensor
from twostage.data.sensors import PRESETS, Sensor, load_sensor, save_sensor
from twostage.data.simulator import seeded, simulate
from twostage.utils.errors import DataError

RATE = 16000
GRID = (0.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0)


def speech_like(seconds: float, seed: int) -> np.ndarray:
    """Syllables of voice and noise of varied spectra, separated by pauses: speech-like in every band."""
    rng = np.random.default_rng(seed)
    syllables, pitch = [], rng.uniform(90, 220)
    while sum(map(len, syllables)) < seconds * RATE:
        length = int(rng.uniform(0.1, 0.3) * RATE)
        time = np.arange(length) / RATE
        tilt = rng.uniform(0.3, 1.5)
        voice = sum(np.sin(2 * np.pi * k * pitch * time + rng.uniform(0, 6)) / k**tilt for k in range(1, 35))
        hiss = np.diff(rng.standard_normal(length + 1))
        mixed = 10 ** rng.uniform(-1, 0) * voice + 10 ** rng.uniform(-1.5, 0.3) * hiss
        syllables += [0.05 * np.hanning(length) * mixed, np.zeros(int(rng.uniform(0, 0.2) * RATE))]
    clean = np.concatenate(syllables)[: int(seconds * RATE)]
    return (clean + 1e-5 * rng.standard_normal(len(clean))).astype(np.float32)


def simulated_pairs(sensor: Sensor, count: int = 4, seconds: float = 4.0) -> list[Recording]:
    clean = [speech_like(seconds, seed) for seed in range(count)]
    return [Recording(x, simulate(x, RATE, sensor, seeded(7, i))) for i, x in enumerate(clean)]


@pytest.fixture(scope="module")
def throat() -> tuple[list[Recording], FittedSensor]:
    sensor = replace(PRESETS["throat"], thump_db=None, heart_db=None, noise_spread_db=0.0)
    recordings = simulated_pairs(sensor, 5)
    return recordings, fit_sensor(recordings, RATE)


def value_at(statistics: SensorStatistics, name: str, hz: float) -> float:
    return float(np.interp(hz, statistics.frequencies, getattr(statistics, name)))


def test_the_response_of_a_filter_is_measured() -> None:
    sensor = Sensor(frequencies=GRID, response_db=(0.0, 0.0, -10.0, -20.0, -20.0, -20.0))
    actual = measure_sensor(simulated_pairs(sensor), RATE)
    for hz, expected in ((1000, -10), (2800, -20)):
        assert value_at(actual, "response_db", hz) - value_at(actual, "response_db", 300) == pytest.approx(
            expected, abs=1.5
        )
        assert value_at(actual, "coherence", hz) > 0.95
        assert value_at(actual, "slope", hz) == pytest.approx(1, abs=0.15)
        assert value_at(actual, "slope", hz) + value_at(actual, "voice_slope", hz) == pytest.approx(1, abs=0.1)
        assert value_at(actual, "gain_spread_db", hz) < 1.5
    assert actual.band_limit == 0.0


def test_noise_and_band_limit_are_measured() -> None:
    flat = (-60.0,) * len(GRID)
    sensor = Sensor(frequencies=GRID, noise_db=flat, band_limit=3000.0, rounding_db=-80.0)
    actual = measure_sensor(simulated_pairs(sensor), RATE)
    assert actual.band_limit == pytest.approx(3000, rel=0.03)
    # the band above the limit is removed: at the same level, the rest of the speech is louder, and so is the noise
    lift = value_at(actual, "response_db", 1000)
    assert value_at(actual, "noise_db", 1500) == pytest.approx(-60 + lift, abs=1.0)
    assert value_at(actual, "noise_db", 5000) == pytest.approx(-80 - 10 * np.log10(8000) + lift, abs=1.5)


def test_a_simulation_with_the_fit_has_the_statistics_of_the_recordings(
    throat: tuple[list[Recording], FittedSensor],
) -> None:
    """Below the band limit and above 150 Hz: response 2 dB, coherence 0.06, noise 1.5 dB, slopes 0.12 on average.

    With its random gains as functions of the speech, which is how trainings use it, every recording has other slopes.
    """
    recordings, fitted = throat
    assert fitted.sensor.speech_share == 0.75
    sensor = replace(fitted.sensor, speech_share=0.0)
    output = [Recording(r.clean, simulate(r.clean, RATE, sensor, seeded(99, i))) for i, r in enumerate(recordings)]
    expected, actual = fitted.measured, measure_sensor(output, RATE)
    audible = (expected.frequencies > 150) & (expected.frequencies < 3700)

    def error(name: str) -> float:
        return float(np.abs(getattr(expected, name) - getattr(actual, name))[audible].mean())

    assert error("response_db") < 2.0
    assert error("coherence") < 0.06
    assert error("noise_db") < 1.5
    assert error("gain_spread_db") < 1.0
    assert error("slope") < 0.12
    assert error("voice_slope") < 0.15
    assert actual.band_limit == pytest.approx(expected.band_limit, rel=0.04)


def test_the_fit_recovers_the_parameters_of_the_sensor(throat: tuple[list[Recording], FittedSensor]) -> None:
    sensor = throat[1].sensor
    assert sensor.band_limit == pytest.approx(4060, rel=0.04)
    grid = np.array(sensor.frequencies)
    high, low = (grid > 1500) & (grid < 3500), (grid > 200) & (grid < 450)
    assert np.mean(np.array(sensor.slope)[high]) == pytest.approx(0.18, abs=0.15)
    assert np.mean(np.array(sensor.slope)[low]) > 0.7
    assert np.mean(np.array(sensor.coherence)[high]) < 0.25


def test_a_fit_is_reproducible_and_read_back_from_its_file(tmp_path: Path) -> None:
    recordings = simulated_pairs(PRESETS["forehead"], 2, 2.5)
    fitted = fit_sensor(recordings, RATE, rounds=1)
    assert fit_sensor(recordings, RATE, rounds=1).sensor == fitted.sensor
    save_sensor(tmp_path / "s.yaml", fitted.sensor)
    assert load_sensor(tmp_path / "s.yaml") == fitted.sensor
    draw_sensor(tmp_path / "s.png", fitted)
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_recordings_are_loaded_aligned(tmp_path: Path) -> None:
    clean = speech_like(1.0, 0)
    sound_files.write(tmp_path / "air.wav", clean, RATE, subtype="FLOAT")
    sound_files.write(tmp_path / "bone.wav", np.pad(clean, (80, 0)), RATE, subtype="FLOAT")
    paths = str(tmp_path / "air.wav"), str(tmp_path / "bone.wav")
    (late,) = load_recordings([Entry(*paths, "p", 1.0, delay=80 / RATE)], RATE)
    np.testing.assert_array_equal(late.clean, late.degraded)
    (early,) = load_recordings([Entry(*paths[::-1], "p", 1.0, delay=-80 / RATE)], RATE)
    np.testing.assert_array_equal(early.clean, early.degraded)


def test_too_little_speech_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too little speech"):
        measure_sensor([Recording(speech_like(0.3, 0), speech_like(0.3, 0))], RATE)
    sound_files.write(tmp_path / "silent.wav", np.zeros(RATE, np.float32), RATE)
    path = str(tmp_path / "silent.wav")
    with pytest.raises(DataError, match=r"silent\.wav: silent"):
        load_recordings([Entry(path, path, "p", 1.0)], RATE)
