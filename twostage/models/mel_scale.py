"""The triangular filters of the mel scale: librosa's values without its import, which takes longer than PyTorch's."""

import numpy as np
from numpy.typing import NDArray

LINEAR = 200 / 3  # Hz per mel, below BREAK
BREAK = 1000.0  # Hz
LOG_STEP = np.log(6.4) / 27  # of log(Hz) per mel, above BREAK


def slaney_basis(sample_rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> NDArray[np.float32]:
    """Mel filters (n_mels, n_fft // 2 + 1) for magnitudes or powers, all with the same area.

    The values of ``librosa.filters.mel(norm="slaney", htk=False)``, to the bit: the scale of Slaney, "Auditory Toolbox"
    (Interval Research, 1998), linear up to 1 kHz and logarithmic above.
    """
    bins = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    edges = _to_hertz(np.linspace(_to_mels(fmin), _to_mels(fmax), n_mels + 2))
    widths, ramps = np.diff(edges)[:, None], edges[:, None] - bins
    rising, falling = -ramps[:-2] / widths[:-1], ramps[2:] / widths[1:]
    triangles = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    triangles *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return triangles


def _to_mels(hertz: float) -> float:
    if hertz < BREAK:
        return hertz / LINEAR
    return float(BREAK / LINEAR + np.log(hertz / BREAK) / LOG_STEP)


def _to_hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    above = np.maximum(mels - BREAK / LINEAR, 0)
    return np.where(above > 0, BREAK * np.exp(LOG_STEP * above), LINEAR * mels)
