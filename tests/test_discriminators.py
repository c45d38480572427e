"""Claims about the judges: sizes of the paper, any length, logits last, settings that cannot be."""

import pytest
import torch

from twostage.discriminators import DiscriminatorConfig, Discriminators, MultiPeriod, MultiScale
from twostage.errors import ConfigError

SMALL = DiscriminatorConfig(width=0.0625)


def test_sizes_of_the_paper():
    with torch.device("meta"):
        judges = Discriminators(DiscriminatorConfig())
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (judges.mpd, judges.msd)]
    assert sizes == pytest.approx([41.1, 29.6], abs=0.1)


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


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"width": 0.03}, "discriminator.width is 0.03, must be a multiple of 1/16"),
        ({"periods": (1,)}, "periods must be at least 2"),
        ({"periods": (), "scales": 0}, "one of the two present"),
    ],
)
def test_settings_that_cannot_be(settings, what):
    with pytest.raises(ConfigError, match=what):
        DiscriminatorConfig(**settings)
