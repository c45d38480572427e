"""Pairs are in step, whichever channel leads, for all who open them: training, validation, evaluation, fitting."""

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
STEPS = 300  # samples between the channels: 19 ms, as much as an evaluation would mend by itself


@pytest.fixture(scope="module", params=(STEPS, -STEPS), ids=("lags", "leads"))
def entry(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, speech: Callable[..., np.ndarray]
) -> Entry:
    """Two seconds whose body channel is half the air channel, upside down, and lags or leads."""
    folder, step = tmp_path_factory.mktemp("pair"), request.param
    air = speech(2 * RATE + STEPS)
    bone = -0.5 * np.pad(air, (step, 0)) if step > 0 else -0.5 * air[-step:]
    for side, sound in (("air", air), ("bone", bone)):
        sound_files.write(folder / f"{side}.wav", sound, RATE, subtype="FLOAT")
    return Entry(str(folder / "air.wav"), str(folder / "bone.wav"), "p", 2.0, delay=step / RATE)


def trained_on(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    config = PairConfig(segment_length=8000, real_fraction=1.0, joint_jitter_db=0.0, degraded_jitter_db=0.0)
    degraded, clean = PairDataset([entry], config).batch(1, 0, 0)
    return degraded[0, 0].numpy(), clean[0, 0].numpy()


def held_out(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    (example,) = examples([entry], PairConfig(), items=1, seconds=1.0, hop_length=256)
    return example.degraded[0, 0].numpy(), example.clean[0, 0].numpy()


def evaluated(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    return PairSource(Path()).read(entry)


def fitted_to(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    (recording,) = load_recordings([entry], RATE)
    return recording.degraded, recording.clean


@pytest.mark.parametrize("user", [trained_on, held_out, evaluated, fitted_to])
def test_every_user_of_a_pair_has_it_in_step(entry: Entry, user: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    degraded, clean = user(entry)
    length = min(len(degraded), len(clean))
    assert length >= 8000
    correlation = np.corrcoef(degraded[:length], clean[:length])[0, 1]
    assert correlation == pytest.approx(-1, abs=1e-4)


def test_a_pair_begins_where_both_channels_have_begun(entry: Entry) -> None:
    degraded, clean = open_pair(entry, RATE)
    air = read_mono(str(entry.clean), RATE)
    np.testing.assert_array_equal(clean, air[max(0, -round(entry.delay * RATE)) :])
    np.testing.assert_array_equal(degraded, -0.5 * clean[: len(degraded)])
    assert len(degraded) == len(clean)


def test_a_delay_counts_at_the_rate_that_is_asked_for(entry: Entry) -> None:
    degraded, clean = open_pair(entry, 8000).cut()
    assert len(degraded) == len(clean) == pytest.approx(16000, abs=STEPS)
    assert np.corrcoef(degraded, clean)[0, 1] < -0.999


def test_the_end_stays_as_it_is_unless_cut(entry: Entry, tmp_path: Path) -> None:
    short = read_mono(str(entry.degraded), RATE)[:-77]
    sound_files.write(tmp_path / "bone.wav", short, RATE, subtype="FLOAT")
    pair = open_pair(replace(entry, degraded=str(tmp_path / "bone.wav")), RATE)
    assert len(pair.clean) - len(pair.degraded) == 77
    assert [len(side) for side in pair.cut()] == 2 * [len(pair.degraded)]


@pytest.mark.parametrize("user", [trained_on, held_out, evaluated, fitted_to])
def test_every_user_of_a_pair_honors_drift_and_polarity(
    user: Callable[..., tuple[np.ndarray, np.ndarray]], tmp_path: Path
) -> None:
    """A bone channel that is upside down and counts 2000 ppm more: half a period of 1 kHz in a quarter of a second."""
    time = np.arange(2 * RATE) / RATE
    tones = (220.0, 523.0, 941.0, 1370.0)
    air, bone = (
        sum(0.1 * np.sin(2 * np.pi * hz * at + hz) for hz in tones)
        for at in (time, (np.arange(round(2.004 * RATE + 300)) - 300) / (1.002 * RATE))
    )
    sound_files.write(tmp_path / "air.wav", air, RATE, subtype="FLOAT")
    sound_files.write(tmp_path / "bone.wav", -bone, RATE, subtype="FLOAT")
    entry = Entry(str(tmp_path / "air.wav"), str(tmp_path / "bone.wav"), "p", 2.0, "", 300 / RATE, 2000.0, True)
    degraded, clean = user(entry)
    length = min(len(degraded), len(clean))
    assert length >= 8000
    assert np.corrcoef(degraded[:length], clean[:length])[0, 1] == pytest.approx(1, abs=1e-3)


def test_interpolation_is_exact_to_a_ten_thousandth() -> None:
    places = 40.3 + np.arange(4000) * 1.0003
    tone = np.sin(0.6 * np.arange(4200) + 1).astype(np.float32)  # 1.5 kHz at 16 kHz
    np.testing.assert_allclose(interpolate(tone, places), np.sin(0.6 * places + 1), atol=3e-4)


@pytest.mark.parametrize("delay", [3.0, -3.0])
def test_a_delay_that_leaves_nothing_is_refused_by_name(entry: Entry, delay: float) -> None:
    wrong = replace(entry, delay=delay)
    for use in (lambda: open_pair(wrong, RATE), lambda: trained_on(wrong), lambda: held_out(wrong)):
        with pytest.raises(DataError, match=rf"bone\.wav: delay is -?{3 * RATE} samples: .* nothing is in common"):
            use()


def test_what_both_have_is_told_on_the_clean_channels_clock() -> None:
    assert Alignment("x", 10).shared(100, 100) == (0, 90)
    assert Alignment("x", -10).shared(100, 100) == (10, 100)
    assert Alignment("x", -10).shared(100, 50) == (10, 60)


def test_an_entry_of_one_channel_and_a_damaged_one_are_errors(entry: Entry, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bone\.wav: has no second channel"):
        open_pair(replace(entry, clean=None), RATE)
    sound_files.write(tmp_path / "nan.wav", np.array([0.1, np.nan], np.float32), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav: holds samples that are not finite"):
        open_pair(replace(entry, degraded=str(tmp_path / "nan.wav")), RATE)
