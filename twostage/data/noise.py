"""Simulates the air microphone of a headset with two microphones: clean speech in noise, next to the body sensor."""

from dataclasses import dataclass

import numpy as np
from scipy import fft

from twostage.audio.levels import active_level
from twostage.audio.types import Audio
from twostage.data.aligned_pair import read_mono
from twostage.data.simulator import seeded

QUIETEST = -100.0  # dB: noise below it is the pause of a recording, the rounding to 16 bits, not the sound of a place
DRAWS = 20  # of a part of the noise; if all of them are silent, the air channel has no noise


def noisy(speech: Audio, noise: Audio, sample_rate: int, snr_db: float, *, level: float | None = None) -> Audio:
    """Speech (T,) plus noise (T,) scaled to an active level ``snr_db`` below that of the speech.

    ``level``: active level in dB of the recording that the speech is a part of (default: its own). Silence in either
    one adds nothing, and noise below QUIETEST is silence.
    """
    target = (active_level(speech, sample_rate) if level is None else level) - snr_db
    noise_level = active_level(noise, sample_rate)
    if not (np.isfinite(target) and QUIETEST <= noise_level < np.inf):
        return speech
    return speech + noise * np.float32(10 ** ((target - noise_level) / 20))


def pink(samples: int, sample_rate: int, rng: np.random.Generator) -> Audio:
    """Noise (samples,) whose power falls by 3 dB per octave above 50 Hz, as the ambient noise of the simulator."""
    size = fft.next_fast_len(samples, real=True)
    frequencies = np.arange(size // 2 + 1) * (sample_rate / size)
    real, imaginary = rng.standard_normal((2, len(frequencies)), np.float32)
    return fft.irfft((real + 1j * imaginary) / np.sqrt(np.maximum(frequencies, 50)), size)[:samples].astype(np.float32)


def looped(noise: Audio, samples: int, start: int) -> Audio:
    """Samples (samples,) of noise (T,) from ``start`` on; it is repeated when it ends."""
    return np.take(noise, np.arange(start, start + samples), mode="wrap")


@dataclass(frozen=True)
class Air:
    """Air channels for whole recordings: clean speech with a file of ``noise`` (none: pink noise) at ``snr_db``."""

    snr_db: float
    noise: tuple[str, ...] = ()
    seed: int = 0

    def of(self, clean: Audio, sample_rate: int, name: str) -> Audio:
        """The air channel (T,) for clean speech (T,): a function of the sound, the seed and the name."""
        rng = seeded(self.seed, name, "air")
        return noisy(clean, self._noise(len(clean), sample_rate, rng), sample_rate, self.snr_db)

    def _noise(self, samples: int, sample_rate: int, rng: np.random.Generator) -> Audio:
        """Noise (samples,); a part that is silent, as between the barks of a dog, is drawn again."""
        if not self.noise:
            return pink(samples, sample_rate, rng)
        for _ in range(DRAWS):
            recording = read_mono(self.noise[int(rng.integers(len(self.noise)))], sample_rate)
            part = looped(recording, samples, int(rng.integers(len(recording))))
            if active_level(part, sample_rate) >= QUIETEST:
                break
        return part
