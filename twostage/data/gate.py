"""Spectral gating: removes the steady noise of a room from clean speech, so that a restorer does not learn it."""

import numpy as np
from scipy.ndimage import uniform_filter

from twostage.data.spectra import OVERLAP, Floats, frame_size, istft, power, stft

QUIETEST = 0.1  # share of the frames that are taken for noise alone
EXCESS = 2.0  # times the noise's power is taken off: more than once, since its power fluctuates
PART_SECONDS = 60.0  # gated at once, to bound memory


def gate(speech: Floats, sample_rate: int, depth_db: float) -> Floats:
    """Attenuate what is no louder than the quietest frames, by at most ``depth_db``: (T,) -> (T,) float32.

    Source: Boll, "Suppression of Acoustic Noise in Speech Using Spectral Subtraction", TASSP 1979, with powers
    smoothed over neighbors in time and frequency against musical noise.
    """
    part = round(PART_SECONDS * sample_rate)
    parts = [_gate(speech[start : start + part], sample_rate, depth_db) for start in range(0, len(speech), part)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _gate(speech: Floats, sample_rate: int, depth_db: float) -> Floats:
    size = frame_size(sample_rate)
    spectra = stft(np.asarray(speech, np.float32), size)
    smooth = uniform_filter(power(spectra), (5, 3))
    inside = np.arange(OVERLAP, max(OVERLAP + 1, len(smooth) - OVERLAP))  # frames that the padding does not reach
    loudness = smooth[inside].sum(1)
    quiet = inside[np.argsort(loudness)[: max(4, round(QUIETEST * len(inside)))]]
    noise = smooth[quiet].mean(0)
    kept = np.clip(1 - EXCESS * noise / np.maximum(smooth, 1e-20), 10 ** (-depth_db / 10), 1)
    gain = uniform_filter(np.sqrt(kept), 3).astype(np.float32)
    return istft(spectra * gain, size, len(speech)).astype(np.float32)
