"""Tests of EBEN: sizes of the paper, input bands, receptive field, and streaming."""

import pytest
import torch
from small_models import (
    assert_file_and_folding_keep_the_output,
    assert_stream_equals_offline,
    response_extent,
    with_random_weights,
)

from twostage.evaluation.costs import gmac_per_second, parameters
from twostage.models.baselines.eben import Eben, EbenConfig
from twostage.utils.errors import ConfigError

SMALL = {"channels": 4, "strides": (2, 2), "bottleneck": 4}
TINY, CAUSAL = EbenConfig(**SMALL), EbenConfig(**SMALL, causal=True)


def test_the_sizes_are_those_of_the_paper():
    model = Eben(EbenConfig()).fold()
    assert parameters(model) == 1_941_984
    assert parameters(model) == pytest.approx(1.9e6, rel=0.03)  # the published figure
    assert gmac_per_second(model) == pytest.approx(0.678, abs=0.001)
    assert [down[-1].out_channels for down in model.unet.downs] == [64, 128, 256]
    assert model.stride == 256


def test_with_zero_weights_only_the_low_band_passes_through_a_tanh(speech):
    model = Eben(TINY).eval()
    torch.nn.init.zeros_(model.conv_post.weight)
    audio = 0.01 * torch.from_numpy(speech(4000))[None, None]
    bands = model.pqmf.analysis(torch.nn.functional.pad(audio, (0, 32)))
    bands[:, 1:] = 0
    torch.testing.assert_close(model(audio), model.pqmf.synthesis(bands)[..., 28:4028], atol=1e-5, rtol=0)


def test_the_upper_bands_of_the_input_are_ignored():
    model, time = with_random_weights(Eben(TINY), torch.float32), torch.arange(8000.0)[None, None] / 16000
    fades = torch.hann_window(8000)[None, None]  # abrupt ends would reach every band
    sound = [fades * torch.sin(2 * torch.pi * hertz * time) for hertz in (500.0, 5000.0, 600.0)]
    plain, upper, lower = (model(0.1 * (sound[0] + added)) for added in (0, sound[1], sound[2]))
    assert (upper - plain).abs().max() < 1e-3 * (lower - plain).abs().max()


@pytest.mark.parametrize("config", [TINY, CAUSAL], ids=["centered", "causal"])
def test_a_sample_affects_the_output_within_the_context(config):
    model = with_random_weights(Eben(config), torch.float32)
    sides = 2 * (13 + 1 + 2 * (13 + 1)) + 2 * 3 * 4 + 2
    assert model.context == 28 + 4 * sides * (1 + config.causal) + 15
    silence = torch.zeros(1, 1, 16 * 200)  # exactly silent without biases, whatever the rounding errors
    assert not model(silence).any()
    before, after = response_extent(model, silence, range(1600, 1616))
    assert model.context - 2 * model.stride < after <= model.context
    assert model.latency - 2 * model.stride < before <= model.latency
    assert model.latency == (28 + 15 if config.causal else model.context)


@pytest.mark.parametrize("config", [TINY, CAUSAL], ids=["centered", "causal"])
def test_a_window_with_its_context_equals_the_whole(config):
    model, audio = with_random_weights(Eben(config), torch.float32), torch.randn(1, 1, 16 * 200)
    context = -(-model.context // 16) * 16
    part = model(audio[..., 400 : 400 + 2 * context + 160])[..., context : context + 160]
    torch.testing.assert_close(part, model(audio)[..., 400 + context : 560 + context], atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [1, 16, 1001])
def test_the_output_has_the_length_of_the_input(length):
    assert Eben(TINY)(torch.randn(2, 1, length)).shape == (2, 1, length)


@pytest.mark.parametrize("level", [0.0, 1e-6, 1e4])
def test_the_output_is_finite_for_silence_and_noise_at_any_level(level):
    out = Eben(TINY)(level * torch.randn(1, 1, 800))
    assert out.abs().max() < 10  # the sum of bands of at most one, through their filters
    assert bool(out.any()) == (level > 0)


@pytest.mark.parametrize("size", [1, 16, 100, 1003])
def test_a_stream_of_the_causal_model_equals_the_whole(size):
    assert_stream_equals_offline(with_random_weights(Eben(CAUSAL), torch.float32), size, latency=16 + 28)


def test_folding_and_a_file_keep_the_output(tmp_path):
    torch.manual_seed(0)
    assert_file_and_folding_keep_the_output(Eben(TINY).eval(), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bands": 1}, "model.bands is 1, must be at least 2"),
        ({"input_bands": 5}, "model.input_bands is 5, must be from 1 to model.bands, 4"),
        ({"taps": 30}, "model.taps is 30, must be a multiple of 8"),
        ({"channels": 0}, "model.channels is 0, must"),
        ({"bottleneck": 0}, "model.bottleneck is 0, must"),
        ({"strides": (3,)}, r"model.strides is \[3\], must be one or more, each even"),
    ],
)
def test_invalid_settings_are_errors_that_name_the_field(settings, message):
    with pytest.raises(ConfigError, match=message):
        EbenConfig(**settings)
