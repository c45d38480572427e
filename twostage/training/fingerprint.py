"""A compact fingerprint of the training and validation data, which detects a resumption with other data.

Between a training and its resumption, paths may change, but not contents. Folder names are therefore ignored, and sound
is compared by its levels, so that files may be moved or recoded losslessly.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twostage.data.manifest import Entry
from twostage.training.validation import Example

PARTS = 8  # sections of a held-out file whose levels are compared
TOLERANCE = 0.02  # relative difference of levels
ROUNDING = 1e-9  # relative difference of sums, whose last bits depend on the number of threads
SPEECH, NOISE, HELD_OUT, LISTENER = (
    "data.train",
    "data.noise",
    "data.valid",
    "valid.vocoder",
)  # settings to name in errors


def fingerprint(
    entries: Sequence[Entry], noise: Iterable[str], held_out: Sequence[Example], listener: nn.Module | None
) -> dict[str, Any]:
    """Tensors and texts for a training's state, by the setting that they belong to."""
    speech = sorted((_name(e.clean), _name(e.degraded), round(e.delay, 6), round(e.seconds, 2)) for e in entries)
    weights = sorted(listener.state_dict().items()) if listener else []
    return {
        SPEECH: _digest(speech),
        NOISE: _digest(sorted(_name(path) for path in noise)),
        HELD_OUT: [_levels(example) for example in held_out],
        LISTENER: [weight.double().abs().sum().cpu().reshape(1) for _, weight in weights],
    }


def changed(ours: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
    """The first setting whose contents differ from the stored ones; empty if there is none, or nothing was stored.

    States of earlier versions have no fingerprints, or a text for the listener, which is not compared.
    """
    for name in (SPEECH, NOISE):
        if name in stored and ours[name] != stored[name]:
            return name
    for name, tolerance in ((LISTENER, ROUNDING), (HELD_OUT, TOLERANCE)):
        theirs = stored.get(name, ours[name])
        if not isinstance(theirs, str) and not _are_close(ours[name], theirs, tolerance):
            return name
    return ""


def _levels(example: Example) -> Tensor:
    """The number of samples, and the levels of both sides in PARTS sections."""
    channels = torch.cat([example.degraded, example.clean], 1)[0].double().cpu()
    levels = [part.square().mean(-1).sqrt() for part in channels.tensor_split(PARTS, -1) if part.shape[-1]]
    return torch.cat([torch.tensor([float(channels.shape[-1])], dtype=torch.float64), *levels])


def _are_close(left: Sequence[Tensor], right: Sequence[Tensor], tolerance: float) -> bool:
    return len(left) == len(right) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=1e-4) for a, b in zip(left, right, strict=True)
    )


def _name(path: str | None) -> str:
    return Path(path or "").name


def _digest(values: object) -> str:
    return sha256(repr(values).encode()).hexdigest()
