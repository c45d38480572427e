"""Tests of the WaveNet of HiFi-GAN+: published sizes, receptive field, folding and depth."""

import pytest
import torch
from small_models import with_random_weights

from twostage.evaluation.costs import gmac_per_second, parameters
from twostage.models.baselines.bwe import Bwe, BweConfig
from twostage.utils.errors import ConfigError

TINY = BweConfig(channels=8, layers=3)


def test_the_sizes_are_those_of_the_published_model():
    published = Bwe(BweConfig(layers=8)).fold()
    dead = 64 * 128 + 128  # unused weights in the last layer of the published model
    assert parameters(published) + dead == 1_055_105  # "1M" in its list of models
    assert gmac_per_second(published) == pytest.approx((16 * (3 + 1) * 128**2 - 64 * 128 + 2 * 128) * 16e-6)
    assert published.context == 6560
    assert published.context / 48000 == pytest.approx(Bwe(BweConfig()).context / 16000, rel=1e-3)  # seconds


def test_the_default_has_the_documented_size():
    model = Bwe(BweConfig()).fold()
    assert parameters(model) == 914_945
    assert gmac_per_second(model) == pytest.approx(14.55, abs=0.01)


def test_a_sample_affects_the_output_exactly_within_the_context():
    model = with_random_weights(Bwe(TINY))
    assert model.context == 2 * (1 + 3 + 9)
    audio = torch.randn(1, 1, 101, dtype=torch.float64)
    perturbed = audio.clone()
    perturbed[..., 50] += 1
    changed = (model(audio) != model(perturbed))[0, 0].nonzero().flatten()
    assert (int(changed[0]), int(changed[-1])) == (50 - model.context, 50 + model.context)


def test_a_window_with_its_context_equals_the_whole():
    model, audio = with_random_weights(Bwe(TINY)), torch.randn(1, 1, 300, dtype=torch.float64)
    part = model(audio[..., 101:201])[..., 26:-26]
    torch.testing.assert_close(part, model(audio)[..., 127:175], atol=1e-9, rtol=0)


@pytest.mark.parametrize("length", [1, 26, 1001])
def test_the_output_has_the_length_of_the_input(length):
    out = Bwe(TINY)(torch.randn(2, 1, length))
    assert out.shape == (2, 1, length)
    assert out.abs().max() <= 1


def test_folding_keeps_the_output():
    torch.manual_seed(0)
    model, audio = Bwe(TINY).eval(), torch.randn(1, 1, 200)
    before = model(audio)
    torch.testing.assert_close(model.fold()(audio), before, atol=1e-5, rtol=0)
    assert not any("parametrizations" in key for key in model.state_dict())


def test_the_level_does_not_grow_with_the_depth():
    """Residual sums are scaled, so that the input of the last layer is no louder after 40 layers than after 4."""
    levels = []
    for stacks in (1, 10):
        model, stds = with_random_weights(Bwe(BweConfig(channels=32, layers=4, dilation_base=1, stacks=stacks))), []
        model.layers[-1].register_forward_pre_hook(lambda _, inputs, stds=stds: stds.append(inputs[0].std()))
        model(torch.randn(1, 1, 2000, dtype=torch.float64))
        levels.append(float(stds[0]))
    assert 0 < levels[1] < levels[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stacks": 0}, "model.stacks is 0, must"),
        ({"layers": 0}, "model.layers is 0, must"),
        ({"dilation_base": 0}, "model.dilation_base is 0, must"),
        ({"channels": 9}, "model.channels is 9, must be even"),
        ({"kernel_size": 4}, "model.kernel_size is 4, must be odd"),
    ],
)
def test_invalid_settings_are_errors_that_name_the_field(settings, message):
    with pytest.raises(ConfigError, match=message):
        BweConfig(**settings)
