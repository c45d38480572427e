"""Tests of BSRNN: sizes, splitting and joining of bands, masks and additions, and streaming."""

from math import inf

import numpy as np
import pytest
import torch
from small_models import assert_gradients_reach_every_weight, assert_stream_equals_offline, first_changed_sample

import twostage
from twostage.evaluation.costs import gmac_per_second, parameters
from twostage.models import checkpoint
from twostage.models.baselines.bsrnn import Bsrnn, BsrnnConfig, Estimate, Split
from twostage.models.features import as_channels, as_complex
from twostage.utils.errors import ConfigError

SMALL = {"n_fft": 64, "hop_length": 16, "bands": (3, 5, 8, 17), "features": 4, "layers": 2}


def audible_model(**settings):
    """A small model in eval mode whose output is about as loud as its input."""
    torch.manual_seed(0)
    model = Bsrnn(BsrnnConfig(**SMALL, **settings)).eval().requires_grad_(False)
    for band in model.estimate.bands:
        band[3].weight.mul_(5)
    return model


def test_the_number_of_parameters():
    assert parameters(Bsrnn(BsrnnConfig())) == 956_940
    assert parameters(Bsrnn(BsrnnConfig(causal=True))) == 821_260
    assert parameters(Bsrnn(BsrnnConfig(features=128))) > 10e6  # the features of the paper on music


def test_bands_are_those_of_the_paper_rounded_to_bins():
    edges = np.cumsum(BsrnnConfig().bands)[:-1] * 16000 / 512
    paper_edges = np.r_[100:1000:100, 1000:4000:250, 4000:8000:500]
    # bins of 31.25 Hz do not divide into ten equal bands up to 1 kHz
    np.testing.assert_allclose(edges, paper_edges, atol=70)
    assert set(edges) >= {1000, 1250, 4000, 4500, 7500}


def test_the_cost_is_that_of_its_matrix_products():
    n, bins, bands, layers = 4, 33, 4, 2
    lstm = 4 * 2 * n * (n + 2 * n)
    pair = bands * (lstm + 2 * n * n) + bands * (2 * lstm + 4 * n * n)
    frame = n * (2 * bins + bands) + layers * pair + bands * n * 4 * n + 4 * n * 8 * bins
    model = audible_model(causal=True)
    frames = 1 + 3  # with the frames after the end of the signal, until all output is complete
    assert gmac_per_second(model, 16 / 16000) == pytest.approx(frame * frames * 1e-6, rel=1e-6)


def test_a_band_depends_on_its_own_bins_only_and_bands_are_joined_in_order():
    torch.manual_seed(0)
    config = BsrnnConfig(**SMALL)
    split, estimate, x = Split(config), Estimate(config), torch.randn(2, 2, 33, 5)
    perturbed = x.clone()
    perturbed[:, :, 3:8] += 1
    features = split(x), split(perturbed)
    assert (features[0] != features[1]).any(-1).any(-1)[0].tolist() == [False, True, False, False]
    output = [estimate(band_features) for band_features in features]
    assert output[0].shape == (2, 4, 33, 5)  # a mask and an addition, both complex
    changed = (output[0] != output[1]).any(-1).any(1)[0]
    assert changed.nonzero().flatten().tolist() == list(range(3, 8))


def test_the_features_of_a_band_include_its_level():
    split, x = Split(BsrnnConfig(**SMALL)), torch.randn(1, 2, 33, 4)
    loud, louder = split(10 * x), split(100 * x)
    # 20 dB, at the scale of the feature
    level_difference = torch.stack([dense.weight[:, -1] for dense in split.dense]) / 2
    torch.testing.assert_close(louder - loud, level_difference[None, :, None].expand_as(loud), atol=1e-4, rtol=0)


@pytest.mark.parametrize("output", ["mask", "mapping", "both"])
def test_the_output_is_a_masked_spectrum_a_spectrum_or_their_sum(output, monkeypatch):
    model, audio = audible_model(output=output), torch.randn(2, 1, 320)
    spectrum, produced = model.stft.spectrum(audio), torch.randn(2, 4 if output == "both" else 2, 33, 20)
    monkeypatch.setattr(model.estimate, "forward", lambda _: produced)
    mask, addition = as_complex(produced[:, :2]), as_complex(produced[:, -2:])
    expected = {"mask": mask * spectrum, "mapping": mask, "both": mask * spectrum + addition}[output]
    torch.testing.assert_close(model(audio), model.istft(expected), atol=1e-5, rtol=0)


def test_a_mask_adds_nothing_to_empty_bins_and_a_mapping_does():
    high = torch.sin(torch.arange(3200) * 2 * torch.pi * 3 / 8)[None, None]  # 6 kHz
    levels = {}
    for output in ("mask", "mapping", "both"):
        low = audible_model(output=output)(high)[..., 64:-64]
        spectrum = as_channels(Bsrnn(BsrnnConfig(**SMALL)).stft.spectrum(low))
        levels[output] = float(spectrum[:, :, 2:12].abs().mean())
    assert levels["mask"] < 0.01 * min(levels["mapping"], levels["both"])


@pytest.mark.parametrize(("output", "size"), [("both", 7), ("mask", 16), ("mapping", 500)])
def test_streaming_equals_offline(output, size):
    model = audible_model(output=output, causal=True)
    assert model.latency == 64
    assert_stream_equals_offline(model, size, latency=64, samples=800, level=1.0)


def test_a_sample_of_the_causal_model_depends_on_input_up_to_the_latency():
    model = audible_model(causal=True)
    assert 400 - model.latency <= first_changed_sample(model, 800, changed_from=400) < 400


def test_a_model_that_is_not_causal_needs_the_whole_signal():
    model = audible_model()
    assert model.context == model.latency == inf
    assert first_changed_sample(model, 800, changed_from=700) < 600
    with pytest.raises(ConfigError, match="needs all of the signal at once"):
        twostage.Stream(model)


@pytest.mark.parametrize("causal", [False, True])
def test_a_mask_keeps_silence_and_loud_input_gives_finite_output(causal):
    assert audible_model(output="mask", causal=causal)(torch.zeros(1, 1, 800)).abs().max() == 0
    for output in ("mask", "mapping", "both"):
        model = audible_model(output=output, causal=causal)
        assert model(1000 * torch.randn(1, 1, 800)).isfinite().all()
        assert model(torch.zeros(1, 1, 800)).isfinite().all()


@pytest.mark.parametrize("length", [16, 100])
def test_the_output_has_whole_hops(length):
    for causal in (False, True):
        assert audible_model(causal=causal)(torch.randn(2, 1, length)).shape == (2, 1, length // 16 * 16)


def test_a_model_loaded_from_a_file_gives_the_same_output(tmp_path):
    model, audio = audible_model(causal=True), 0.1 * torch.randn(1, 1, 800)
    checkpoint.save(tmp_path / "model.safetensors", model, provenance={})
    loaded = checkpoint.load(tmp_path / "model.safetensors", precision="bf16")
    assert loaded.config == model.config
    assert torch.equal(loaded(audio), model(audio))  # no convolution, nothing to convert


@pytest.mark.parametrize("settings", [{}, {"causal": True, "output": "mask"}, {"output": "mapping"}])
def test_gradients_reach_every_weight_also_under_autocast(settings):
    assert_gradients_reach_every_weight(Bsrnn(BsrnnConfig(**SMALL, **settings)), 320)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": 0}, "model.features is 0, must"),
        ({"layers": 0}, "model.layers is 0, must"),
        ({"hop_length": 257}, "model.hop_length is 257, must be at most half of model.n_fft, 512"),
        ({"hop_length": 127}, "model.hop_length is 127, must .* even"),
        ({"bands": (100, 100)}, r"model.bands is \[100, 100\], must be positive and add up to .* 257"),
        ({"bands": (0, 257)}, r"model.bands is \[0, 257\], must be positive"),
        ({"bands": ()}, r"model.bands is \[\], must"),
        ({"output": "X"}, "model.output is 'X', must be one of mask, mapping, both"),
    ],
)
def test_invalid_settings_are_errors_that_name_the_field(settings, message):
    with pytest.raises(ConfigError, match=message):
        BsrnnConfig(**settings)
