"""What a user's program looks like, for a type checker and for `tests/project/test_typing.py`, which runs it too."""

from collections.abc import Iterable
from typing import assert_type

import numpy as np
import torch
from numpy.typing import NDArray

import twostage
from twostage.models.enhancer import EnhancerModule

Samples = NDArray[np.float32]


class Half(EnhancerModule):
    """An enhancer of the user's own."""

    @property
    def sample_rate(self) -> int:
        return 16000

    @property
    def context(self) -> int:
        return 0

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return audio / 2


def restored_array(audio: Samples, sample_rate: int) -> tuple[Samples, int]:
    """With the default model, at the rate that it restores to."""
    model = twostage.load()
    assert_type(model, twostage.Enhancer)
    restored = twostage.restore(model, audio, sample_rate, level="model")
    assert_type(restored, Samples)
    return restored, model.sample_rate


def restored_tensor(model: twostage.Enhancer, audio: torch.Tensor) -> torch.Tensor:
    """By any model, at its own rate."""
    restored = twostage.restore(model, audio, model.sample_rate)
    assert_type(restored, torch.Tensor)
    return restored


def streamed(model: twostage.Enhancer, microphone: Iterable[Samples]) -> tuple[Samples, float]:
    """All of a stream, and how many seconds it is late."""
    with twostage.Stream(model, seconds=0.5) as stream:
        parts = [stream.push(samples) for samples in microphone]
        parts.append(stream.flush())
    return np.concatenate(parts), stream.latency / stream.sample_rate


def halved(audio: Samples) -> Samples:
    """By the enhancer above."""
    return twostage.restore(Half(), audio, 16000, level="model")
