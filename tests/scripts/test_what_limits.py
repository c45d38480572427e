"""Claims about scripts/what_limits.py: each variant puts right what its name says, and nothing else."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from twostage.models.features import MelConfig

CONFIG = MelConfig()


@pytest.fixture(scope="module")
def variants(load_script: Callable[[str], ModuleType]) -> dict[str, torch.Tensor]:
    """Of a restoration that is 0, of speech whose bands rise from 1 and which pauses in its second half."""
    module = load_script("what_limits")
    hertz = module.centers(CONFIG)
    assert hertz[:3, 0].tolist() == pytest.approx([37, 74, 111], abs=2)  # slaney's linear part
    return dict(module.variants(torch.zeros_like(SPEECH), SPEECH, CONFIG))


SPEECH = torch.linspace(1, 3, CONFIG.n_mels)[None, :, None].repeat(1, 1, 40)
SPEECH[..., 20:] -= 12


def test_the_truth_is_put_where_the_name_says(variants: dict[str, torch.Tensor]) -> None:
    right = {name: mel == SPEECH for name, mel in variants.items()}
    assert not right["as restored"].any()
    assert right["clean (copy-synthesis)"].all()
    below, above = right["true below 1000 Hz"][0, :, 0], right["true above 1000 Hz"][0, :, 0]
    assert below.tolist() == (~above).tolist() == [True] * 26 + [False] * 54
    assert right["true pauses"].all(1)[0].tolist() == [False] * 20 + [True] * 20


def test_levels_are_moved_by_what_the_name_says(variants: dict[str, torch.Tensor]) -> None:
    level = variants["true mean level of each band"]
    torch.testing.assert_close(level.mean(-1), SPEECH.mean(-1))
    assert float(level.std(-1).max()) < 1e-5
    quieter = variants["6 dB quieter above 1 kHz"]
    assert float(quieter[:, :26].abs().max()) == 0
    assert quieter[0, 30, 0].exp().item() == pytest.approx(0.501, abs=1e-3)
