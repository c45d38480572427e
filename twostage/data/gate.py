"""Spectral gating: removes the steady noise of a room from clean speech, so that a restorer does not learn it."""

import numpy as np
from scipy.ndimage import uniform_filter

from twostage.data.spectra import OVERLAP, Floats, frame_size, istft, power, stft

QUIETEST = 0.1  # fraction of the frames that count as noise only
EXCESS = 2.0  # factor of the noise power that is subtracted: more than 1, because the power fluctuates
PART_SECONDS = 60.0  # shortest length of the parts that are gated at once, to bound memory


def gate(speech: Floats, sample_rate: int, depth_db: float) -> Floats:
    """Attenuate sound at the level of the quietest frames, by at most ``depth_db``: (T,) -> (T,) float32.

    Source: Boll, "Suppression of Acoustic Noise in Speech Using Spectral Subtraction", TASSP 1979; here powers are
    smoothed over neighbors in time and frequency against musical noise.
    """
    if not len(speech):
        return np.zeros(0, np.float32)
    # equal parts: of a short rest, the quietest frames would be speech
    parts = np.array_split(speech, max(1, len(speech) // round(PART_SECONDS * sample_rate)))
    return np.concatenate([_gate(part, sample_rate, depth_db) for part in parts])


def _gate(speech: Floats, sample_rate: int, depth_db: float) -> Floats:
    size = frame_size(sample_rate)
    spectra = stft(np.asarray(speech, np.float32), size)
    smooth = uniform_filter(power(spectra), (5, 3))
    inside = np.arange(OVERLAP, max(OVERLAP + 1, len(smooth) - OVERLAP))  # frames without padding
    loudness = smooth[inside].sum(1)
    quiet = inside[np.argsort(loudness)[: max(4, round(QUIETEST * len(inside)))]]
    noise = smooth[quiet].mean(0)
    power_gain = np.clip(1 - EXCESS * noise / np.maximum(smooth, 1e-20), 10 ** (-depth_db / 10), 1)
    gain = uniform_filter(np.sqrt(power_gain), 3).astype(np.float32)
    return istft(spectra * gain, size, len(speech)).astype(np.float32)
