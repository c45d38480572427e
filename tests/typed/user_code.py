"""An example of a user's program, for a type checker and for `tests/project/test_typing.py`, which also runs it."""

from collections.abc import Iterable
from typing import assert_type

import numpy as np
import torch
from numpy.typing import NDArray

import twostage
from twostage.models.enhancer import EnhancerModule

Samples = NDArray[np.float32]


class Half(EnhancerModule):
    """An enhancer that a user has written."""

    @property
    def sample_rate(self) -> int:
        return 16000

    @property
    def context(self) -> int:
        return 0

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return audio / 2


def restored_array(audio: Samples, sample_rate: int) -> tuple[Samples, int]:
    """Restore with the default model; also return its sample rate."""
    model = twostage.load()
    assert_type(model, twostage.Enhancer)
    restored = twostage.restore(model, audio, sample_rate, level="model")
    assert_type(restored, Samples)
    return restored, model.sample_rate


def restored_tensor(model: twostage.Enhancer, audio: torch.Tensor) -> torch.Tensor:
    """Restore with any model, at its sample rate."""
    restored = twostage.restore(model, audio, model.sample_rate)
    assert_type(restored, torch.Tensor)
    return restored


def streamed(model: twostage.Enhancer, microphone: Iterable[Samples]) -> tuple[Samples, float]:
    """The whole output of a stream, and its latency in seconds."""
    with twostage.Stream(model, seconds=0.5) as stream:
        parts = [stream.push(samples) for samples in microphone]
        parts.append(stream.flush())
    return np.concatenate(parts), stream.latency / stream.sample_rate


def halved(audio: Samples) -> Samples:
    """Restore with the enhancer above."""
    return twostage.restore(Half(), audio, 16000, level="model")
