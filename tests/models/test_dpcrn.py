"""Tests of DPCRN: sizes of the paper, normalization, loss, streaming and export."""

import numpy as np
import pytest
import torch
from small_models import (
    assert_gradients_reach_every_weight,
    assert_stream_equals_offline,
    first_changed_sample,
    with_statistics_of_noise,
)
from torch import nn

import twostage
from twostage.evaluation.costs import gmac_per_second, parameters
from twostage.export.onnx import export
from twostage.models.baselines.dpcrn import Down, Dpcrn, DpcrnConfig, InstantNorm, Up
from twostage.models.onnx_enhancer import OnnxEnhancer
from twostage.utils.errors import ConfigError

SMALL = {"n_fft": 40, "hop_length": 20, "channels": (4, 6), "strides": (2, 1), "blocks": 1, "units": 8}
TINY = DpcrnConfig(**SMALL)


def briefly_trained_model(config=TINY):
    torch.manual_seed(0)
    return with_statistics_of_noise(Dpcrn(config), steps=8, samples=400)


def test_the_sizes_are_those_of_the_paper():
    model = Dpcrn(DpcrnConfig())
    assert parameters(model) == 805_350
    assert parameters(model) / 1e6 == pytest.approx(0.8, abs=0.01)  # the paper's abstract
    assert model.config.bands == [201, 100, 50, 50, 50, 50]  # as in the authors' code


def test_the_cost_follows_from_the_sizes():
    widths, bands = [2, 32, 32, 32, 64, 128], [100, 50, 50, 50, 50]
    down = sum(i * o * k * b for i, o, k, b in zip(widths, widths[1:], [10, 6, 6, 6, 6], bands, strict=False))
    intra, inter, dense = 2 * 4 * 64 * (128 + 64), 4 * 128 * (128 + 128), 2 * 128 * 128
    frames = 4 / (4 + 1)  # one more follows the end of the signal, until all output is complete
    actual = gmac_per_second(Dpcrn(DpcrnConfig()), 0.05) * frames
    assert actual == pytest.approx(80e-9 * (3 * down + 2 * 50 * (intra + inter + dense)), rel=1e-6)


@pytest.mark.parametrize(("bands", "kernel", "stride"), [(201, 5, 2), (100, 3, 2), (50, 3, 1), (24, 5, 2), (21, 3, 2)])
def test_the_decoder_has_the_bands_of_the_encoder(bands, kernel, stride):
    x = torch.randn(1, 2, bands, 4)
    lower = Down(2, 3, bands, kernel, stride)(x)
    assert lower.shape == (1, 3, bands // stride, 4)
    assert Up(3, 2, bands, kernel, stride)(lower, lower).shape == x.shape


def test_instant_normalization_uses_a_single_frame():
    x = 3 * torch.randn(2, 4, 9, 5) + 1
    output = InstantNorm(4, 9)(x)
    torch.testing.assert_close(output.mean((1, 2)), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.square().mean((1, 2)), torch.ones(2, 5), atol=1e-4, rtol=0)
    torch.testing.assert_close(InstantNorm(4, 9)(x[..., 2:3]), output[..., 2:3])


def test_a_mask_scales_with_the_input_and_a_mapping_does_not():
    model, audio = briefly_trained_model(), torch.randn(1, 1, 400)
    torch.testing.assert_close(model(100 * audio), 100 * model(audio), rtol=1e-3, atol=1e-2)
    assert model(torch.zeros(1, 1, 400)).abs().max() == 0
    mapping = briefly_trained_model(DpcrnConfig(**SMALL, output="mapping"))
    assert (mapping(100 * audio) - 100 * mapping(audio)).abs().max() > 1


def test_the_loss_is_that_of_the_paper():
    model = briefly_trained_model()
    degraded, clean = torch.randn(2, 3, 1, 390)
    enhanced, terms = model.terms(degraded, clean)
    clean = clean[..., :380]
    ratios = clean.square().sum(-1) / (clean - enhanced).square().sum(-1)
    assert float(terms["snr"]) == pytest.approx(-10 * float(ratios.log10().mean()), rel=1e-4)
    fake, real = model.stft.spectrum(enhanced), model.stft.spectrum(clean)
    pairs = (fake.real, real.real), (fake.imag, real.imag), (fake.abs(), real.abs())
    errors = sum(float((estimate - target).square().mean()) for estimate, target in pairs)
    assert float(terms["spectrum"]) == pytest.approx(float(np.log(errors)), abs=1e-4)


@pytest.mark.parametrize("settings", [{}, {"norm": "instance"}, {"output": "mapping"}])
@pytest.mark.parametrize("size", [7, 333])
def test_streaming_equals_offline(settings, size):
    model = briefly_trained_model(DpcrnConfig(**SMALL, **settings))
    assert model.latency == 40
    assert_stream_equals_offline(model, size, latency=40, samples=800, level=1.0)


def test_a_sample_depends_on_input_up_to_the_latency():
    model = briefly_trained_model()
    assert 400 - model.latency <= first_changed_sample(model, 800, changed_from=400) < 400


def test_instance_normalization_uses_statistics_of_the_training():
    model, audio = briefly_trained_model(DpcrnConfig(**SMALL, norm="instance")), torch.randn(1, 1, 400)
    norms = [module for module in model.modules() if isinstance(module, nn.InstanceNorm2d)]
    assert len(norms) == 3  # one at the input and two in the block
    assert all(norm.running_mean.abs().sum() > 0 for norm in norms)
    torch.testing.assert_close(model(audio)[..., :180], model(audio[..., :200])[..., :180], rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"norm": "instance", "output": "mapping"}])
def test_gradients_reach_every_weight_also_under_autocast(settings):
    assert_gradients_reach_every_weight(Dpcrn(DpcrnConfig(**SMALL, **settings)), 200)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter warns about its own deprecation
def test_a_streaming_step_is_exported_to_onnx(tmp_path):
    model = briefly_trained_model()
    assert export(model, tmp_path / "step.onnx", provenance={}, stream=True).difference < 1e-4
    audio = np.random.default_rng(0).standard_normal(800).astype(np.float32)
    with twostage.Stream(OnnxEnhancer(tmp_path / "step.onnx"), highpassed=True) as stream:
        actual = np.concatenate([stream.push(audio), stream.flush()])
    np.testing.assert_allclose(actual, model(torch.from_numpy(audio)[None, None])[0, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": ()}, r"model.channels is \[\], must"),
        ({"strides": (2, 1)}, r"model.strides is \[2, 1\], must"),
        ({"strides": (3, 2, 1, 1, 1)}, r"model.strides is \[3, 2, 1, 1, 1\], must"),
        ({"blocks": -1}, "model.blocks is -1, must"),
        ({"units": 5}, "model.units is 5, must be even"),
        ({"hop_length": 201}, "model.hop_length is 201, must"),
        ({"n_fft": 16, "hop_length": 8}, "model.n_fft is 16: 2 bands"),
        ({"output": "both"}, "model.output is 'both', must be mask or mapping"),
        ({"norm": "batch"}, "model.norm is 'batch', must be instant or instance"),
    ],
)
def test_invalid_settings_are_errors_that_name_the_field(settings, message):
    with pytest.raises(ConfigError, match=message):
        DpcrnConfig(**settings)
