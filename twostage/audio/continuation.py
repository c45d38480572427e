"""Extends a signal beyond its end, which causal models need because their output is delayed."""

import numpy as np
from numpy.typing import NDArray

FADE = 512  # samples over which the value of the last sample fades out after the end


def continued(audio: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    """Extend a signal (..., T) to (..., T + steps); ``nn.streaming.continued`` explains how and why.

    >>> continued(np.array([3.0, 1.5, 2.0], np.float32), 3).round(2).tolist()
    [3.0, 1.5, 2.0, 2.5, 1.0, 4.0]
    """
    past = np.concatenate([np.zeros((*audio.shape[:-1], steps + 1), np.float32), audio], axis=-1)[..., -steps - 1 :]
    fade = np.cos(np.minimum(np.arange(1, steps + 1, dtype=np.float32), FADE) * np.float32(np.pi / FADE)) + 1
    return np.concatenate([audio, fade * past[..., -1:] - past[..., -2::-1]], axis=-1)
