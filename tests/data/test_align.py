"""Offsets, drifts and polarities that are known are found, and pairs that must be refused are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soxr

from twostage.audio import sound_files
from twostage.audio.speech import without_drift
from twostage.data.align import AlignConfig, Verdict, _significant, agree_on_polarity, align, align_pair
from twostage.data.aligned_pair import open_pair
from twostage.data.manifest import Entry
from twostage.data.sensors import PRESETS
from twostage.data.simulator import simulate
from twostage.data.timing import Timing, estimate_timing

Speech = Callable[..., np.ndarray]
RATE = 16000


def talk(frames: int, seed: int = 0) -> np.ndarray:
    """Voiced syllables of many lengths, pitches and timbres, hiss between some of them, and pauses."""
    rng = np.random.default_rng(seed)
    out = 1e-4 * rng.standard_normal(frames)
    place = 0
    while place < frames:
        length = int(RATE * rng.uniform(0.08, 0.35))
        time = np.arange(min(length, frames - place)) / RATE
        phase = 2 * np.pi * (rng.uniform(90, 220) * time + rng.uniform(-80, 80) * time**2)
        voice = sum(rng.uniform(0.2, 1) / k * np.sin(k * phase + rng.uniform(0, 6)) for k in range(1, 12))
        hiss = rng.standard_normal(len(time)) * rng.uniform(0, 0.3)
        window = np.hanning(length)[: len(time)]
        out[place : place + len(time)] += 0.1 * rng.uniform(0.3, 1) * window * (voice + hiss)
        place += length + int(RATE * rng.exponential(0.12))
    return out.astype(np.float32)


def worn(air: np.ndarray, seed: int = 0) -> np.ndarray:
    return simulate(air, RATE, PRESETS["throat"], np.random.default_rng(seed))


def shifted(signal: np.ndarray, samples: float) -> np.ndarray:
    """Delay by a fraction of a sample, through the phase."""
    size = 2 * len(signal)
    turn = np.exp(-2j * np.pi * np.arange(size // 2 + 1) * samples / size)
    return np.fft.irfft(np.fft.rfft(signal, size) * turn, size)[: len(signal)].astype(np.float32)


def another_clock(signal: np.ndarray, ppm: float) -> np.ndarray:
    """What a recorder writes whose clock counts more by ``ppm``."""
    return soxr.resample(signal.astype(np.float64), RATE, RATE * (1 + ppm * 1e-6), quality="VHQ").astype(np.float32)


def room(seconds: float, seed: int = 9) -> np.ndarray:
    return (1e-3 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize("delay", [-200.0, -3.0, 0.0, 0.5, 17.25, 310.0])
def test_delay_is_found_to_a_fraction_of_a_sample(delay: float) -> None:
    air = np.pad(talk(3 * RATE), 400)
    actual = estimate_timing(shifted(air, delay), air, RATE)
    middle = (actual.delay + actual.drift * 1e-6 * len(air) / RATE / 2) * RATE
    assert middle == pytest.approx(delay, abs=0.1)
    assert actual.peak > 0.95


@pytest.mark.parametrize("preset", PRESETS)
def test_delay_survives_the_body(preset: str) -> None:
    air = talk(4 * RATE)
    bone = simulate(air, RATE, PRESETS[preset], np.random.default_rng(0))
    actual = align_pair(np.pad(bone, (41, 0)), air, RATE, AlignConfig())
    assert not actual.problem
    assert actual.delay * RATE == pytest.approx(41, abs=4)
    assert actual.peak > 0.3
    assert actual.drift == 0


# seconds of delay, ppm of drift, polarity, seconds that one goes on for longer (negative: air)
RECORDERS = [
    (0.01, 0, 1, 0),
    (-3, 50, 1, 5),
    (-60, -300, -1, 0),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in ((3, 0, -1, 0), (60, 300, 1, 0), (0, 50, -1, -20), (3, 300, 1, -5), (-0.01, 1, 1, 0))
    ),
]


@pytest.mark.parametrize(("delay", "ppm", "sign", "longer"), RECORDERS)
def test_two_recorders(delay: float, ppm: float, sign: int, longer: float) -> None:
    air = talk(40 * RATE)
    bone = sign * another_clock(worn(air), ppm)
    begin = max(0.0, -delay)
    air_file = np.concatenate([room(begin), air, room(max(0.0, -longer), 3)])
    bone_file = np.concatenate([room(max(0.0, delay), 5), bone, room(max(0.0, longer), 6)])
    actual = align_pair(bone_file, air_file, RATE, AlignConfig())
    assert not actual.problem
    assert actual.inverted == (sign < 0)
    assert actual.drift == pytest.approx(ppm, abs=5)
    # `begin` seconds of the air file's clock lie before the sound that both have
    ends = [
        (actual.delay + actual.drift * 1e-6 * (begin + time) - (delay + ppm * 1e-6 * time)) * RATE for time in (0, 40)
    ]
    assert ends == pytest.approx([0, 0], abs=3)  # samples
    shared = min(begin + 40 + max(0, -longer), len(bone_file) / RATE - delay)
    assert actual.seconds == pytest.approx(shared - max(0.0, -delay), abs=0.05)


def test_a_pair_in_files_comes_out_in_step(tmp_path: Path) -> None:
    air = talk(30 * RATE)
    at_the_bone = worn(air)
    bone = np.concatenate([room(3), -another_clock(at_the_bone, 300)])
    sound_files.write(tmp_path / "bone.wav", bone, RATE, subtype="FLOAT")
    sound_files.write(tmp_path / "air.wav", air, RATE, subtype="FLOAT")
    ((entry, _),) = align([Entry(str(tmp_path / "air.wav"), str(tmp_path / "bone.wav"), "p", 30.0)], AlignConfig())
    assert entry.inverted
    degraded, clean = open_pair(entry, RATE).cut()
    assert len(degraded) == pytest.approx(30 * RATE, abs=20)
    expected = -without_drift(air, RATE)[: len(clean)]  # inverted as the sensor is, which keeps its polarity
    np.testing.assert_allclose(clean, expected, atol=1e-6, rtol=0)
    for second in (1, 15, 28):  # against the same sensor without offset and drift, in step all the way
        part = slice(second * RATE, (second + 1) * RATE)
        assert np.corrcoef(degraded[part], -at_the_bone[part])[0, 1] > 0.99


def test_different_takes_do_not_match_at_any_offset() -> None:
    for seed in range(4):
        verdict = align_pair(worn(talk(8 * RATE, seed)), talk(9 * RATE, seed + 10), RATE, AlignConfig())
        assert "do not match" in verdict.problem


def test_what_is_too_little_to_tell_is_no_drift() -> None:
    """Forty ppm over three seconds are two samples."""
    air = talk(3 * RATE)
    actual = align_pair(another_clock(worn(air), 40), air, RATE, AlignConfig())
    assert actual.drift == 0
    assert actual.delay * RATE == pytest.approx(1, abs=2)


def test_silence_has_no_timing(speech: Speech) -> None:
    assert estimate_timing(np.zeros(RATE, np.float32), speech(RATE), RATE).peak == 0


def test_an_unsure_polarity_is_that_of_the_corpus() -> None:
    def verdict(corpus: str, peak: float, opposite: float) -> tuple[Entry, Verdict]:
        entry = Entry("a", "b", "p", 1.0, corpus, inverted=peak < 0)
        return entry, Verdict("b", "p", peak=peak, opposite=opposite, inverted=peak < 0)

    pairs = [verdict("x", -0.6, 0.2), verdict("x", 0.4, 0.38), verdict("y", 0.6, 0.2), verdict("y", 0.4, 0.38)]
    settled = agree_on_polarity([*pairs, verdict("z", -0.4, 0.38)])
    assert [entry.inverted for entry, _ in settled] == [True, True, False, False, True]
    assert [verdict.inverted for _, verdict in settled] == [True, True, False, False, True]


def noise(frames: int, seed: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(frames).astype(np.float32)


def clip(signal: np.ndarray) -> np.ndarray:
    return np.clip(signal * 20, -1, 1)


def stretch(signal: np.ndarray) -> np.ndarray:
    """0.5 % slower: thirty milliseconds in six seconds."""
    time = np.arange(len(signal)) * 0.995
    return np.interp(time, np.arange(len(signal)), signal).astype(np.float32)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda x: x, ""),
        (lambda x: np.pad(x, (0, 4000)), ""),
        (lambda x: x * 0, "bone is silent"),
        (lambda x: noise(len(x), 5), "do not match"),
        (lambda x: np.pad(x, (0, 2 * RATE)), ""),
        (clip, "clipped"),
        (stretch, "do not match"),
        (lambda x: np.where(np.arange(len(x)) == 9, np.nan, x), "not finite"),
    ],
)
def test_bad_pairs_are_rejected_for_their_reason(spoil: Callable[[np.ndarray], np.ndarray], problem: str) -> None:
    air = talk(6 * RATE) + 0.1 * noise(6 * RATE, 1)
    verdict = align_pair(spoil(air).astype(np.float32), air, RATE, AlignConfig())
    assert (problem in verdict.problem) if problem else not verdict.problem


@pytest.mark.parametrize("side", ["bone", "air"])
def test_clipping_of_either_side_counts_and_one_peak_at_full_scale_is_none(side: str) -> None:
    clean = talk(3 * RATE) + 0.1 * noise(3 * RATE, 1)
    spoiled, peaked = clip(clean).astype(np.float32), clean.copy()
    peaked[::1000] = 1.0
    for signal, clipped in ((spoiled, True), (peaked, False)):
        pair = (signal, clean) if side == "bone" else (clean, signal)
        verdict = align_pair(*pair, RATE, AlignConfig(max_clipped=0.0))
        assert ("clipped" in verdict.problem) == clipped
        assert (verdict.clipped > 0) == clipped


@pytest.mark.parametrize(
    ("error", "seconds", "kept"),
    [(5.0, 60.0, True), (20.0, 60.0, False), (5.0, 2.0, False)],  # sure, chance, too short to matter
)
def test_a_drift_is_kept_if_it_is_sure_and_matters(error: float, seconds: float, kept: bool) -> None:
    timing = Timing(delay=0.5, drift=50.0, drift_error=error, peak=0.9, opposite=0.1, seconds=seconds)
    significant = _significant(timing, seconds)
    if kept:
        assert significant == timing
    else:
        assert significant.drift == 0
        assert significant.delay == pytest.approx(0.5 + 50e-6 * seconds / 2)  # that in the middle


def test_a_delay_beyond_the_limit_is_no_match() -> None:
    air = noise(2 * RATE, 0)
    verdict = align_pair(np.pad(air, (1600, 0))[: len(air)], air, RATE, AlignConfig(max_delay=0.05))
    assert "do not match" in verdict.problem


def test_entries_get_their_delay_and_unreadable_ones_their_reason(tmp_path: Path) -> None:
    air = talk(2 * RATE)
    sound_files.write(tmp_path / "air.wav", air, RATE)
    sound_files.write(tmp_path / "bone.wav", np.pad(sound_files.resample(air, RATE, 8000), (40, 0)), 8000)
    (tmp_path / "bad.wav").write_bytes(b"noise")
    paths = {name: str(tmp_path / f"{name}.wav") for name in ("air", "bone", "bad")}
    entries = [
        Entry(paths["air"], paths["bone"], "p1", 2.0),
        Entry(paths["air"], paths["bad"], "p2", 2.0),
        Entry(paths["air"], None, "p3", 2.0),
    ]
    (first, good), (_, bad) = align(entries, AlignConfig())
    assert first.delay == pytest.approx(0.005, abs=2e-5)
    assert first.seconds == pytest.approx(2.0, abs=1e-3)
    assert (good.problem, good.speaker) == ("", "p1")
    assert "bad.wav" in bad.problem
