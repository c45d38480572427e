"""Claims about the discriminators: the papers' sizes, any length, logits last, what each sees, impossible settings."""

import pytest
import torch

from twostage.nn.layers import fold_weight_norm
from twostage.training.discriminators.audio import (
    DiscriminatorConfig,
    Discriminators,
    PeriodDiscriminator,
    multi_period,
    multi_resolution,
    multi_scale,
)
from twostage.training.discriminators.bands import BandDiscriminator
from twostage.utils.errors import ConfigError

SMALL = DiscriminatorConfig(width=0.0625)
RESOLUTIONS = (256, 512, 1024)


def test_sizes_of_the_paper():
    with torch.device("meta"):
        discriminators = Discriminators(DiscriminatorConfig(resolutions=(512, 1024, 2048)))
    sizes = [
        sum(p.numel() for p in part.parameters()) / 1e6
        for part in (discriminators.mpd, discriminators.msd, discriminators.mrsd)
    ]
    assert sizes == pytest.approx([41.1, 29.6, 0.28], rel=0.005)


@pytest.mark.parametrize("length", [64, 1000, 1001, 2310])
def test_a_judge_a_period_and_a_scale_with_logits_last(length):
    results = Discriminators(SMALL)(torch.randn(2, 1, length))
    assert len(results) == 5 + 3
    assert [len(maps) for maps in results] == [6] * 5 + [8] * 3
    assert all(maps[-1].ndim == 2 and len(maps[-1]) == 2 for maps in results)


def test_a_period_sees_columns_a_period_apart():
    discriminator = multi_period((3,), 0.0625).eval()
    audio = torch.randn(1, 1, 300)
    other = audio.clone()
    other[..., 151] += 1
    first, second = discriminator(audio)[0][0], discriminator(other)[0][0]
    assert {int(column) for column in (first != second).nonzero()[:, -1]} == {151 % 3}


def test_scales_halve_and_the_first_alone_is_spectral():
    discriminator = multi_scale(3, 0.0625)
    lengths = [maps[0].shape[-1] for maps in discriminator(torch.randn(1, 1, 1024))]
    assert lengths == [1024, 513, 257]
    assert [any("_u" in key for key in d.state_dict()) for d in discriminator.discriminators] == [True, False, False]


@pytest.mark.parametrize("length", [64, 1000, 1001, 2310])
def test_a_judge_a_resolution_with_logits_last(length):
    results = multi_resolution(RESOLUTIONS, 0.0625)(torch.randn(2, 1, length))
    assert [len(maps) for maps in results] == [6] * 3
    for maps, n_fft in zip(results, RESOLUTIONS, strict=True):
        frames = -(-length // (n_fft // 4))
        assert maps[0].shape == (2, 2, frames, n_fft // 2 + 1)
        assert maps[-1].shape == (2, frames * (n_fft // 16 + 1))  # three strides of two along frequency


def test_spectrograms_are_judged_beside_the_waveform_which_is_judged_as_before():
    both = []
    for resolutions in ((), (256,)):
        torch.manual_seed(0)
        both.append(Discriminators(DiscriminatorConfig(width=0.0625, resolutions=resolutions)).eval())
    without, beside = both
    state = beside.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in without.state_dict().items())
    assert not any(key.startswith("mrsd") for key in without.state_dict())
    audio = torch.randn(1, 1, 1024)
    before, after = without(audio), beside(audio)
    assert len(after) == len(before) + 1
    assert all(torch.equal(a, b) for x, y in zip(before, after, strict=False) for a, b in zip(x, y, strict=True))


def change(discriminator, one, other):
    """How much the maps of two sounds differ, relative to the maps of the first."""
    with torch.no_grad():
        pairs = [
            (a, b)
            for x, y in zip(discriminator(one), discriminator(other), strict=True)
            for a, b in zip(x, y, strict=True)
        ]
    return float(sum((a - b).norm() for a, b in pairs) / sum(a.norm() for a, _ in pairs))


def test_a_faint_tone_beside_a_loud_one_is_plain_in_the_spectrogram_alone():
    torch.manual_seed(0)
    discriminators = Discriminators(DiscriminatorConfig(width=0.25, resolutions=RESOLUTIONS)).eval()
    time = torch.arange(8192).reshape(1, 1, -1) / 16000
    loud = 0.3 * torch.sin(2 * torch.pi * 200 * time)
    faint = loud + 0.0003 * torch.sin(2 * torch.pi * 6000 * time)
    assert change(discriminators.mpd, loud, faint) < 0.003
    assert change(discriminators.msd, loud, faint) < 0.003
    assert change(discriminators.mrsd, loud, faint) > 0.05


def test_a_resolution_hears_magnitudes_and_no_phase():
    discriminator, audio = multi_resolution((256,), 0.0625), torch.randn(1, 1, 1024)
    assert change(discriminator, audio, -audio) < 1e-6
    assert change(discriminator, audio, 2 * audio) > 0.1


def only(**settings):
    return DiscriminatorConfig(periods=(), scales=0, **settings)


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (only(melgan=3), 16.9),  # MelGAN's code: four channels a group
        (only(melgan=3, melgan_groups=4), 56.6),  # SEANet's discriminators in the table of the EBEN paper
        (only(melgan=1, melgan_groups=4, bands=3), 27.8),  # EBEN's, there
    ],
    ids=["melgan", "seanet", "eben"],
)
def test_sizes_of_the_papers_of_melgan_and_eben(config, millions):
    discriminators = fold_weight_norm(Discriminators(config))
    assert sum(p.numel() for p in discriminators.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("length", [64, 1000, 1001, 2310])
def test_discriminators_of_melgan_and_of_bands_with_logits_last(length):
    results = Discriminators(only(melgan=3, bands=3, width=0.0625))(torch.randn(2, 1, length))
    assert [len(maps) for maps in results] == [7] * 3 + [8] * 3
    assert [maps[0].shape[-1] for maps in results[:3]] == [length, length // 2 + 1, (length // 2 + 1) // 2 + 1]
    assert [maps[0].shape for maps in results[3:]] == [(2, 3, -(-length // 4))] * 3
    assert all(maps[-1].ndim == 2 and len(maps[-1]) == 2 for maps in results)


def test_discriminators_of_bands_do_not_hear_the_lowest():
    discriminators = Discriminators(only(bands=3, width=0.0625))
    time = torch.arange(8000.0)[None, None] / 16000
    low, high = (torch.sin(2 * torch.pi * hertz * time) for hertz in (600.0, 3000.0))
    energies = [float(discriminators.bands.pqmf.analysis(sound)[:, -3:, 50:].square().mean()) for sound in (low, high)]
    assert energies[0] < 1e-4 * energies[1]
    fades = torch.hann_window(8000)[None, None]  # its ends would be heard
    beside, inside = ((high + 0.1 * more) * fades for more in (low, high))
    assert change(discriminators, high * fades, beside) < 0.2 * change(discriminators, high * fades, inside)


def test_a_band_is_judged_apart_until_the_last_layer():
    discriminator = BandDiscriminator(3, 2, 0.0625)
    bands = torch.randn(1, 3, 64)
    other = bands.clone()
    other[:, 1] += 1
    for before, after in list(zip(discriminator(bands), discriminator(other), strict=True))[:-1]:
        changed = (before != after).amax((0, 2)).view(3, -1).any(-1)
        assert changed.tolist() == [False, True, False]


def test_what_is_not_named_is_not_there():
    keys = Discriminators(SMALL).state_dict().keys()
    assert {key.partition(".")[0] for key in keys} == {"mpd", "msd"}


@pytest.mark.parametrize("level", [0.0, 1e-6, 0.1])
def test_the_gradient_of_a_spectrograms_judge_reaches_the_audio_and_is_finite(level):
    audio = (level * torch.randn(1, 1, 1000)).requires_grad_()
    sum(maps[-1].square().mean() for maps in multi_resolution(RESOLUTIONS, 0.0625)(audio)).backward()
    assert audio.grad.isfinite().all()
    # to the very last sample, though 1000 is no multiple of the hop; silence has no slope
    assert bool((audio.grad != 0).all()) == (level > 0)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"width": 0.03}, "discriminator.width is 0.03, must be a multiple of 1/16"),
        ({"periods": (1,)}, "periods must be at least 2"),
        ({"scales": -1}, "scales not negative"),
        ({"periods": (), "scales": 0}, "one of periods, scales, resolutions, melgan and bands"),
        ({"resolutions": (512, 100)}, r"discriminator.resolutions is \(512, 100\), must be multiples of 8"),
        ({"melgan": -1}, "discriminator.melgan is -1, melgan_groups 0, must not be negative"),
        ({"bands": 5}, "discriminator.bands is 5, must be from 0 to of_bands, which is 4"),
        ({"resolutions": (0,)}, r"discriminator.resolutions is \(0,\), must be multiples of 8"),
    ],
)
def test_settings_that_cannot_be(settings, what):
    with pytest.raises(ConfigError, match=what):
        DiscriminatorConfig(**settings)


def test_periods_are_the_papers_primes():
    assert DiscriminatorConfig().periods == (2, 3, 5, 7, 11)


def test_what_lacks_to_whole_periods_is_reflected():
    torch.manual_seed(0)
    discriminator, audio = PeriodDiscriminator(7, 0.0625), torch.randn(1, 1, 500)  # four samples short of 504
    reflected = torch.cat([audio, audio[..., -5:-1].flip(-1)], -1)
    for one, other in zip(discriminator(audio), discriminator(reflected), strict=True):
        torch.testing.assert_close(one, other)
