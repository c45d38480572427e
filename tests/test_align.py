"""Delays that are known, and pairs that must be refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from twostage.audio import sound_files
from twostage.data.align import AlignConfig, align, align_pair, estimate_delay
from twostage.data.manifest import Entry
from twostage.data.sensors import PRESETS
from twostage.data.simulator import simulate

Speech = Callable[..., np.ndarray]
RATE = 16000


def shifted(signal: np.ndarray, samples: float) -> np.ndarray:
    """Delay by a fraction of a sample, through the phase."""
    size = 2 * len(signal)
    turn = np.exp(-2j * np.pi * np.arange(size // 2 + 1) * samples / size)
    return np.fft.irfft(np.fft.rfft(signal, size) * turn, size)[: len(signal)].astype(np.float32)


@pytest.mark.parametrize("delay", [-200.0, -3.0, 0.0, 0.5, 17.25, 310.0])
def test_delay_is_found_to_a_fraction_of_a_sample(speech: Speech, delay: float) -> None:
    air = np.pad(speech(3 * RATE), 400)
    found = estimate_delay(shifted(air, delay), air, RATE)
    assert found.samples == pytest.approx(delay, abs=0.1)
    assert found.peak > 0.95


@pytest.mark.parametrize("preset", PRESETS)
def test_delay_survives_the_body(speech: Speech, preset: str) -> None:
    air = speech(4 * RATE)
    bone = simulate(air, RATE, PRESETS[preset], np.random.default_rng(0))
    found = estimate_delay(np.pad(bone, (41, 0)), air, RATE)
    assert found.samples == pytest.approx(41, abs=4)
    assert found.peak > 0.3


def test_turned_polarity_shows_as_a_negative_peak(speech: Speech) -> None:
    air = speech(2 * RATE)
    found = estimate_delay(-shifted(np.pad(air, 50), 20), np.pad(air, 50), RATE)
    assert found.samples == pytest.approx(20, abs=0.1)
    assert found.peak < -0.9


def test_silence_has_no_delay(speech: Speech) -> None:
    assert estimate_delay(np.zeros(RATE, np.float32), speech(RATE), RATE) == (0.0, 0.0)


def noise(frames: int, seed: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(frames).astype(np.float32)


def clip(signal: np.ndarray) -> np.ndarray:
    return np.clip(signal * 20, -1, 1)


def stretch(signal: np.ndarray) -> np.ndarray:
    """0.5 % slower: 10 ms of drift between the halves of four seconds."""
    time = np.arange(len(signal)) * 0.995
    return np.interp(time, np.arange(len(signal)), signal).astype(np.float32)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda x: x, ""),
        (lambda x: np.pad(x, (0, 4000)), ""),
        (lambda x: x * 0, "bone is silent"),
        (lambda x: noise(len(x), 5), "do not match"),
        (lambda x: np.pad(x, (0, 2 * RATE)), "lengths differ by +2.00 s"),
        (clip, "clipped"),
        (stretch, "drifts"),
        (lambda x: np.where(np.arange(len(x)) == 9, np.nan, x), "not finite"),
    ],
)
def test_bad_pairs_are_rejected_for_their_reason(
    speech: Speech, spoil: Callable[[np.ndarray], np.ndarray], problem: str
) -> None:
    air = speech(4 * RATE) + 0.1 * noise(4 * RATE, 1)
    verdict = align_pair(spoil(air).astype(np.float32), air, RATE, AlignConfig())
    assert (problem in verdict.problem) if problem else not verdict.problem


def test_a_delay_beyond_the_limit_is_no_match(speech: Speech) -> None:
    air = noise(2 * RATE, 0)
    verdict = align_pair(np.pad(air, (1600, 0))[: len(air)], air, RATE, AlignConfig(max_delay=0.05))
    assert "do not match" in verdict.problem


def test_entries_get_their_delay_and_unreadable_ones_their_reason(tmp_path: Path, speech: Speech) -> None:
    air = speech(2 * RATE)
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
    assert first.delay == pytest.approx(0.005, abs=1e-5)
    assert (good.problem, good.speaker) == ("", "p1")
    assert "bad.wav" in bad.problem
