"""Tests of the limiter: nothing exceeds the ceiling, only the peak's surroundings change, channels share the gain."""

from collections.abc import Callable

import numpy as np
import torch

from twostage.audio.levels import active_level
from twostage.audio.limiter import limited
from twostage.inference.restoration import PEAK, restore
from twostage.models.enhancer import EnhancerModule

RATE = 16000
Speech = Callable[..., np.ndarray]


def test_the_limiter_attenuates_only_a_peak_and_its_surroundings(speech: Speech) -> None:
    inputs = np.stack([speech(RATE), 0.5 * speech(RATE)])
    inputs[0, 8000] = 4.0
    output = np.concatenate(list(limited(np.array_split(inputs, 23, axis=1), 0.9, RATE)), axis=1)
    assert output.shape == inputs.shape
    assert np.abs(output).max() == np.float32(0.9)
    near = np.abs(np.arange(RATE) - 8000) <= 320
    np.testing.assert_array_equal(output[:, ~near], inputs[:, ~near])
    np.testing.assert_allclose(
        output[1] * inputs[0], output[0] * inputs[1], atol=1e-6
    )  # the channels keep their balance


def test_limiting_in_blocks_equals_limiting_the_whole() -> None:
    inputs = np.random.default_rng(0).standard_normal((1, 30000)).astype(np.float32)
    whole = np.concatenate(list(limited([inputs], 0.5, RATE)), axis=1)
    parts = np.concatenate(list(limited(np.split(inputs, [1, 2, 700, 701, 9000], axis=1), 0.5, RATE)), axis=1)
    assert np.abs(whole).max() <= 0.5
    np.testing.assert_allclose(parts, whole, atol=1e-7)


class Clicking(EnhancerModule):
    """An enhancer that turns one sample into a click beyond full scale and changes nothing else."""

    sample_rate, hop_length, stride, context = RATE, 256, 256, float("inf")

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        out = audio.clone()
        out[..., 20000] = 30.0
        return out


def test_a_click_does_not_change_the_gain_of_the_rest(speech: Speech) -> None:
    inputs = speech(3 * RATE)
    out = restore(Clicking(), inputs, RATE)
    assert np.abs(out).max() <= PEAK
    assert abs(active_level(out[24000:], RATE) - active_level(inputs[24000:], RATE)) < 0.2
