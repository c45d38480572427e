"""Claims about the limiter: nothing beyond the ceiling, nothing changed elsewhere, one gain for all channels."""

from collections.abc import Callable

import numpy as np
import torch

from twostage.audio.levels import active_level
from twostage.audio.limiter import limited
from twostage.inference.restoration import PEAK, restore
from twostage.models.enhancer import EnhancerModule

RATE = 16000
Speech = Callable[..., np.ndarray]


def test_a_peak_is_turned_down_with_what_is_around_it_and_nothing_else(speech: Speech) -> None:
    inputs = np.stack([speech(RATE), 0.5 * speech(RATE)])
    inputs[0, 8000] = 4.0
    output = np.concatenate(list(limited(np.array_split(inputs, 23, axis=1), 0.9, RATE)), axis=1)
    assert output.shape == inputs.shape
    assert np.abs(output).max() == np.float32(0.9)
    near = np.abs(np.arange(RATE) - 8000) <= 320
    np.testing.assert_array_equal(output[:, ~near], inputs[:, ~near])
    np.testing.assert_allclose(output[1] * inputs[0], output[0] * inputs[1], atol=1e-6)  # the balance of the channels


def test_cuts_do_not_show() -> None:
    inputs = np.random.default_rng(0).standard_normal((1, 30000)).astype(np.float32)
    whole = np.concatenate(list(limited([inputs], 0.5, RATE)), axis=1)
    parts = np.concatenate(list(limited(np.split(inputs, [1, 2, 700, 701, 9000], axis=1), 0.5, RATE)), axis=1)
    assert np.abs(whole).max() <= 0.5
    np.testing.assert_allclose(parts, whole, atol=1e-7)


class Clicking(EnhancerModule):
    """Leaves everything as it is but one sample, which it makes a full-scale click."""

    sample_rate, hop_length, stride, context = RATE, 256, 256, float("inf")

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        out = audio.clone()
        out[..., 20000] = 30.0
        return out


def test_one_sample_does_not_decide_the_gain_of_the_rest(speech: Speech) -> None:
    inputs = speech(3 * RATE)
    out = restore(Clicking(), inputs, RATE)
    assert np.abs(out).max() <= PEAK
    assert abs(active_level(out[24000:], RATE) - active_level(inputs[24000:], RATE)) < 0.2
