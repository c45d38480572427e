"""Tests of BiLSTM: statistics that are measured before training, their storage, phase, level and loss."""

from math import inf, log

import numpy as np
import pytest
import torch
from torch import nn

import twostage
from twostage.models import checkpoint
from twostage.models.baselines.bilstm import HIGHEST, NARROW, Bilstm, BilstmConfig
from twostage.models.features import magnitudes
from twostage.utils.errors import ConfigError, DataError

TINY = BilstmConfig(n_fft=64, hop_length=16, units=6, layers=2)


def pairs(count=3, length=1600):
    """Batches (degraded, clean) of noise; the degraded side is low-passed, and the last batch is shorter and louder."""
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        clean = 0.1 * torch.randn(2, 1, length if index < count - 1 else length // 2, generator=generator)
        gain = 1 if index < count - 1 else 4
        yield gain * nn.functional.avg_pool1d(clean, 5, 1, 2), gain * clean


def prepared(config=TINY):
    torch.manual_seed(0)
    model = Bilstm(config).eval().requires_grad_(False)
    model.prepare(pairs())
    return model


def prepared_with_speech(speech):
    """(model, degraded, clean), with a model whose statistics are those of the pair."""
    torch.manual_seed(0)
    model = Bilstm(BilstmConfig(n_fft=128, hop_length=64, units=16, layers=1))
    clean = torch.from_numpy(speech(4096)).view(2, 1, 2048)
    degraded = nn.functional.avg_pool1d(clean, 9, 1, 4)
    model.prepare([(degraded, clean)])
    return model, degraded, clean


def test_the_default_has_the_documented_size():
    lstms = sum(2 * 4 * 256 * (inputs + 256 + 2) for inputs in (257, 512, 512))
    assert sum(weight.numel() for weight in Bilstm(BilstmConfig()).parameters()) == lstms + 513 * 257 == 4_340_481


def test_mean_and_deviation_of_both_channels_are_measured_over_all_frames():
    model = prepared()
    for side, actual in enumerate((model.bone, model.air)):
        levels = []
        for pair in pairs():
            peak = pair[0].abs().amax((1, 2), keepdim=True)  # of the bone channel, for both channels
            levels += magnitudes(model.stft.spectrum(pair[side] / peak)).log()
        all_levels = torch.cat(levels, -1)  # (33, L)
        expected = torch.stack([all_levels.mean(-1), all_levels.std(-1, correction=0)])
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert (model.air - model.bone)[0, 20:].min() > 0.5  # the means of high bins, which the bone channel lacks


def test_measuring_again_replaces_the_statistics_and_ignores_the_gain():
    model = prepared()
    before = model.bone.clone(), model.air.clone()
    model.prepare((0.01 * degraded, 0.01 * clean) for degraded, clean in pairs())
    torch.testing.assert_close((model.bone, model.air), before, atol=1e-4, rtol=1e-4)


def test_a_constant_bin_has_a_minimal_deviation():
    model, tone = Bilstm(TINY), torch.ones(1, 1, 640)
    model.prepare([(tone, tone)])
    assert model.bone[1].min() == pytest.approx(NARROW, rel=1e-3)
    assert model(tone).isfinite().all()


@pytest.mark.parametrize("silent", [0, 1])
def test_silent_pairs_are_refused(silent):
    pair = [torch.randn(1, 1, 640), torch.randn(1, 1, 640)]
    pair[silent] = torch.zeros(1, 1, 640)
    with pytest.raises(DataError, match="bilstm: the degraded or the clean audio of all pairs is silent"):
        Bilstm(TINY).prepare([tuple(pair)])


def test_a_model_loaded_from_a_file_gives_the_same_output(tmp_path):
    model, audio = prepared(), 0.1 * torch.randn(1, 1, 1600)
    checkpoint.save(tmp_path / "model.safetensors", model, provenance={})
    loaded = checkpoint.load(tmp_path / "model.safetensors", precision="bf16")
    assert torch.equal(loaded.bone, model.bone)
    assert torch.equal(loaded.air, model.air)
    assert loaded.air.abs().max() > 1
    assert torch.equal(loaded(audio), model(audio))  # no convolution, nothing to convert
    actual = twostage.restore(
        loaded, audio[0, 0].numpy(), 16000, seconds=0.01, level="model"
    )  # all at once, since its context is infinite
    assert actual.shape == (1600,)
    assert np.isfinite(actual).all()


def test_the_model_depends_on_the_future_and_cannot_stream():
    model, audio = prepared(), torch.randn(1, 1, 1600)
    audio[..., 100] = 9  # the peak
    changed = audio.clone()
    changed[..., 1500:] *= 0.5
    assert (model(audio) != model(changed))[0, 0, :1300].any()
    assert model.context == model.latency == inf
    with pytest.raises(ConfigError, match=r"^this model needs all of the signal at once .*: it cannot stream$"):
        twostage.Stream(model)


def test_the_phase_is_kept_and_the_levels_are_the_estimated_ones():
    model, audio = prepared(), torch.randn(1, 1, 1600)
    nn.init.zeros_(model.dense.weight)
    nn.init.zeros_(model.dense.bias)
    spectrum, peak = model.stft.spectrum(audio), audio.abs().max()
    mean = model.air[0, :, None].exp() * peak  # the mean level of the air channel in every frame
    torch.testing.assert_close(model(audio), model.istft(spectrum / spectrum.abs() * mean), atol=1e-4, rtol=1e-3)


def test_the_output_scales_with_the_input():
    model, audio = prepared(), torch.randn(1, 1, 1600)
    torch.testing.assert_close(model(0.01 * audio), 0.01 * model(audio), atol=1e-5, rtol=1e-3)


def test_silence_stays_silent_and_loud_input_gives_finite_output():
    model = prepared()
    assert model(torch.zeros(1, 1, 800)).abs().max() == 0
    assert model(1000 * torch.randn(1, 1, 800)).isfinite().all()
    nn.init.constant_(model.dense.bias, 1e4)  # the estimate is limited to HIGHEST deviations above the mean
    mean, deviation = model.air.max(1).values
    # a sample is at most the sum over the bins of a frame
    assert model(torch.randn(1, 1, 800)).abs().max().log() < mean + HIGHEST * deviation + log(33 * 10)


@pytest.mark.parametrize("length", [16, 100])
def test_the_output_has_whole_hops(length):
    assert prepared()(torch.randn(2, 1, length)).shape == (2, 1, length // 16 * 16)


def test_the_initial_error_is_that_of_predicting_the_mean(speech):
    model, degraded, clean = prepared_with_speech(speech)
    assert float(model.terms(degraded, clean)[1]["mse"].detach()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"units": 0}, "model.units is 0, must"),
        ({"layers": 0}, "model.layers is 0, must"),
        ({"hop_length": 257}, "model.hop_length is 257, must be at most half of model.n_fft, 512"),
        ({"hop_length": 127}, "model.hop_length is 127, must .* even"),
    ],
)
def test_invalid_settings_are_errors_that_name_the_field(settings, message):
    with pytest.raises(ConfigError, match=message):
        BilstmConfig(**settings)


def test_the_target_is_normalized_by_the_peak_of_the_degraded_side(speech):
    model, degraded, clean = prepared_with_speech(speech)

    def error(degraded: torch.Tensor, clean: torch.Tensor) -> float:
        return float(model.terms(degraded, clean)[1]["mse"].detach())

    assert error(3 * degraded, 3 * clean) == pytest.approx(error(degraded, clean), rel=1e-3)
    assert error(degraded, 3 * clean) > error(degraded, clean) + 0.1
