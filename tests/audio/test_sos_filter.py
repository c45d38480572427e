"""Tests of recursive filters as matrix products: they equal scipy's filters, in one piece and in blocks."""

import numpy as np
import pytest
import torch
from scipy import signal

from twostage.audio import levels
from twostage.audio.continuation import continued
from twostage.audio.highpass import DEPTH, ORDER, STOP, chebyshev
from twostage.audio.sos_filter import BLOCK, GROUP, SosDesign, SosFilter, highpass_sections
from twostage.inference.windows import _convolved, _low_pass
from twostage.nn import streaming

RATES = (1000, 16000, 48000, 192000)
FREQUENCIES = np.linspace(1e-4, np.pi, 2001)


def noise(*shape: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(shape) + 0.5


@pytest.mark.parametrize("rate", RATES)
def test_filter_designs_equal_scipys(rate: int) -> None:
    actual = highpass_sections(*chebyshev(ORDER, DEPTH), STOP, rate)[0]
    expected = signal.cheby2(ORDER, DEPTH, STOP, "highpass", fs=rate, output="sos")
    assert_same_response(actual, expected)
    actual, radii = highpass_sections(levels.ZEROS, levels.POLES, levels.LOWEST, rate)
    expected = signal.ellip(9, 0.02, 50, levels.LOWEST, "highpass", fs=rate, output="sos")
    assert_same_response(actual, expected)
    assert radii.max() == pytest.approx(np.abs(signal.sos2zpk(expected)[1]).max(), rel=1e-12)


def assert_same_response(actual: np.ndarray, expected: np.ndarray) -> None:
    ours, theirs = (signal.freqz_sos(sections, FREQUENCIES)[1] for sections in (actual, expected))
    assert np.abs(ours - theirs).max() < 1e-9
    assert tuple(actual[0, [2, 5]]) == (0, 0)  # the first section is of order one


def test_stored_zeros_and_poles_equal_scipys() -> None:
    zeros, poles, _ = signal.ellipap(9, 0.02, 50)
    for ours, theirs in ((levels.ZEROS, zeros), (levels.POLES, poles)):
        np.testing.assert_allclose(np.sort_complex(ours), np.sort_complex(theirs[theirs.imag >= 0]), rtol=1e-12)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("channels", [1, 3])
def test_filtering_from_any_state_equals_scipys(rate: int, channels: int) -> None:
    sections = highpass_sections(*chebyshev(ORDER, DEPTH), STOP, rate)[0]
    design, audio = SosDesign(sections), noise(channels, 3 * BLOCK * GROUP + 17)
    np.testing.assert_allclose(design.settled, signal.sosfilt_zi(sections).ravel(), atol=1e-8)
    state = np.random.default_rng(1).standard_normal((channels, design.states))
    state[:, 1] = 0  # the first section is of order one
    zi = state.reshape(channels, -1, 2).transpose(1, 0, 2)
    expected, _ = signal.sosfilt(sections, audio, zi=zi)
    np.testing.assert_allclose(SosFilter(design, state).push(audio), expected, atol=1e-7 * np.abs(expected).max())
    assert np.abs(expected).max() > 0.5


@pytest.mark.parametrize("cuts", [[1], [BLOCK - 1, BLOCK], [0, 5, BLOCK * GROUP, BLOCK * GROUP + 1], range(0, 3000, 7)])
def test_filtering_in_blocks_equals_filtering_the_whole(cuts: list[int]) -> None:
    design = SosDesign(highpass_sections(levels.ZEROS, levels.POLES, levels.LOWEST, 16000)[0])
    audio, start = noise(2, 3333), np.zeros((2, design.states))
    whole, parts = SosFilter(design, start), SosFilter(design, start)
    expected = whole.push(audio)
    actual = np.concatenate([parts.push(part) for part in np.split(audio, cuts, axis=1)], axis=1)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(parts.push(audio), whole.push(audio))  # both have reached the same state


@pytest.mark.parametrize(("frames", "side"), [(513, 256), (5000, 256), (65536 + 511, 48)])
def test_the_crossover_equals_scipys(frames: int, side: int) -> None:
    audio, taps = noise(2, frames).astype(np.float32), _low_pass(side, 500 / 16000)
    np.testing.assert_allclose(taps, signal.firwin(2 * side + 1, 500, fs=16000), atol=1e-8)
    expected = signal.fftconvolve(audio, taps[None], mode="valid", axes=1)
    np.testing.assert_allclose(_convolved(audio, taps), expected, atol=1e-6)


@pytest.mark.parametrize(("frames", "steps"), [(0, 3), (1, 3), (50, 49), (2000, 1023)])
def test_arrays_are_continued_like_tensors(frames: int, steps: int) -> None:
    audio = noise(2, frames).astype(np.float32)
    expected = streaming.continued(torch.from_numpy(audio), steps).numpy()
    assert expected.shape == (2, frames + steps)
    np.testing.assert_allclose(continued(audio, steps), expected, atol=1e-6)
