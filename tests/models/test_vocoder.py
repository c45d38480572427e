"""Claims about the vocoder: sizes of the paper, exact lengths, folding, and how far it sees."""

import pytest
import torch
from lively import lively

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
def test_frames_become_exactly_hop_length_samples_each(config, frames):
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
    assert model.fold() is model  # twice is once


@pytest.mark.parametrize("config", TINY)
def test_a_frame_reaches_its_context_and_not_a_frame_further(config):
    model = lively(Vocoder(config))
    length, place = 2 * model.context + 21, model.context + 10
    mel = torch.randn(1, 8, length, dtype=torch.float64)
    other = mel.clone()
    other[..., place] += 1
    changed = (model(mel) != model(other))[0, 0].view(length, 256).any(1).nonzero().flatten()
    receptive_field = max(place - int(changed[0]), int(changed[-1]) - place)
    assert receptive_field <= model.context
    assert receptive_field >= model.context - 1  # and the bound is not idle


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"upsample_rates": (8, 8, 2)}, "vocoder.upsample_rates multiply to 128, mel.hop_length is 256"),
        ({"upsample_kernel_sizes": (16, 16, 4)}, "upsample_kernel_sizes and vocoder.upsample_rates differ in length"),
        ({"upsample_kernel_sizes": (16, 16, 4, 5)}, "vocoder.upsample_kernel_sizes: 5 must"),
        ({"resblock_kernel_sizes": (3,)}, "differ in length"),
        ({"resblock_kernel_sizes": (3, 4)}, "must be odd"),
        ({"resblock": 3}, "vocoder.resblock is 3, must be 1 or 2"),
        ({"upsample_initial_channel": 40}, "vocoder.upsample_initial_channel is 40, must be divisible by 16"),
    ],
)
def test_settings_that_cannot_be_name_the_field(settings, what):
    dilations = {"resblock_dilation_sizes": ((1, 3), (1, 3)), "resblock_kernel_sizes": (3, 7)}
    with pytest.raises(ConfigError, match=what):
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


def test_griffin_lim_finishes_what_is_evaluated_and_not_what_is_trained():
    torch.manual_seed(0)
    model = Vocoder(VocoderConfig(upsample_initial_channel=16, griffin_lim=2))
    mel = torch.randn(1, 80, 8) - 4
    generated = model.train().generate(mel)
    assert model.finish(generated, mel, None) is generated
    assert (model.eval().finish(generated, mel, None) - generated).abs().max() > 1e-3
