"""Tests of SEANet: sizes, receptive field, streaming, and the skip connection around the U-Net."""

import pytest
import torch
from small_models import (
    assert_file_and_folding_keep_the_output,
    assert_stream_equals_offline,
    response_extent,
    with_random_weights,
)

from twostage.evaluation.costs import gmac_per_second, parameters
from twostage.models.baselines.seanet import Seanet, SeanetConfig
from twostage.utils.errors import ConfigError

SMALL = {"channels": 4, "strides": (2, 4), "bottleneck": 4}
TINY, CAUSAL = SeanetConfig(**SMALL), SeanetConfig(**SMALL, causal=True)


@pytest.mark.slow
def test_the_sizes_are_those_of_the_published_reimplementation():
    model = Seanet(SeanetConfig()).fold()
    assert parameters(model) == 8_339_585
    assert parameters(model) == pytest.approx(8.3e6, rel=0.01)  # in the tables of the EBEN paper
    assert parameters(Seanet(SeanetConfig(channels=8)).fold()) == pytest.approx(
        0.7e6, rel=0.02
    )  # the streaming model of the same tables
    assert gmac_per_second(model) == pytest.approx(4.783, abs=0.001)
    assert [down[-1].out_channels for down in model.unet.downs] == [64, 128, 256, 512]
    assert model.stride == 256


def test_a_second_microphone_adds_one_channel_to_the_first_convolution():
    both = Seanet(SeanetConfig(inputs=2)).fold()
    assert parameters(both) - 8_339_585 == 7 * 32
    pair = torch.randn(1, 2, 300, dtype=torch.float64)
    model = with_random_weights(Seanet(SeanetConfig(**SMALL, inputs=2)))
    out = model(pair)
    assert out.shape == (1, 1, 300)
    for channel in range(2):
        without_channel = pair.clone()
        without_channel[:, channel] = 0
        assert (model(without_channel) - out).abs().max() > 1e-3


@pytest.mark.parametrize("config", [TINY, CAUSAL], ids=["centered", "causal"])
def test_a_sample_affects_the_output_within_the_context(config):
    model = with_random_weights(Seanet(config))
    half = 2 * (13 + 1 + 2 * (13 + 2)) + 2 * 3 * 8 + 2 * 3
    assert model.context == half * (1 + config.causal) + 7
    audio = torch.randn(1, 1, 8 * 160, dtype=torch.float64)
    before, after = response_extent(model, audio, range(640, 648))
    assert model.context - model.stride < after <= model.context
    assert model.latency - model.stride < before <= model.latency
    assert model.latency == (7 if config.causal else model.context)


@pytest.mark.parametrize("config", [TINY, CAUSAL], ids=["centered", "causal"])
def test_a_window_with_its_context_equals_the_whole(config):
    model, audio = with_random_weights(Seanet(config)), torch.randn(1, 1, 8 * 200, dtype=torch.float64)
    context = -(-model.context // 8) * 8
    part = model(audio[..., 400 : 400 + 2 * context + 160])[..., context : context + 160]
    torch.testing.assert_close(part, model(audio)[..., 400 + context : 560 + context], atol=1e-9, rtol=0)


@pytest.mark.parametrize("length", [1, 8, 1001])
def test_the_output_has_the_length_of_the_input(length):
    out = Seanet(TINY)(torch.randn(2, 1, length))
    assert out.shape == (2, 1, length)
    assert out.abs().max() <= 1


@pytest.mark.parametrize("level", [0.0, 1e-6, 1e4])
def test_the_output_is_finite_for_silence_and_noise_at_any_level(level):
    assert Seanet(TINY)(level * torch.randn(1, 1, 800)).isfinite().all()


@pytest.mark.parametrize("size", [1, 8, 100, 1003])
def test_a_stream_of_the_causal_model_equals_the_whole(size):
    assert_stream_equals_offline(with_random_weights(Seanet(CAUSAL)).float(), size, latency=8)


def test_folding_and_a_file_keep_the_output(tmp_path):
    torch.manual_seed(0)
    assert_file_and_folding_keep_the_output(Seanet(TINY).eval(), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": 0}, "model.inputs is 0, must"),
        ({"channels": 0}, "model.channels is 0, must"),
        ({"bottleneck": 0}, "model.bottleneck is 0, must"),
        ({"strides": ()}, r"model.strides is \[\], must be one or more"),
        ({"strides": (2, 3)}, r"model.strides is \[2, 3\], must be one or more, each even"),
    ],
)
def test_invalid_settings_are_errors_that_name_the_field(settings, message):
    with pytest.raises(ConfigError, match=message):
        SeanetConfig(**settings)


def test_the_first_convolution_is_added_to_the_output_of_the_unet(monkeypatch):
    model, audio = with_random_weights(Seanet(TINY)), torch.randn(1, 1, 64, dtype=torch.float64)
    monkeypatch.setattr(model.unet, "forward", torch.zeros_like)
    expected = torch.tanh(model.conv_post(model.conv_pre(audio)).float())
    torch.testing.assert_close(model(audio), expected)
    assert expected.abs().max() > 0.01
