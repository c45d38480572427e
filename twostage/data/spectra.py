"""Short-time spectra and smooth random curves in numpy: what the simulator and the sensor fit share."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Floats = NDArray[np.floating]
Complex = NDArray[np.complexfloating]

OVERLAP = 4  # frames that cover a sample; with a square-root Hann window on both sides they add up to one


@lru_cache(maxsize=8)
def _window(size: int) -> Floats:
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    window = np.sqrt(hann * 2 / OVERLAP).astype(np.float32)
    window.setflags(write=False)
    return window


def frame_size(sample_rate: int) -> int:
    """Samples in an analysis frame: 32 ms, a multiple of the overlap."""
    return OVERLAP * max(1, round(0.032 * sample_rate / OVERLAP))


def stft(signal: Floats, size: int) -> Complex:
    """Spectra (L, size // 2 + 1) of a signal (T,), one each size / 4 samples; white noise of power 1 has |X|^2 = size / 4."""
    hop = size // OVERLAP
    padded = np.pad(signal, (size, size + -len(signal) % hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    return fft.rfft(frames * _window(size), axis=1)


def istft(spectra: Complex, size: int, length: int) -> Floats:
    """Signal (length,) of spectra (L, size // 2 + 1); the inverse of `stft`."""
    hop = size // OVERLAP
    frames = (fft.irfft(spectra, size, axis=1) * _window(size)).reshape(len(spectra), OVERLAP, hop)
    blocks = np.zeros((len(spectra) + OVERLAP - 1, hop), frames.dtype)
    for part in range(OVERLAP):
        blocks[part : part + len(spectra)] += frames[:, part]
    return blocks.reshape(-1)[size : size + length]


def weights(positions: Floats) -> Floats:
    """Matrix (N, K) that turns K white numbers into N smooth ones of the same variance.

    ``positions`` (N,) are in units of the distance between two independent numbers. Straight lines between the knots
    would have less variance half way; every row is scaled to length one instead.
    """
    left = np.floor(positions - positions.min()).astype(int)
    part = positions - positions.min() - left
    rows = np.arange(len(positions))
    matrix = np.zeros((len(positions), int(left.max()) + 2), np.float32)
    matrix[rows, left] = 1 - part
    matrix[rows, left + 1] += part
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def smooth_curve(positions: Floats, rng: np.random.Generator) -> Floats:
    """Random curve (N,) of mean 0 and deviation 1, correlated over one unit of ``positions``."""
    matrix = weights(positions + rng.random())
    return matrix @ rng.standard_normal(matrix.shape[1], np.float32)


def smooth_field(times: Floats, pitches: Floats, rng: np.random.Generator) -> Floats:
    """Random surface (L, F) of mean 0 and deviation 1, correlated over one unit of ``times`` (L,) and ``pitches`` (F,)."""
    rows, columns = weights(times + rng.random()), weights(pitches + rng.random())
    knots = rng.standard_normal((rows.shape[1], columns.shape[1]), np.float32)
    return rows @ knots @ columns.T


def octaves(frequencies: Floats) -> Floats:
    """Positions on a scale that is linear below 200 Hz and logarithmic above, in octaves."""
    return np.log2(1 + frequencies / 200)


def decibels(power: Floats) -> Floats:
    return 10 * np.log10(np.maximum(power, 1e-20))
