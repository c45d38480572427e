"""A fingerprint of the training and validation data in a few numbers, which detects a resumption with other data.

Paths may change between a training and its resumption, contents may not. Names of folders are therefore ignored, and
sound is compared by its levels, so that a file that was moved or recoded without loss is the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twostage.data.manifest import Entry
from twostage.training.validation import Example

PARTS = 8  # stretches of a held-out file whose levels are compared
TOLERANCE = 0.02  # of a level
SPEECH, NOISE, HELD_OUT, LISTENER = "data.train", "data.noise", "data.valid", "valid.vocoder"  # the settings to blame


def fingerprint(
    entries: Sequence[Entry], noise: Iterable[str], held_out: Sequence[Example], listener: nn.Module | None
) -> dict[str, Any]:
    """Tensors and texts for a training's state, by the setting that they belong to."""
    speech = sorted((_leaf(e.clean), _leaf(e.degraded), round(e.delay, 6), round(e.seconds, 2)) for e in entries)
    weights = sorted(listener.state_dict().items()) if listener else []
    return {
        SPEECH: _digest(speech),
        NOISE: _digest(sorted(_leaf(path) for path in noise)),
        HELD_OUT: [_levels(example) for example in held_out],
        LISTENER: _digest([(name, weight.double().abs().sum().item()) for name, weight in weights]),
    }


def changed(ours: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
    """The first setting whose contents differ from the stored ones; empty if there is none, or nothing was stored.

    States of earlier versions have no fingerprints.
    """
    for name in (SPEECH, NOISE, LISTENER):
        if name in stored and ours[name] != stored[name]:
            return name
    known = stored.get(HELD_OUT, ours[HELD_OUT])
    same = len(known) == len(ours[HELD_OUT]) and all(map(_alike, ours[HELD_OUT], known))
    return "" if same else HELD_OUT


def _levels(example: Example) -> Tensor:
    """The samples, and the levels of both sides in PARTS segments."""
    both = torch.cat([example.degraded, example.clean], 1)[0].double().cpu()
    levels = [part.square().mean(-1).sqrt() for part in both.tensor_split(PARTS, -1) if part.shape[-1]]
    return torch.cat([torch.tensor([float(both.shape[-1])], dtype=torch.float64), *levels])


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=TOLERANCE, atol=1e-4))


def _leaf(path: str | None) -> str:
    return Path(path or "").name


def _digest(values: object) -> str:
    return sha256(repr(values).encode()).hexdigest()
