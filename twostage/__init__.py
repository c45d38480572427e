"""Restore the missing high band of bone-conducted speech.

    import twostage
    model = twostage.load()
    restored = twostage.restore(model, audio, sample_rate)  # (T,) or (C, T), numpy or torch; at model.sample_rate

    with twostage.Stream(twostage.load("causal")) as stream:  # push(samples) of any size, then flush()
        ready = stream.push(samples)

Letters of shapes, everywhere in the package: B batch, C channels, T samples, F bands or bins, L frames.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twostage.inference.restoration import restore as restore
    from twostage.inference.stream import Stream as Stream
    from twostage.models.loading import load as load
    from twostage.models.protocol import Enhancer as Enhancer
    from twostage.models.two_stage import TwoStage as TwoStage
    from twostage.utils.errors import Cancelled as Cancelled
    from twostage.utils.errors import TwoStageError as TwoStageError

__version__ = "0.1.0"
logging.getLogger(__name__).addHandler(logging.NullHandler())  # the program that uses the package decides what is shown
__all__ = ["Cancelled", "Enhancer", "Stream", "TwoStage", "TwoStageError", "load", "restore"]
_MODULES = {  # imported on first use, so that `import twostage` and `twostage --help` do not wait for torch
    "Cancelled": "utils.errors",
    "Enhancer": "models.protocol",
    "Stream": "inference.stream",
    "TwoStage": "models.two_stage",
    "TwoStageError": "utils.errors",
    "load": "models.loading",
    "restore": "inference.restoration",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'twostage' has no attribute {name!r}")
    return getattr(import_module(f"twostage.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
