"""Claims about the judges: sizes of the papers, any length, logits last, what each hears, settings that cannot be."""

import pytest
import torch

from twostage.discriminators import DiscriminatorConfig, Discriminators, MultiPeriod, MultiResolution, MultiScale
from twostage.errors import ConfigError

SMALL = DiscriminatorConfig(width=0.0625)
RESOLUTIONS = (256, 512, 1024)


def test_sizes_of_the_paper():
    with torch.device("meta"):
        judges = Discriminators(DiscriminatorConfig(resolutions=(512, 1024, 2048)))
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (judges.mpd, judges.msd, judges.mrsd)]
    assert sizes == pytest.approx([41.1, 29.6, 0.28], rel=0.005)


@pytest.mark.parametrize("length", [64, 1000, 1001, 2310])
def test_a_judge_a_period_and_a_scale_with_logits_last(length):
    results = Discriminators(SMALL)(torch.randn(2, 1, length))
    assert len(results) == 5 + 3
    assert [len(maps) for maps in results] == [6] * 5 + [8] * 3
    assert all(maps[-1].ndim == 2 and len(maps[-1]) == 2 for maps in results)


def test_a_period_sees_columns_a_period_apart():
    judge = MultiPeriod((3,), 0.0625).eval()
    audio = torch.randn(1, 1, 300)
    other = audio.clone()
    other[..., 151] += 1
    first, second = judge(audio)[0][0], judge(other)[0][0]
    assert {int(column) for column in (first != second).nonzero()[:, -1]} == {151 % 3}


def test_scales_halve_and_the_first_alone_is_spectral():
    judge = MultiScale(3, 0.0625)
    lengths = [maps[0].shape[-1] for maps in judge(torch.randn(1, 1, 1024))]
    assert lengths == [1024, 513, 257]
    assert [any("_u" in key for key in d.state_dict()) for d in judge.discriminators] == [True, False, False]


@pytest.mark.parametrize("length", [64, 1000, 1001, 2310])
def test_a_judge_a_resolution_with_logits_last(length):
    results = MultiResolution(RESOLUTIONS, 0.0625)(torch.randn(2, 1, length))
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


def change(judge, one, other):
    """How much the maps of two sounds differ, relative to the maps of the first."""
    with torch.no_grad():
        pairs = [(a, b) for x, y in zip(judge(one), judge(other), strict=True) for a, b in zip(x, y, strict=True)]
    return float(sum((a - b).norm() for a, b in pairs) / sum(a.norm() for a, _ in pairs))


def test_a_faint_tone_beside_a_loud_one_is_plain_in_the_spectrogram_alone():
    torch.manual_seed(0)
    judges = Discriminators(DiscriminatorConfig(width=0.25, resolutions=RESOLUTIONS)).eval()
    time = torch.arange(8192).reshape(1, 1, -1) / 16000
    loud = 0.3 * torch.sin(2 * torch.pi * 200 * time)
    faint = loud + 0.0003 * torch.sin(2 * torch.pi * 6000 * time)
    assert change(judges.mpd, loud, faint) < 0.003
    assert change(judges.msd, loud, faint) < 0.003
    assert change(judges.mrsd, loud, faint) > 0.05


def test_a_resolution_hears_magnitudes_and_no_phase():
    judge, audio = MultiResolution((256,), 0.0625), torch.randn(1, 1, 1024)
    assert change(judge, audio, -audio) < 1e-6
    assert change(judge, audio, 2 * audio) > 0.1


@pytest.mark.parametrize("level", [0.0, 1e-6, 0.1])
def test_the_gradient_of_a_spectrograms_judge_reaches_the_audio_and_is_finite(level):
    audio = (level * torch.randn(1, 1, 1000)).requires_grad_()
    sum(maps[-1].square().mean() for maps in MultiResolution(RESOLUTIONS, 0.0625)(audio)).backward()
    assert audio.grad.isfinite().all()
    # to the very last sample, though 1000 is no multiple of the hop; silence has no slope
    assert bool((audio.grad != 0).all()) == (level > 0)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"width": 0.03}, "discriminator.width is 0.03, must be a multiple of 1/16"),
        ({"periods": (1,)}, "periods must be at least 2"),
        ({"scales": -1}, "scales not negative"),
        ({"periods": (), "scales": 0}, "one of periods, scales and resolutions must be present"),
        ({"resolutions": (512, 100)}, r"discriminator.resolutions is \(512, 100\), must be multiples of 8"),
        ({"resolutions": (0,)}, r"discriminator.resolutions is \(0,\), must be multiples of 8"),
    ],
)
def test_settings_that_cannot_be(settings, what):
    with pytest.raises(ConfigError, match=what):
        DiscriminatorConfig(**settings)
