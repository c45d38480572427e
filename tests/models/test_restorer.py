"""Tests of the restorer: shapes, folding, initial mask, clamp, receptive field and windows."""

import math

import pytest
import torch
from small_models import with_random_weights

from twostage.models.features import MelConfig
from twostage.models.restorer import Restorer, RestorerConfig, with_frequency
from twostage.utils.errors import ConfigError

MEL = MelConfig(n_mels=16)
TINY = [
    RestorerConfig(mel=MEL, channels=(4, 8), time_strides=(2,), blocks=1, dilations=(1,)),
    RestorerConfig(mel=MEL, channels=(4, 6, 8), time_strides=(1, 2), blocks=2, dilations=(1, 2)),
    RestorerConfig(mel=MEL, channels=(4, 6, 8), time_strides=(2, 2), blocks=1, dilations=(3,), output="mapping"),
]


@pytest.mark.parametrize("config", TINY)
@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8])
def test_every_number_of_frames_is_kept(config, frames):
    mel = torch.randn(2, 16, frames) - 6
    assert Restorer(config)(mel).shape == mel.shape


@pytest.mark.parametrize("config", TINY)
def test_folding_keeps_the_output(config):
    torch.manual_seed(0)
    model, mel = Restorer(config).eval(), torch.randn(1, 16, 9) - 6
    before = model(mel)
    torch.testing.assert_close(model.fold()(mel), before, atol=1e-5, rtol=0)
    assert not any("parametrizations" in key for key in model.state_dict())


def test_the_initial_mask_is_one_small_gain():
    torch.manual_seed(0)
    mel = torch.randn(1, 16, 20) - 6
    mask = Restorer(TINY[0])(mel) - mel
    assert mask.abs().max() < 1
    assert mask.std() < 0.01


def test_the_output_is_never_below_the_clamp():
    restored = with_random_weights(Restorer(TINY[0]))(torch.full((1, 16, 8), math.log(1e-5), dtype=torch.float64))
    assert restored.min() >= math.log(1e-5)


@pytest.mark.parametrize("config", TINY)
def test_a_frame_affects_the_output_only_within_the_context(config):
    model = with_random_weights(Restorer(config))
    frames = 2 * model.context + 3 * model.stride
    mel = torch.randn(1, 16, frames, dtype=torch.float64)
    for position in range(model.context, model.context + model.stride):
        perturbed = mel.clone()
        perturbed[..., position] += 1
        changed = (model(mel) != model(perturbed))[0].any(0).nonzero().flatten()
        assert position - int(changed[0]) <= model.context
        assert int(changed[-1]) - position <= model.context


@pytest.mark.parametrize("config", TINY)
def test_a_window_at_a_multiple_of_the_stride_equals_the_whole(config):
    model = with_random_weights(Restorer(config))
    start = -(-model.context // model.stride) * model.stride
    mel = torch.randn(1, 16, 2 * start + 12, dtype=torch.float64)
    whole, window = model(mel), model(mel[..., model.stride :])
    torch.testing.assert_close(window[..., start - model.stride :], whole[..., start:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": (4, 8)}, "there must be one stride between two levels"),
        ({"blocks": 0}, "must be at least 1"),
        ({"mel": MelConfig(n_mels=40, hop_length=256)}, "mel.n_mels is 40, must be divisible by 16"),
        ({"look_ahead": 1}, "restorer.look_ahead is 1, must be 0, or positive with mel.causal"),
        ({"look_ahead": -1, "mel": MelConfig(causal=True)}, "restorer.look_ahead is -1, must be 0, or positive with"),
        ({"output": "sigmoid"}, "restorer.output is 'sigmoid', must be 'mask' or 'mapping'"),
    ],
)
def test_invalid_settings_are_errors_that_name_the_field(settings, message):
    sizes = {"channels": (4, 4, 4, 4, 4), "time_strides": (1, 2, 2, 1)}
    with pytest.raises(ConfigError, match=message):
        RestorerConfig(**{**sizes, **settings})


@pytest.mark.parametrize("look_ahead", [0, 2])
@pytest.mark.parametrize("features", [{}, {"features": ("pitch",)}, {"inputs": 2}])
def test_a_causal_frame_depends_on_the_frames_that_it_looks_ahead_and_on_no_later_ones(look_ahead, features):
    causal = MelConfig(n_mels=16, causal=True)
    config = RestorerConfig(causal, (4, 8), (1,), dilations=(1,), look_ahead=look_ahead, **features)
    model, mel = with_random_weights(Restorer(config)), torch.randn(1, sum(config.rows), 30, dtype=torch.float64)
    for row in range(sum(config.rows)):
        perturbed = mel.clone()
        perturbed[:, row, 20] += 1
        changed = (model(mel) != model(perturbed))[0].any(0).nonzero().flatten()
        assert int(changed[0]) == 20 - look_ahead


def test_a_stream_that_looks_ahead_begins_with_average_frames_and_then_equals_the_whole():
    causal = MelConfig(n_mels=16, causal=True)
    model = with_random_weights(Restorer(RestorerConfig(causal, (4, 8), (1,), dilations=(1,), look_ahead=2)))
    mel = torch.randn(1, 16, 12, dtype=torch.float64) - 6
    late = model.forward_chunk(torch.nn.functional.pad(mel, (0, 2), mode="replicate"))
    torch.testing.assert_close(late[..., 2:], model(mel))
    for weight in model.conv_post.parameters():
        torch.nn.init.zeros_(weight)  # no mask: what is left is the delayed input
    torch.testing.assert_close(model.forward_chunk(mel), torch.cat([torch.full((1, 16, 2), -6.0), mel[..., :-2]], -1))


def test_every_band_is_given_its_frequency():
    mel = torch.randn(2, 16, 5)
    layers = with_frequency(mel)
    torch.testing.assert_close(layers[:, 0], (mel + 6) / 2.5)
    torch.testing.assert_close(layers[:, 1], torch.linspace(-1, 1, 16)[:, None].expand(2, 16, 5))


@pytest.mark.parametrize("frames", [9, 13])
def test_frames_that_are_missing_at_the_end_repeat_the_last(frames):
    model = with_random_weights(Restorer(TINY[2]))
    mel = torch.randn(1, 16, frames, dtype=torch.float64) - 6
    padded = torch.cat([mel, mel[..., -1:].expand(-1, -1, -frames % model.stride)], -1)
    torch.testing.assert_close(model(mel), model(padded)[..., :frames])
