"""How loud speech is: levels of audio in dB re full scale, pauses left out."""

from math import log10

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.floating]

LEVEL = -26.0  # dBFS: active level that the models are trained at, and that every channel is brought to before them
FRAME = 0.02  # seconds: a frame of the level meter
RANGE = 20.0  # dB below the loudest frame at which speech counts as a pause


def rms(audio: Audio) -> float:
    """Root mean square over everything; 0 for nothing."""
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) if audio.size else 0.0


def levelled(audio: Audio, sample_rate: int) -> Audio:
    """Audio (..., T) at the active level LEVEL; silence stays silence."""
    level = active_level(audio, sample_rate)
    return audio * np.float32(10 ** ((LEVEL - level) / 20)) if np.isfinite(level) else audio


class LevelMeter:
    """The active level and the peak of a stream of blocks (C, T), in a memory of one number for every 20 ms."""

    def __init__(self, channels: int, sample_rate: int) -> None:
        self.frame = max(1, round(FRAME * sample_rate))
        self.peak = np.zeros(channels)
        self.total = 0
        self._rest = np.zeros((channels, 0), np.float32)
        self._powers: list[NDArray[np.float64]] = []

    def add(self, block: Audio) -> None:
        self.total += block.shape[1]
        if block.shape[1]:
            self.peak = np.maximum(self.peak, np.abs(block).max(axis=1))
        block = np.concatenate([self._rest, block], axis=1)
        whole = block.shape[1] // self.frame * self.frame
        self._rest = block[:, whole:].copy()
        if whole:
            frames = block[:, :whole].reshape(len(block), -1, self.frame).astype(np.float64)
            self._powers.append(np.square(frames).mean(axis=2))

    def levels(self) -> NDArray[np.float64]:
        """Active level of each channel (C,) in dB re full scale; -inf for silence.

        The RMS over the 20 ms frames within 20 dB of the loudest; what is left at the end counts if there is no other.
        """
        if not self._powers:
            powers = np.square(self._rest, dtype=np.float64).mean(axis=1, keepdims=True) if self.total else None
        else:
            powers = np.concatenate(self._powers, axis=1)
        if powers is None:
            return np.full(len(self.peak), -np.inf)
        return np.array([_active(channel) for channel in powers])


def _active(powers: NDArray[np.float64]) -> float:
    loudest = powers.max()
    if loudest <= 0:
        return -np.inf
    return 10 * log10(powers[powers >= loudest * 10 ** (-RANGE / 10)].mean())


def active_level(audio: Audio, sample_rate: int) -> float:
    """Active level of (T,) or (C, T) audio in dB re full scale, over all its channels; -inf for silence."""
    meter = LevelMeter(1, sample_rate)
    for channel in np.atleast_2d(audio):
        meter.add(np.asarray(channel, np.float32)[None])
    return float(meter.levels()[0])
