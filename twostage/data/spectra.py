"""Short-time spectra and smooth random curves in numpy, for the simulator and the sensor fit."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Floats = NDArray[np.floating]
Complex = NDArray[np.complexfloating]

OVERLAP = 4  # frames that cover a sample; with square-root Hann windows for analysis and synthesis they add up to one


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
    """Spectra (L, size // 2 + 1) of a signal (T,) with a hop of size / 4 samples.

    White noise of power 1 has spectra of power size / 4.
    """
    hop = size // OVERLAP
    padded = np.pad(signal, (size, size + -len(signal) % hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    return fft.rfft(frames * _window(size), axis=1)


def istft(spectra: Complex, size: int, length: int) -> Floats:
    """Inverse of `stft`: spectra (L, size // 2 + 1), or fewer bins with zeros above, to a signal (length,)."""
    hop = size // OVERLAP
    frames = (fft.irfft(spectra, size, axis=1) * _window(size)).reshape(len(spectra), OVERLAP, hop)
    blocks = np.zeros((len(spectra) + OVERLAP - 1, hop), frames.dtype)
    for part in range(OVERLAP):
        blocks[part : part + len(spectra)] += frames[:, part]
    return blocks.reshape(-1)[size : size + length]


def _interpolate(knots: Floats, positions: Floats) -> Floats:
    """Interpolate white knots (K, ...) linearly at positions (N,), with constant variance: (N, ...).

    Not a matrix product: BLAS would start threads for it, which compete with those of the training.
    """
    left = np.minimum(positions.astype(int), len(knots) - 2)
    fraction = (positions - left).astype(np.float32).reshape(-1, *[1] * (knots.ndim - 1))
    scale = 1 / np.sqrt(fraction**2 + (1 - fraction) ** 2)  # halfway between two knots, the variance would be half
    return knots[left] * ((1 - fraction) * scale) + knots[left + 1] * (fraction * scale)


def _randomly_shifted(positions: Floats, rng: np.random.Generator) -> tuple[Floats, int]:
    """Shift positions to a random start between the first two knots; returns the number of knots needed, too."""
    shifted = positions - positions.min() + rng.random()
    return shifted, int(shifted.max()) + 2


def smooth_curve(positions: Floats, rng: np.random.Generator) -> Floats:
    """Random curve (N,) of mean 0 and variance 1, correlated over one unit of ``positions`` (N,)."""
    shifted, knots = _randomly_shifted(positions, rng)
    return _interpolate(rng.standard_normal(knots, np.float32), shifted)


def smooth_field(times: Floats, pitches: Floats, rng: np.random.Generator) -> Floats:
    """Random surface (L, F), mean 0, variance 1, correlated over a unit of ``times`` (L,) and of ``pitches`` (F,)."""
    rows, columns = _randomly_shifted(times, rng), _randomly_shifted(pitches, rng)
    knots = rng.standard_normal((columns[1], rows[1]), np.float32)
    return _interpolate(_interpolate(knots, columns[0]).T, rows[0])


def octaves(frequencies: Floats) -> Floats:
    """Positions on a scale that is linear below 200 Hz and logarithmic above, in octaves."""
    return np.log2(1 + frequencies / 200)


def decibels(power: Floats) -> Floats:
    return 10 * np.log10(np.maximum(power, 1e-20))


def power(spectra: Complex) -> Floats:
    """Squared magnitudes."""
    return spectra.real**2 + spectra.imag**2


def voice_level(powers: Floats, frequencies: Floats) -> Floats:
    """Level in dB (L,) of the fundamental and first harmonics of the voice, 80 to 500 Hz, from powers (L, F)."""
    return decibels(powers[:, (frequencies > 80) & (frequencies < 500)].mean(1) + 1e-12)


def active_frames(powers: Floats, below: float = 20.0) -> Floats:
    """Whether each frame (L,) of powers (L, F) is within ``below`` dB of the loudest."""
    level = powers.mean(1)
    return level >= level.max() * 10 ** (-below / 10)
