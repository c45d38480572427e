"""Tests of scripts/what_limits.py: each variant corrects what its name says, and nothing else."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from twostage.models.features import MelConfig

CONFIG = MelConfig()


@pytest.fixture(scope="module")
def variants(load_script: Callable[[str], ModuleType]) -> dict[str, torch.Tensor]:
    """Variants of a restoration of zeros, for speech whose bands rise from 1 to 3, with a pause in its second half."""
    module = load_script("what_limits")
    hertz = module.centers(CONFIG)
    assert hertz[:3, 0].tolist() == pytest.approx([37, 74, 111], abs=2)  # slaney's linear part
    return dict(module.variants(torch.zeros_like(SPEECH), SPEECH, CONFIG))


SPEECH = torch.linspace(1, 3, CONFIG.n_mels)[None, :, None].repeat(1, 1, 40)
SPEECH[..., 20:] -= 12


def test_variants_contain_the_clean_mels_where_their_names_say(variants: dict[str, torch.Tensor]) -> None:
    is_clean = {name: mel == SPEECH for name, mel in variants.items()}
    assert not is_clean["as restored"].any()
    assert is_clean["clean (copy-synthesis)"].all()
    below, above = is_clean["true below 1000 Hz"][0, :, 0], is_clean["true above 1000 Hz"][0, :, 0]
    assert below.tolist() == (~above).tolist() == [True] * 26 + [False] * 54
    assert is_clean["true pauses"].all(1)[0].tolist() == [False] * 20 + [True] * 20


def test_variants_change_levels_as_their_names_say(variants: dict[str, torch.Tensor]) -> None:
    level = variants["true mean level of each band"]
    torch.testing.assert_close(level.mean(-1), SPEECH.mean(-1))
    assert float(level.std(-1).max()) < 1e-5
    quieter = variants["6 dB quieter above 1 kHz"]
    assert float(quieter[:, :26].abs().max()) == 0
    assert quieter[0, 30, 0].exp().item() == pytest.approx(0.501, abs=1e-3)
