"""Distinguishes bytes that are not sound from sound, by their values when they are interpreted as sound."""

import numpy as np
from numpy.typing import NDArray

IMPLAUSIBLE = 1e3  # times full scale: no sound stored as floats is as loud
LOUD = 0.1  # RMS without the mean: white noise above it is not recorded sound
UNLIKE = 0.3  # correlation of consecutive samples below which they count as independent


def is_loud_noise(audio: NDArray[np.floating]) -> bool:
    """Whether samples (C, T) are loud and uncorrelated with their neighbors, as in data that is not sound.

    >>> is_loud_noise(np.frombuffer(np.random.default_rng(0).bytes(4000), "<i2")[None] / 2**15)
    True
    >>> is_loud_noise(np.sin(np.arange(2000) / 10)[None])
    False
    """
    if audio.shape[1] < 2:
        return False
    if not np.abs(audio).max() < IMPLAUSIBLE:  # NaN too
        return True
    centered = audio - audio.mean(axis=1, keepdims=True)
    power = float(np.square(centered).mean())
    return power > LOUD**2 and float((centered[:, 1:] * centered[:, :-1]).mean()) < UNLIKE * power
