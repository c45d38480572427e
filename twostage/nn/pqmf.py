"""Pseudo-quadrature mirror filters: audio to bands at a fraction of its rate, and nearly perfectly back.

Sources: Nguyen, "Near-perfect-reconstruction pseudo-QMF banks", IEEE Transactions on Signal Processing 1994, eq. 1, for
the bank; Lin and Vaidyanathan, "A Kaiser window approach for the design of prototype filters of cosine modulated
filterbanks", IEEE Signal Processing Letters 1998, equation 5, for the prototype.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.nn.streaming import Overlap, Past

BETA = 9.0  # of the Kaiser window, as in EBEN


class Pqmf(nn.Module):
    """Audio (B, 1, T) <-> ``bands`` (B, bands, T / bands), T a multiple of ``bands``, from low to high.

    Analysis and synthesis together have a delay of ``delay`` samples. They use float32 also under autocast.

    >>> bank, audio = Pqmf(4, 32), torch.sin(torch.arange(400.0) ** 2 / 300)[None, None]
    >>> again = bank.synthesis(bank.analysis(audio))
    >>> bool((again[..., bank.delay :] - audio[..., : -bank.delay]).abs().max() < 0.01)
    True
    """

    kernel: Tensor

    def __init__(self, bands: int, taps: int) -> None:
        super().__init__()
        self.bands, self.delay = bands, taps - bands
        self.past, self.overlap = Past(self.delay), Overlap(self.delay)
        kernel = torch.from_numpy(modulated(prototype(bands, taps), bands)).float()
        self.register_buffer("kernel", kernel[:, None], persistent=False)

    def analysis(self, audio: Tensor) -> Tensor:
        with torch.autocast(audio.device.type, enabled=False):
            return F.conv1d(self.past(audio.float()), self.kernel, stride=self.bands)

    def synthesis(self, bands: Tensor) -> Tensor:
        with torch.autocast(bands.device.type, enabled=False):
            return self.overlap(F.conv_transpose1d(bands.float(), self.kernel * self.bands, stride=self.bands))


def prototype(bands: int, taps: int) -> NDArray[np.float64]:
    """The low-pass prototype (taps,) of all bands: a windowed sinc with an optimized cutoff.

    The optimum is the cutoff at which the autocorrelation of the filter is nearest to zero at multiples of 2 * bands.
    """

    def windowed(cutoff: float) -> NDArray[np.float64]:
        return cutoff * np.sinc(cutoff * _centered(taps)) * np.kaiser(taps, BETA)

    def aliasing(cutoff: float) -> float:
        low = windowed(cutoff)
        return float(np.abs(np.correlate(low, low, "full")[taps - 1 + 2 * bands :: 2 * bands]).max())

    from scipy.optimize import minimize_scalar  # imported here because it takes a third of a second

    minimum = minimize_scalar(aliasing, bounds=(0.5 / bands, 1 / bands), method="bounded", options={"xatol": 1e-9})
    return windowed(minimum.x)


def modulated(low: NDArray[np.float64], bands: int) -> NDArray[np.float64]:
    """Modulate the prototype (taps,) to the center of every band: (bands, taps).

    For correlation, as in torch's convolutions; up to a factor of ``bands``, synthesis is the transpose of analysis.
    """
    band = np.arange(bands)[:, None]
    phase = (2 * band + 1) * np.pi / (2 * bands) * _centered(len(low)) - (-1.0) ** band * np.pi / 4
    return 2 * low * np.cos(phase)


def _centered(taps: int) -> NDArray[np.float64]:
    return np.arange(taps, dtype=np.float64) - (taps - 1) / 2
