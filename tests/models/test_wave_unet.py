"""Tests of the Wave-U-Net: sizes of the paper, resampling, receptive field and loss."""

import pytest
import torch
from small_models import response_extent, with_random_weights

from twostage.evaluation.costs import gmac_per_second, parameters
from twostage.models.baselines.wave_unet import WaveUnet, WaveUnetConfig, interpolated
from twostage.utils.errors import ConfigError

TINY = WaveUnetConfig(levels=3, channels=4)


def multiplications(levels):
    """Multiplications per sample of the paper's sizes: level l runs at 2^-l of the rate, with 15 taps down and 5 up."""
    widths = [24 * (level + 1) for level in range(levels + 1)]
    down = sum(15 * i * o / 2**level for level, (i, o) in enumerate(zip([1, *widths], widths, strict=False)))
    up = sum(5 * (2 * o + 24) * o / 2**level for level, o in enumerate(widths[:-1]))
    return down + up + 25


def test_the_sizes_are_those_of_the_paper():
    paper = WaveUnet(WaveUnetConfig(levels=12))
    assert parameters(paper) == 10_263_002
    assert parameters(paper) == pytest.approx(10.2e6, rel=0.01)  # the published figure, for two outputs
    assert gmac_per_second(paper, 2**16 / 16000) == pytest.approx(multiplications(12) * 16e-6, rel=1e-6)
    assert [conv.out_channels for conv in paper.downs] == list(range(24, 289, 24))
    assert paper.bottom.out_channels == 312
    assert paper.conv_post.in_channels == 25  # with the input


def test_the_default_has_the_documented_size():
    model = WaveUnet(WaveUnetConfig())
    assert parameters(model) == 6_180_890
    assert gmac_per_second(model) == pytest.approx(multiplications(10) * 16e-6, rel=1e-6)
    assert multiplications(10) * 16e-6 == pytest.approx(2.3, abs=0.1)


def test_interpolation_keeps_the_decimated_samples_in_place():
    x = torch.randn(2, 3, 7)
    assert torch.equal(interpolated(x)[..., ::2], x)
    ramp = torch.arange(16.0)[None, None]
    assert torch.equal(interpolated(ramp[..., ::2])[..., :-1], ramp[..., :-1])


@pytest.mark.parametrize("length", [1, 5, 64, 1001])
def test_the_output_has_the_length_of_the_input(length):
    out = WaveUnet(TINY)(torch.randn(2, 1, length))
    assert out.shape == (2, 1, length)
    assert out.abs().max() <= 1


def test_zeros_at_the_end_do_not_change_the_output():
    model, audio = with_random_weights(WaveUnet(TINY)), torch.randn(1, 1, 101, dtype=torch.float64)
    padded = torch.cat([audio, torch.zeros(1, 1, 3, dtype=torch.float64)], -1)
    torch.testing.assert_close(model(audio), model(padded)[..., :101])


def test_a_sample_affects_the_output_exactly_within_the_context():
    model = with_random_weights(WaveUnet(TINY))
    assert model.context == 10 * 7 + 7 * 8
    audio = torch.randn(1, 1, 8 * 60, dtype=torch.float64)
    before, after = response_extent(model, audio, range(240, 248))
    assert (before, after) == (model.context, model.context)


def test_a_window_with_its_context_equals_the_whole():
    model, audio = with_random_weights(WaveUnet(TINY)), torch.randn(1, 1, 8 * 80, dtype=torch.float64)
    part = model(audio[..., 8 * 20 : 8 * 60])[..., 8 * 16 : 8 * 24]
    torch.testing.assert_close(part, model(audio)[..., 8 * 36 : 8 * 44], atol=1e-6, rtol=0)


def test_the_loss_is_the_mean_squared_error(speech):
    model = WaveUnet(WaveUnetConfig(levels=4, channels=8))
    clean = 3 * torch.from_numpy(speech(4096)).view(2, 1, 2048)
    enhanced, terms = model.terms(torch.nn.functional.avg_pool1d(clean, 9, 1, 4), clean)
    assert set(terms) == {"mse"}
    assert float(terms["mse"].detach()) == pytest.approx(float((enhanced - clean).detach().square().mean()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 0}, "model.levels is 0, must"),
        ({"channels": 0}, "model.channels is 0, must"),
        ({"down_kernel_size": 14}, "model.down_kernel_size is 14, must be odd"),
        ({"up_kernel_size": -1}, "model.up_kernel_size is -1, must be odd"),
    ],
)
def test_invalid_settings_are_errors_that_name_the_field(settings, message):
    with pytest.raises(ConfigError, match=message):
        WaveUnetConfig(**settings)
