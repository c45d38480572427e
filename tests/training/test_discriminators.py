"""Tests of the discriminators: sizes of the papers, feature maps of any length, what each responds to, settings."""

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


def test_the_sizes_are_those_of_the_paper():
    with torch.device("meta"):
        discriminators = Discriminators(DiscriminatorConfig(resolutions=(512, 1024, 2048)))
    sizes = [
        sum(p.numel() for p in part.parameters()) / 1e6
        for part in (discriminators.mpd, discriminators.msd, discriminators.mrsd)
    ]
    assert sizes == pytest.approx([41.1, 29.6, 0.28], rel=0.005)


@pytest.mark.parametrize("length", [64, 1000, 1001, 2310])
def test_every_period_and_scale_has_a_discriminator_with_logits_last(length):
    results = Discriminators(SMALL)(torch.randn(2, 1, length))
    assert len(results) == 5 + 3
    assert [len(maps) for maps in results] == [6] * 5 + [8] * 3
    assert all(maps[-1].ndim == 2 and len(maps[-1]) == 2 for maps in results)


def test_a_period_discriminator_folds_samples_by_the_period():
    discriminator = multi_period((3,), 0.0625).eval()
    audio = torch.randn(1, 1, 300)
    perturbed = audio.clone()
    perturbed[..., 151] += 1
    first, second = discriminator(audio)[0][0], discriminator(perturbed)[0][0]
    assert {int(column) for column in (first != second).nonzero()[:, -1]} == {151 % 3}


def test_scales_halve_the_rate_and_only_the_first_has_spectral_normalization():
    discriminator = multi_scale(3, 0.0625)
    lengths = [maps[0].shape[-1] for maps in discriminator(torch.randn(1, 1, 1024))]
    assert lengths == [1024, 513, 257]
    assert [any("_u" in key for key in d.state_dict()) for d in discriminator.discriminators] == [True, False, False]


@pytest.mark.parametrize("length", [64, 1000, 1001, 2310])
def test_every_resolution_has_a_discriminator_with_logits_last(length):
    results = multi_resolution(RESOLUTIONS, 0.0625)(torch.randn(2, 1, length))
    assert [len(maps) for maps in results] == [6] * 3
    for maps, n_fft in zip(results, RESOLUTIONS, strict=True):
        frames = -(-length // (n_fft // 4))
        assert maps[0].shape == (2, 2, frames, n_fft // 2 + 1)
        assert maps[-1].shape == (2, frames * (n_fft // 16 + 1))  # three strides of two along frequency


def test_spectrogram_discriminators_do_not_change_those_of_the_waveform():
    discriminators = []
    for resolutions in ((), (256,)):
        torch.manual_seed(0)
        discriminators.append(Discriminators(DiscriminatorConfig(width=0.0625, resolutions=resolutions)).eval())
    without, with_spectrogram = discriminators
    state = with_spectrogram.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in without.state_dict().items())
    assert not any(key.startswith("mrsd") for key in without.state_dict())
    audio = torch.randn(1, 1, 1024)
    before, after = without(audio), with_spectrogram(audio)
    assert len(after) == len(before) + 1
    assert all(torch.equal(a, b) for x, y in zip(before, after, strict=False) for a, b in zip(x, y, strict=True))


def relative_change(discriminator, one, other):
    """The difference between the feature maps of two sounds, relative to those of the first."""
    with torch.no_grad():
        pairs = [
            (a, b)
            for x, y in zip(discriminator(one), discriminator(other), strict=True)
            for a, b in zip(x, y, strict=True)
        ]
    return float(sum((a - b).norm() for a, b in pairs) / sum(a.norm() for a, _ in pairs))


def test_only_spectrogram_discriminators_respond_to_a_faint_tone_beside_a_loud_one():
    torch.manual_seed(0)
    discriminators = Discriminators(DiscriminatorConfig(width=0.25, resolutions=RESOLUTIONS)).eval()
    time = torch.arange(8192).reshape(1, 1, -1) / 16000
    loud = 0.3 * torch.sin(2 * torch.pi * 200 * time)
    faint = loud + 0.0003 * torch.sin(2 * torch.pi * 6000 * time)
    assert relative_change(discriminators.mpd, loud, faint) < 0.003
    assert relative_change(discriminators.msd, loud, faint) < 0.003
    assert relative_change(discriminators.mrsd, loud, faint) > 0.05


def test_a_spectrogram_discriminator_ignores_the_sign():
    discriminator, audio = multi_resolution((256,), 0.0625), torch.randn(1, 1, 1024)
    assert relative_change(discriminator, audio, -audio) < 1e-6
    assert relative_change(discriminator, audio, 2 * audio) > 0.1


def config_of(**settings):
    return DiscriminatorConfig(periods=(), scales=0, **settings)


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (config_of(melgan=3), 16.9),  # as in MelGAN's code, four channels per group
        (config_of(melgan=3, melgan_groups=4), 56.6),  # SEANet's discriminators in the table of the EBEN paper
        (config_of(melgan=1, melgan_groups=4, bands=3), 27.8),  # EBEN's discriminators in the same table
    ],
    ids=["melgan", "seanet", "eben"],
)
def test_the_sizes_are_those_of_the_papers_of_melgan_and_eben(config, millions):
    discriminators = fold_weight_norm(Discriminators(config))
    assert sum(p.numel() for p in discriminators.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("length", [64, 1000, 1001, 2310])
def test_discriminators_of_melgan_and_of_bands_end_with_logits(length):
    results = Discriminators(config_of(melgan=3, bands=3, width=0.0625))(torch.randn(2, 1, length))
    assert [len(maps) for maps in results] == [7] * 3 + [8] * 3
    assert [maps[0].shape[-1] for maps in results[:3]] == [length, length // 2 + 1, (length // 2 + 1) // 2 + 1]
    assert [maps[0].shape for maps in results[3:]] == [(2, 3, -(-length // 4))] * 3
    assert all(maps[-1].ndim == 2 and len(maps[-1]) == 2 for maps in results)


def test_band_discriminators_ignore_the_lowest_band():
    discriminators = Discriminators(config_of(bands=3, width=0.0625))
    time = torch.arange(8000.0)[None, None] / 16000
    low, high = (torch.sin(2 * torch.pi * hertz * time) for hertz in (600.0, 3000.0))
    energies = [float(discriminators.bands.pqmf.analysis(sound)[:, -3:, 50:].square().mean()) for sound in (low, high)]
    assert energies[0] < 1e-4 * energies[1]
    fades = torch.hann_window(8000)[None, None]  # abrupt ends would reach every band
    with_low, with_high = ((high + 0.1 * added) * fades for added in (low, high))
    assert relative_change(discriminators, high * fades, with_low) < 0.2 * relative_change(
        discriminators, high * fades, with_high
    )


def test_bands_are_processed_separately_until_the_last_layer():
    discriminator = BandDiscriminator(3, 2, 0.0625)
    bands = torch.randn(1, 3, 64)
    perturbed = bands.clone()
    perturbed[:, 1] += 1
    for before, after in list(zip(discriminator(bands), discriminator(perturbed), strict=True))[:-1]:
        changed = (before != after).amax((0, 2)).view(3, -1).any(-1)
        assert changed.tolist() == [False, True, False]


def test_discriminators_that_are_not_configured_do_not_exist():
    keys = Discriminators(SMALL).state_dict().keys()
    assert {key.partition(".")[0] for key in keys} == {"mpd", "msd"}


@pytest.mark.parametrize("level", [0.0, 1e-6, 0.1])
def test_the_gradient_of_spectrogram_discriminators_is_finite_and_reaches_all_samples(level):
    audio = (level * torch.randn(1, 1, 1000)).requires_grad_()
    sum(maps[-1].square().mean() for maps in multi_resolution(RESOLUTIONS, 0.0625)(audio)).backward()
    assert audio.grad.isfinite().all()
    # up to the last sample, although 1000 is no multiple of the hop; the gradient of silence is zero
    assert bool((audio.grad != 0).all()) == (level > 0)


@pytest.mark.parametrize(
    ("settings", "message"),
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
def test_invalid_settings_are_errors_that_name_the_field(settings, message):
    with pytest.raises(ConfigError, match=message):
        DiscriminatorConfig(**settings)


def test_the_periods_are_the_primes_of_the_paper():
    assert DiscriminatorConfig().periods == (2, 3, 5, 7, 11)


def test_audio_is_padded_by_reflection_to_whole_periods():
    torch.manual_seed(0)
    discriminator, audio = PeriodDiscriminator(7, 0.0625), torch.randn(1, 1, 500)  # four samples short of 504
    reflected = torch.cat([audio, audio[..., -5:-1].flip(-1)], -1)
    for actual, expected in zip(discriminator(audio), discriminator(reflected), strict=True):
        torch.testing.assert_close(actual, expected)
