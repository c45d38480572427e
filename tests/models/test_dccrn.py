"""Tests of DCCRN: sizes of the paper, complex layers and normalization, masks, and streaming."""

import numpy as np
import pytest
import torch
from small_models import assert_stream_equals_offline, first_changed_sample, with_statistics_of_noise
from torch import nn

import twostage
from twostage.evaluation.costs import gmac_per_second, parameters
from twostage.models import checkpoint
from twostage.models.baselines.dccrn import MASKINGS, Complex, ComplexNorm, Dccrn, DccrnConfig
from twostage.nn.layers import LSTM, Conv2d
from twostage.utils.errors import ConfigError

SMALL = {"n_fft": 64, "win_length": 48, "hop_length": 16, "channels": (4, 8), "lstm_units": 8}
TINY = DccrnConfig(**SMALL, masking="C", lookahead=2)


def briefly_trained_model(config=TINY):
    torch.manual_seed(0)
    return with_statistics_of_noise(Dccrn(config), steps=20, samples=800)


def test_the_sizes_are_those_of_the_paper():
    model = Dccrn(DccrnConfig())
    assert parameters(model) == 3_670_189
    assert parameters(model) / 1e6 == pytest.approx(3.7, abs=0.05)  # the paper's table 1
    assert [down.conv.real.out_channels for down in model.downs] == [16, 32, 64, 128, 128, 128]


def test_the_cost_is_that_of_later_papers_without_multiplications_by_zero():
    widths, bands = [2, 32, 64, 128, 256, 256, 256], [256, 128, 64, 32, 16, 8, 4]
    down = sum(10 * i * o * b for i, o, b in zip(widths, widths[1:], bands[1:], strict=False))
    up = sum(10 * 2 * i * o * b for o, i, b in zip(widths, widths[1:], bands[1:], strict=False))
    lstms = 4 * 4 * 128 * (512 + 3 * 128) + 2 * 128 * 512
    frames = 8 / (8 + 11)  # 11 more follow the end of the signal, until all output is complete
    actual = gmac_per_second(Dccrn(DccrnConfig()), 0.05) * frames
    assert actual == pytest.approx(160e-9 * (down + up + lstms), rel=1e-6)
    assert actual == pytest.approx(8.54, abs=0.02)
    assert 160e-9 * (down + 2 * up + lstms) == pytest.approx(14.4, rel=0.03)


def test_a_complex_convolution_equals_one_of_complex_tensors():
    torch.manual_seed(0)
    layer = Complex(lambda: Conv2d(3, 4, (3, 3), bias=False))
    x = torch.randn(2, 3, 8, 9, dtype=torch.complex64)
    weight = torch.complex(layer.real.weight, layer.imaginary.weight)
    expected = nn.functional.conv2d(x, weight, padding=1)
    actual = layer(torch.cat([x.real, x.imag], 1))
    torch.testing.assert_close(torch.complex(*actual.chunk(2, 1)), expected)


def test_a_complex_lstm_combines_real_ones():
    torch.manual_seed(0)
    layer = Complex(lambda: LSTM(3, 4), -1)
    real, imaginary = torch.randn(2, 2, 5, 3)
    expected = torch.cat(
        [
            layer.real(real) - layer.imaginary(imaginary),
            layer.imaginary(real) + layer.real(imaginary),
        ],
        -1,
    )
    torch.testing.assert_close(layer(torch.cat([real, imaginary], -1)), expected)


def test_complex_normalization_whitens_and_stores_statistics():
    torch.manual_seed(0)
    norm, x = ComplexNorm(3), torch.randn(4, 6, 20, 30)
    x[:, 3:] = 3 * x[:, 3:] + 2 * x[:, :3] + 1  # imaginary parts are correlated with the real ones
    for _ in range(200):
        output = norm(x)
    real, imaginary = output.movedim(1, 0).flatten(1).chunk(2)
    torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(real.square().mean(1), torch.full((3,), 0.5), atol=1e-3, rtol=0)
    torch.testing.assert_close(imaginary.square().mean(1), torch.full((3,), 0.5), atol=1e-3, rtol=0)
    torch.testing.assert_close((real * imaginary).mean(1), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(norm.eval()(x), output, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        norm(x[:1, :, :1]), output[:1, :, :1], atol=1e-3, rtol=0
    )  # independent of the statistics of the input


def test_the_masks_are_those_of_the_paper():
    mask, noisy = torch.randn(2, 1, 2, 5, 7)
    m, y = (torch.complex(*side.unbind(1)) for side in (mask, noisy))
    output = {name: torch.complex(*mix(mask, noisy).unbind(1)) for name, mix in MASKINGS.items()}
    torch.testing.assert_close(output["C"], m * y)
    torch.testing.assert_close(output["E"], torch.polar(y.abs() * m.abs().tanh(), y.angle() + m.angle()))
    torch.testing.assert_close(output["R"], torch.complex(m.real * y.real, m.imag * y.imag))


@pytest.mark.parametrize(
    "settings", [{"lookahead": 2}, {"masking": "E", "lookahead": 0}, {"masking": "R", "lookahead": 1}]
)
@pytest.mark.parametrize("size", [7, 16, 500])
def test_streaming_equals_offline(settings, size):
    model = briefly_trained_model(DccrnConfig(**{**SMALL, **settings}))
    assert model.latency == 64 + 16 * model.config.lookahead
    assert_stream_equals_offline(model, size, latency=model.latency, samples=3200, level=1.0)


def test_a_sample_depends_on_input_up_to_the_latency():
    model = briefly_trained_model()
    first = first_changed_sample(model, 1600, changed_from=800)
    assert 800 - model.latency <= first < 800 - 16 * model.config.lookahead


def test_silence_stays_silent_and_loud_input_gives_finite_output():
    model = briefly_trained_model()
    assert model(torch.zeros(1, 1, 800)).abs().max() == 0
    assert model(1000 * torch.randn(1, 1, 800)).isfinite().all()


def test_a_model_loaded_from_a_file_gives_the_same_output(tmp_path):
    model, audio = briefly_trained_model(), 0.1 * torch.randn(1, 1, 1600)
    checkpoint.save(tmp_path / "model.safetensors", model, provenance={})
    loaded = checkpoint.load(tmp_path / "model.safetensors")
    assert torch.equal(loaded(audio), model(audio))
    # all at once, since its context is infinite
    actual = twostage.restore(loaded, audio[0, 0].numpy(), 16000, seconds=0.01, level="model")
    assert actual.shape == (1600,)
    assert np.isfinite(actual).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": (3,)}, r"model.channels is \[3\], .* even"),
        ({"lstm_units": 5}, "model.lstm_units 5: must be even"),
        ({"lstm_layers": 0}, "model.lstm_layers is 0, must"),
        ({"n_fft": 500}, "model.n_fft is 500, half of it must"),
        ({"hop_length": 201}, "model.hop_length is 201, must"),
        ({"win_length": 600}, "model.hop_length is 100, must"),
        ({"masking": "X"}, "model.masking is 'X', must be one of R, C, E"),
        ({"lookahead": 7}, "model.lookahead is 7, must be 0 to 6"),
    ],
)
def test_invalid_settings_are_errors_that_name_the_field(settings, message):
    with pytest.raises(ConfigError, match=message):
        DccrnConfig(**settings)
