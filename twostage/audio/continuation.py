"""The samples that follow the end of a signal, which causal models need because their output is late."""

import numpy as np
from numpy.typing import NDArray

FADE = 512  # samples over which the last one of a signal fades out behind its end


def continued(audio: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    """A signal (..., T) and what follows its end, (..., T + steps): ``nn.streaming.continued``, which says why.

    >>> continued(np.array([3.0, 1.5, 2.0], np.float32), 3).round(2).tolist()
    [3.0, 1.5, 2.0, 2.5, 1.0, 4.0]
    """
    past = np.concatenate([np.zeros((*audio.shape[:-1], steps + 1), np.float32), audio], axis=-1)[..., -steps - 1 :]
    fade = np.cos(np.minimum(np.arange(1, steps + 1, dtype=np.float32), FADE) * np.float32(np.pi / FADE)) + 1
    return np.concatenate([audio, fade * past[..., -1:] - past[..., -2::-1]], axis=-1)
