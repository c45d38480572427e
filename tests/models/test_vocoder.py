"""Tests of the vocoder: lengths, folding, receptive field, settings, and Griffin-Lim at inference."""

import pytest
import torch
from small_models import with_random_weights

from twostage.models.features import MelConfig
from twostage.models.vocoder import Vocoder, VocoderConfig
from twostage.utils.errors import ConfigError

MEL = MelConfig(n_mels=8)
TINY = [
    VocoderConfig(mel=MEL, upsample_initial_channel=16, resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1, 3),)),
    VocoderConfig(
        mel=MEL,
        upsample_rates=(8, 8, 4),
        upsample_kernel_sizes=(16, 16, 8),
        upsample_initial_channel=16,
        resblock=2,
        resblock_kernel_sizes=(3, 7),
        resblock_dilation_sizes=((1, 2), (3, 12)),
    ),
    VocoderConfig(
        mel=MEL,
        upsample_rates=(16, 16),
        upsample_kernel_sizes=(48, 16),
        upsample_initial_channel=8,
        resblock_kernel_sizes=(11,),
        resblock_dilation_sizes=((1, 5),),
    ),
]


@pytest.mark.parametrize("config", TINY)
@pytest.mark.parametrize("frames", [1, 2, 3, 17])
def test_every_frame_becomes_hop_length_samples(config, frames):
    audio = Vocoder(config)(torch.randn(2, 8, frames))
    assert audio.shape == (2, 1, frames * 256)
    assert audio.abs().max() <= 1


@pytest.mark.parametrize("config", TINY)
def test_folding_keeps_the_output(config):
    torch.manual_seed(0)
    model, mel = Vocoder(config).eval(), torch.randn(1, 8, 9)
    before, keys = model(mel), set(model.state_dict())
    torch.testing.assert_close(model.fold()(mel), before, atol=1e-5, rtol=0)
    assert any("parametrizations" in key for key in keys)
    assert not any("parametrizations" in key for key in model.state_dict())
    assert model.fold() is model  # folding twice changes nothing


@pytest.mark.parametrize("config", TINY)
def test_a_frame_affects_the_output_within_the_context(config):
    model = with_random_weights(Vocoder(config))
    length, position = 2 * model.context + 21, model.context + 10
    mel = torch.randn(1, 8, length, dtype=torch.float64)
    perturbed = mel.clone()
    perturbed[..., position] += 1
    changed = (model(mel) != model(perturbed))[0, 0].view(length, 256).any(1).nonzero().flatten()
    receptive_field = max(position - int(changed[0]), int(changed[-1]) - position)
    assert receptive_field <= model.context
    assert receptive_field >= model.context - 1  # the bound is tight


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upsample_rates": (8, 8, 2)}, "vocoder.upsample_rates multiply to 128, mel.hop_length is 256"),
        ({"upsample_kernel_sizes": (16, 16, 4)}, "upsample_kernel_sizes and vocoder.upsample_rates differ in length"),
        ({"upsample_kernel_sizes": (16, 16, 4, 5)}, "vocoder.upsample_kernel_sizes: 5 must"),
        ({"resblock_kernel_sizes": (3,)}, "differ in length"),
        ({"resblock_kernel_sizes": (3, 4)}, "must be odd"),
        ({"resblock": 3}, "vocoder.resblock is 3, must be 1 or 2"),
        ({"look_ahead": 2}, "vocoder.look_ahead is 2, must be 0, or positive with mel.causal and griffin_lim 0"),
        ({"look_ahead": 2, "mel": MelConfig(causal=True), "griffin_lim": 1}, "vocoder.look_ahead is 2, must be 0"),
        ({"look_ahead": -1, "mel": MelConfig(causal=True)}, "vocoder.look_ahead is -1, must be 0"),
        ({"upsample_initial_channel": 40}, "vocoder.upsample_initial_channel is 40, must be divisible by 16"),
    ],
)
def test_invalid_settings_are_errors_that_name_the_field(settings, message):
    dilations = {"resblock_dilation_sizes": ((1, 3), (1, 3)), "resblock_kernel_sizes": (3, 7)}
    with pytest.raises(ConfigError, match=message):
        VocoderConfig(**{**dilations, **settings})


@pytest.mark.parametrize(
    "sizes",
    [
        {"upsample_rates": (-16, -16)},
        {"upsample_kernel_sizes": (0, 0, 0, 0)},
        {"resblock_kernel_sizes": (3, -1)},
        {"resblock_dilation_sizes": ((1, 0), (1, 3))},
        {"resblock_dilation_sizes": ((1, 3), ())},
        {"upsample_initial_channel": 0},
    ],
)
def test_sizes_below_one_are_refused(sizes: dict) -> None:
    with pytest.raises(ConfigError, match="vocoder: rates, kernel sizes, dilations and channels must be at least 1"):
        VocoderConfig(**sizes)


def test_griffin_lim_is_applied_in_evaluation_mode_only():
    torch.manual_seed(0)
    model = Vocoder(VocoderConfig(upsample_initial_channel=16, griffin_lim=2))
    mel = torch.randn(1, 80, 8) - 4
    generated = model.train().generate(mel)
    assert model.finish(generated, mel, None) is generated
    assert (model.eval().finish(generated, mel, None) - generated).abs().max() > 1e-3
