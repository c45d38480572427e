"""Tests of alignment: known delays, drifts and polarities are estimated, and unusable pairs are rejected."""

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
    """Syllables of varied length, pitch, timbre and noisiness, separated by pauses, (frames,)."""
    rng = np.random.default_rng(seed)
    out = 1e-4 * rng.standard_normal(frames)
    start = 0
    while start < frames:
        length = int(RATE * rng.uniform(0.08, 0.35))
        time = np.arange(min(length, frames - start)) / RATE
        phase = 2 * np.pi * (rng.uniform(90, 220) * time + rng.uniform(-80, 80) * time**2)
        voice = sum(rng.uniform(0.2, 1) / k * np.sin(k * phase + rng.uniform(0, 6)) for k in range(1, 12))
        hiss = rng.standard_normal(len(time)) * rng.uniform(0, 0.3)
        window = np.hanning(length)[: len(time)]
        out[start : start + len(time)] += 0.1 * rng.uniform(0.3, 1) * window * (voice + hiss)
        start += length + int(RATE * rng.exponential(0.12))
    return out.astype(np.float32)


def at_the_throat(air: np.ndarray, seed: int = 0) -> np.ndarray:
    """The signal of a simulated throat sensor."""
    return simulate(air, RATE, PRESETS["throat"], np.random.default_rng(seed))


def shifted(signal: np.ndarray, samples: float) -> np.ndarray:
    """Delay by any fraction of a sample, by the phase of the spectrum."""
    size = 2 * len(signal)
    phase = np.exp(-2j * np.pi * np.arange(size // 2 + 1) * samples / size)
    return np.fft.irfft(np.fft.rfft(signal, size) * phase, size)[: len(signal)].astype(np.float32)


def with_drift(signal: np.ndarray, ppm: float) -> np.ndarray:
    """The signal as a recorder stores it whose clock is faster by ``ppm``."""
    return soxr.resample(signal.astype(np.float64), RATE, RATE * (1 + ppm * 1e-6), quality="VHQ").astype(np.float32)


def room_noise(seconds: float, seed: int = 9) -> np.ndarray:
    return (1e-3 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize("delay", [-200.0, -3.0, 0.0, 0.5, 17.25, 310.0])
def test_the_delay_is_estimated_to_a_tenth_of_a_sample(delay: float) -> None:
    air = np.pad(talk(3 * RATE), 400)
    actual = estimate_timing(shifted(air, delay), air, RATE)
    delay_in_the_middle = (actual.delay + actual.drift * 1e-6 * len(air) / RATE / 2) * RATE
    assert delay_in_the_middle == pytest.approx(delay, abs=0.1)
    assert actual.peak > 0.95


@pytest.mark.parametrize("preset", PRESETS)
def test_the_delay_is_estimated_through_every_sensor(preset: str) -> None:
    air = talk(4 * RATE)
    bone = simulate(air, RATE, PRESETS[preset], np.random.default_rng(0))
    actual = align_pair(np.pad(bone, (41, 0)), air, RATE, AlignConfig())
    assert not actual.problem
    assert actual.delay * RATE == pytest.approx(41, abs=4)
    assert actual.peak > 0.3
    assert actual.drift == 0


# delay in seconds, drift in ppm, polarity, seconds by which the bone recording is longer (negative: the air recording)
RECORDERS = [
    (-3, 50, 1, 5),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            (0.01, 0, 1, 0),
            (-60, -300, -1, 0),
            (3, 0, -1, 0),
            (60, 300, 1, 0),
            (0, 50, -1, -20),
            (3, 300, 1, -5),
            (-0.01, 1, 1, 0),
        )
    ),
]


@pytest.mark.parametrize(("delay", "ppm", "sign", "longer"), RECORDERS)
def test_recordings_of_two_recorders_are_aligned(delay: float, ppm: float, sign: int, longer: float) -> None:
    air = talk(40 * RATE)
    bone = sign * with_drift(at_the_throat(air), ppm)
    lead_in = max(0.0, -delay)
    air_file = np.concatenate([room_noise(lead_in), air, room_noise(max(0.0, -longer), 3)])
    bone_file = np.concatenate([room_noise(max(0.0, delay), 5), bone, room_noise(max(0.0, longer), 6)])
    actual = align_pair(bone_file, air_file, RATE, AlignConfig())
    assert not actual.problem
    assert actual.inverted == (sign < 0)
    assert actual.drift == pytest.approx(ppm, abs=5)
    # `lead_in` seconds of the air recording precede the sound that both recordings contain
    errors_at_the_ends = [
        (actual.delay + actual.drift * 1e-6 * (lead_in + time) - (delay + ppm * 1e-6 * time)) * RATE for time in (0, 40)
    ]
    assert errors_at_the_ends == pytest.approx([0, 0], abs=3)  # samples
    shared = min(lead_in + 40 + max(0, -longer), len(bone_file) / RATE - delay)
    assert actual.seconds == pytest.approx(shared - max(0.0, -delay), abs=0.05)


def test_an_aligned_pair_of_files_is_read_in_step(tmp_path: Path) -> None:
    air = talk(30 * RATE)
    sensor_signal = at_the_throat(air)
    bone = np.concatenate([room_noise(3), -with_drift(sensor_signal, 300)])
    sound_files.write(tmp_path / "bone.wav", bone, RATE, subtype="FLOAT")
    sound_files.write(tmp_path / "air.wav", air, RATE, subtype="FLOAT")
    ((entry, _),) = align([Entry(str(tmp_path / "air.wav"), str(tmp_path / "bone.wav"), "p", 30.0)], AlignConfig())
    assert entry.inverted
    degraded, clean = open_pair(entry, RATE).cut()
    assert len(degraded) == pytest.approx(30 * RATE, abs=20)
    expected = -without_drift(air, RATE)[: len(clean)]  # the clean side is inverted to match the sensor
    np.testing.assert_allclose(clean, expected, atol=1e-6, rtol=0)
    for second in (1, 15, 28):  # the sensor's signal without offset and drift
        part = slice(second * RATE, (second + 1) * RATE)
        assert np.corrcoef(degraded[part], -sensor_signal[part])[0, 1] > 0.99


def test_recordings_of_different_speech_do_not_match() -> None:
    for seed in range(4):
        verdict = align_pair(at_the_throat(talk(8 * RATE, seed)), talk(9 * RATE, seed + 10), RATE, AlignConfig())
        assert "do not match" in verdict.problem


def test_a_drift_that_is_too_small_to_measure_is_set_to_zero() -> None:
    """40 ppm in three seconds amount to two samples."""
    air = talk(3 * RATE)
    actual = align_pair(with_drift(at_the_throat(air), 40), air, RATE, AlignConfig())
    assert actual.drift == 0
    assert actual.delay * RATE == pytest.approx(1, abs=2)


def test_silence_has_no_correlation_peak(speech: Speech) -> None:
    assert estimate_timing(np.zeros(RATE, np.float32), speech(RATE), RATE).peak == 0


def test_an_uncertain_polarity_is_taken_from_the_corpus() -> None:
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
    """Slow down by 0.5 %, 30 ms in six seconds."""
    time = np.arange(len(signal)) * 0.995
    return np.interp(time, np.arange(len(signal)), signal).astype(np.float32)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (at_the_throat, ""),
        (lambda x: x, "both sides are the same recording"),  # the same two-channel file in both folders
        (lambda x: 0.2 * x, "both sides are the same recording"),
        (lambda x: np.pad(x, (0, 4000)), ""),
        (lambda x: x * 0, "bone is silent"),
        (lambda x: noise(len(x), 5), "do not match"),
        (lambda x: np.pad(x, (0, 2 * RATE)), ""),
        (clip, "clipped"),
        (stretch, "do not match"),
        (lambda x: np.where(np.arange(len(x)) == 9, np.nan, x), "not finite"),
    ],
)
def test_unusable_pairs_are_rejected_with_the_reason(spoil: Callable[[np.ndarray], np.ndarray], problem: str) -> None:
    air = talk(6 * RATE) + 0.1 * noise(6 * RATE, 1)
    verdict = align_pair(spoil(air).astype(np.float32), air, RATE, AlignConfig())
    assert (problem in verdict.problem) if problem else not verdict.problem


@pytest.mark.parametrize("side", ["bone", "air"])
def test_clipping_of_either_side_is_detected_and_single_peaks_are_not(side: str) -> None:
    clean = talk(3 * RATE) + 0.1 * noise(3 * RATE, 1)
    clipped_signal, with_single_peaks = clip(clean).astype(np.float32), clean.copy()
    with_single_peaks[::1000] = 1.0
    for signal, clipped in ((clipped_signal, True), (with_single_peaks, False)):
        pair = (signal, clean) if side == "bone" else (clean, signal)
        verdict = align_pair(*pair, RATE, AlignConfig(max_clipped=0.0))
        assert ("clipped" in verdict.problem) == clipped
        assert (verdict.clipped > 0) == clipped


@pytest.mark.parametrize(
    ("error", "seconds", "kept"),
    [(5.0, 60.0, True), (20.0, 60.0, False), (5.0, 2.0, False)],  # certain, uncertain, too short to matter
)
def test_a_drift_is_kept_only_if_it_is_certain_and_relevant(error: float, seconds: float, kept: bool) -> None:
    timing = Timing(delay=0.5, drift=50.0, drift_error=error, peak=0.9, opposite=0.1, seconds=seconds)
    significant = _significant(timing, seconds)
    if kept:
        assert significant == timing
    else:
        assert significant.drift == 0
        assert significant.delay == pytest.approx(0.5 + 50e-6 * seconds / 2)  # the delay in the middle


def test_a_delay_beyond_the_limit_does_not_match() -> None:
    air = noise(2 * RATE, 0)
    verdict = align_pair(np.pad(air, (1600, 0))[: len(air)], air, RATE, AlignConfig(max_delay=0.05))
    assert "do not match" in verdict.problem


def test_entries_get_their_delay_and_unreadable_files_are_reported(tmp_path: Path) -> None:
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
    (aligned, usable), (_, unreadable) = align(entries, AlignConfig())
    assert aligned.delay == pytest.approx(0.005, abs=2e-5)
    assert aligned.seconds == pytest.approx(2.0, abs=1e-3)
    assert (usable.problem, usable.speaker) == ("", "p1")
    assert "bad.wav" in unreadable.problem
