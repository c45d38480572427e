"""Restore the missing high band of bone-conducted speech.

    import twostage
    model = twostage.load()
    restored = twostage.restore(model, audio, sample_rate)  # (T,) or (C, T), numpy or torch; at model.sample_rate

    with twostage.Stream(twostage.load("causal")) as stream:  # push(samples) of any size, then flush()
        ready = stream.push(samples)

Letters of shapes, everywhere in the package: B batch, C channels, T samples, F bands or bins, L frames.
"""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twostage.inference.restoration import restore as restore
    from twostage.inference.stream import Stream as Stream
    from twostage.models.loading import load as load
    from twostage.models.protocol import Enhancer as Enhancer
    from twostage.models.two_stage import TwoStage as TwoStage

__version__ = "0.1.0"
logging.getLogger(__name__).addHandler(logging.NullHandler())  # the program that uses the package decides what is shown
__all__ = ["Enhancer", "Stream", "TwoStage", "load", "restore"]


def __getattr__(name: str) -> Any:  # `import twostage` and the command line's --help must not wait for torch
    if name == "TwoStage":
        from twostage.models.two_stage import TwoStage

        return TwoStage
    if name == "Enhancer":
        from twostage.models.protocol import Enhancer

        return Enhancer
    if name == "load":
        from twostage.models.loading import load

        return load
    if name == "restore":
        from twostage.inference.restoration import restore

        return restore
    if name == "Stream":
        from twostage.inference.stream import Stream

        return Stream
    raise AttributeError(f"module 'twostage' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
