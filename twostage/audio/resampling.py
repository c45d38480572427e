"""Sample rates and lengths of streams of sound: the only module that imports soxr."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from twostage.audio.types import Audio


def resampled(blocks: Iterable[Audio], from_rate: int, to_rate: int, channels: int) -> Iterator[Audio]:
    """Resample a stream of blocks (C, T) to exactly ``resampled_length`` of its length."""
    if from_rate == to_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_rate, to_rate, channels)
    consumed = returned = 0
    first = np.zeros((channels, 0), np.float32)
    for block in blocks:
        first = block[:, :1].copy() if consumed == 0 else first
        out = stream.resample_chunk(np.ascontiguousarray(block.T, dtype=np.float32)).T
        consumed, returned = consumed + block.shape[1], returned + out.shape[1]
        yield out
    remaining = stream.resample_chunk(np.zeros((0, channels), np.float32), last=True).T
    if returned + remaining.shape[1] == 0:
        remaining = first  # too short for one sample at the new rate: the first sample is used
    yield match_length(remaining, max(0, resampled_length(consumed, from_rate, to_rate) - returned))


def exactly(blocks: Iterable[Audio], frames: int, channels: int) -> Iterator[Audio]:
    """The first ``frames`` samples of a stream of (C, T) blocks, padded with zeros if it is shorter."""
    remaining = frames
    for block in blocks:
        yield block[:, :remaining]
        remaining = max(0, remaining - block.shape[1])
    yield np.zeros((channels, remaining), np.float32)


def resampled_length(frames: int, from_rate: int, to_rate: int) -> int:
    """The length at ``to_rate`` of ``frames`` samples at ``from_rate``; at least 1 unless ``frames`` is 0."""
    return max(min(frames, 1), round(frames * to_rate / from_rate))


def resample(audio: Audio, from_rate: int, to_rate: int) -> Audio:
    """Resample (..., T) along its last axis."""
    rows = np.asarray(audio, np.float32).reshape(-1, audio.shape[-1])
    out = np.concatenate(list(resampled([rows], from_rate, to_rate, len(rows))), axis=1)
    return out.reshape(*audio.shape[:-1], -1)


def cut(audio: NDArray[Any], start: int, samples: int) -> Audio:
    """Samples (samples,) of audio (T,) from ``start``, which may lie before it, as floats; zeros beyond either end."""
    out = np.zeros(samples, np.float32)
    first, last = max(0, start), min(len(audio), start + samples)
    if last > first:
        out[first - start : last - start] = audio[first:last]
    return out


def match_length(audio: Audio, frames: int) -> Audio:
    """Cut audio (..., T) to ``frames`` samples, or pad it with zeros."""
    missing = max(0, frames - audio.shape[-1])
    return np.pad(audio[..., :frames], [(0, 0)] * (audio.ndim - 1) + [(0, missing)]) if missing else audio[..., :frames]
