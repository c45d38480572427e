"""Tests of aligned pairs in training, validation, evaluation and sensor fit, whichever channel leads."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twostage.audio import sound_files
from twostage.data.aligned_pair import Alignment, interpolate, open_pair, read_mono
from twostage.data.manifest import Entry
from twostage.data.pairs import PairConfig, PairDataset
from twostage.data.sensor_fit import load_recordings
from twostage.evaluation.pairs import PairSource
from twostage.training.validation import examples
from twostage.utils.errors import AudioError, DataError

RATE = 16000
OFFSET = 300  # samples between the channels: 19 ms, small enough for an evaluation to correct it by itself


@pytest.fixture(scope="module", params=(OFFSET, -OFFSET), ids=("lags", "leads"))
def entry(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, speech: Callable[..., np.ndarray]
) -> Entry:
    """A pair of two seconds whose body channel is the air channel inverted, at half the amplitude, later or earlier."""
    folder, offset = tmp_path_factory.mktemp("pair"), request.param
    air = speech(2 * RATE + OFFSET)
    bone = -0.5 * np.pad(air, (offset, 0)) if offset > 0 else -0.5 * air[-offset:]
    for side, sound in (("air", air), ("bone", bone)):
        sound_files.write(folder / f"{side}.wav", sound, RATE, subtype="FLOAT")
    return Entry(str(folder / "air.wav"), str(folder / "bone.wav"), "p", 2.0, delay=offset / RATE)


def segments_of_training(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    config = PairConfig(segment_length=8000, real_fraction=1.0, joint_jitter_db=0.0, degraded_jitter_db=0.0)
    degraded, clean = PairDataset([entry], config).batch(1, 0, 0)
    return degraded[0, 0].numpy(), clean[0, 0].numpy()


def segments_of_validation(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    (example,) = examples([entry], PairConfig(), items=1, seconds=1.0, hop_length=256)
    return example.degraded[0, 0].numpy(), example.clean[0, 0].numpy()


def signals_of_evaluation(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    return PairSource(Path()).read(entry)


def signals_of_sensor_fit(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    (recording,) = load_recordings([entry], RATE)
    return recording.degraded, recording.clean


@pytest.mark.parametrize(
    "open_signals", [segments_of_training, segments_of_validation, signals_of_evaluation, signals_of_sensor_fit]
)
def test_a_pair_is_in_step_wherever_it_is_used(
    entry: Entry, open_signals: Callable[..., tuple[np.ndarray, np.ndarray]]
) -> None:
    degraded, clean = open_signals(entry)
    length = min(len(degraded), len(clean))
    assert length >= 8000
    correlation = np.corrcoef(degraded[:length], clean[:length])[0, 1]
    assert correlation == pytest.approx(-1, abs=1e-4)


def test_a_pair_starts_where_both_channels_have_started(entry: Entry) -> None:
    degraded, clean = open_pair(entry, RATE)
    air = read_mono(str(entry.clean), RATE)
    np.testing.assert_array_equal(clean, air[max(0, -round(entry.delay * RATE)) :])
    np.testing.assert_array_equal(degraded, -0.5 * clean[: len(degraded)])
    assert len(degraded) == len(clean)


def test_the_delay_is_converted_to_the_requested_sample_rate(entry: Entry) -> None:
    degraded, clean = open_pair(entry, 8000).cut()
    assert len(degraded) == len(clean) == pytest.approx(16000, abs=OFFSET)
    assert np.corrcoef(degraded, clean)[0, 1] < -0.999


def test_channels_keep_their_ends_unless_cut(entry: Entry, tmp_path: Path) -> None:
    short = read_mono(str(entry.degraded), RATE)[:-77]
    sound_files.write(tmp_path / "bone.wav", short, RATE, subtype="FLOAT")
    pair = open_pair(replace(entry, degraded=str(tmp_path / "bone.wav")), RATE)
    assert len(pair.clean) - len(pair.degraded) == 77
    assert [len(side) for side in pair.cut()] == 2 * [len(pair.degraded)]


@pytest.mark.parametrize(
    "open_signals", [segments_of_training, segments_of_validation, signals_of_evaluation, signals_of_sensor_fit]
)
def test_drift_and_polarity_are_corrected_wherever_a_pair_is_used(
    open_signals: Callable[..., tuple[np.ndarray, np.ndarray]], tmp_path: Path
) -> None:
    """The bone channel is inverted and drifts by 2000 ppm: half a period of 1 kHz in a quarter of a second."""
    time = np.arange(2 * RATE) / RATE
    tones = (220.0, 523.0, 941.0, 1370.0)
    air, bone = (
        sum(0.1 * np.sin(2 * np.pi * hz * at + hz) for hz in tones)
        for at in (time, (np.arange(round(2.004 * RATE + 300)) - 300) / (1.002 * RATE))
    )
    sound_files.write(tmp_path / "air.wav", air, RATE, subtype="FLOAT")
    sound_files.write(tmp_path / "bone.wav", -bone, RATE, subtype="FLOAT")
    entry = Entry(str(tmp_path / "air.wav"), str(tmp_path / "bone.wav"), "p", 2.0, "", 300 / RATE, 2000.0, True)
    degraded, clean = open_signals(entry)
    length = min(len(degraded), len(clean))
    assert length >= 8000
    assert np.corrcoef(degraded[:length], clean[:length])[0, 1] == pytest.approx(1, abs=1e-3)


def test_interpolation_has_an_error_below_3e_4() -> None:
    positions = 40.3 + np.arange(4000) * 1.0003
    tone = np.sin(0.6 * np.arange(4200) + 1).astype(np.float32)  # 1.5 kHz at 16 kHz
    np.testing.assert_allclose(interpolate(tone, positions), np.sin(0.6 * positions + 1), atol=3e-4)


@pytest.mark.parametrize("delay", [3.0, -3.0])
def test_a_delay_beyond_the_length_is_an_error_that_names_the_file(entry: Entry, delay: float) -> None:
    invalid_entry = replace(entry, delay=delay)
    for open_invalid in (
        lambda: open_pair(invalid_entry, RATE),
        lambda: segments_of_training(invalid_entry),
        lambda: segments_of_validation(invalid_entry),
    ):
        with pytest.raises(DataError, match=rf"bone\.wav: delay is -?{3 * RATE} samples: .* nothing is in common"):
            open_invalid()


def test_the_shared_range_is_in_samples_of_the_clean_channel() -> None:
    assert Alignment("x", 10).shared(100, 100) == (0, 90)
    assert Alignment("x", -10).shared(100, 100) == (10, 100)
    assert Alignment("x", -10).shared(100, 50) == (10, 60)


def test_an_entry_of_one_channel_and_a_damaged_file_are_errors(entry: Entry, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bone\.wav: has no second channel"):
        open_pair(replace(entry, clean=None), RATE)
    sound_files.write(tmp_path / "nan.wav", np.array([0.1, np.nan], np.float32), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav: holds samples that are not finite"):
        open_pair(replace(entry, degraded=str(tmp_path / "nan.wav")), RATE)
