"""The first pass over the sound to restore: level, peak, band and clipping of each channel."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twostage.audio.bandwidth import BandMeter, ChannelBand, ClipMeter, unsuited
from twostage.audio.highpass import highpassed
from twostage.audio.levels import LevelMeter
from twostage.audio.sound_files import resampled
from twostage.audio.types import Audio
from twostage.inference.restore_options import Options
from twostage.utils.errors import AudioError

# the difference between two adjacent values of an encoding, below which sound is silence; others have 16 bits
STEPS = {"PCM_S8": 2**-7, "PCM_U8": 2**-7, "PCM_24": 2**-23, "PCM_32": 2**-31, "FLOAT": 0.0, "DOUBLE": 0.0}
STEPS |= {"ULAW": 2**-12, "ALAW": 2**-11}
STEP_16 = 2**-15
# the smallest amplitude that float32 resolves, relative to the peak; the smallest that it represents at all
EPSILON, LEAST = 2**-24, 1e-35


@dataclass(frozen=True)
class AudioSource:
    """Sound that can be streamed more than once: ``blocks()`` yields it from its start as (C, T)."""

    name: str
    sample_rate: int
    channels: int
    blocks: Callable[[], Iterator[NDArray[Any]]]
    step: float = 0.0  # the difference between two adjacent values; 0 for floats


@dataclass(frozen=True)
class InputLevels:
    """Results of the first pass at the model's rate: samples, each channel's active level in dBFS, peak (C,), band.

    A channel is silent if it is too quiet for its source to represent (``resolution``, (C,), an amplitude).
    """

    frames: int
    levels: NDArray[np.float64]
    peaks: NDArray[np.float64]
    resolution: NDArray[np.float64]
    bands: tuple[ChannelBand, ...]

    @property
    def silent(self) -> NDArray[np.bool_]:
        return self.levels < 20 * np.log10(self.resolution)

    def bone(self, inputs: int) -> "InputLevels":
        """The first of every ``inputs`` channels: one for each output channel."""
        chosen = slice(None, None, inputs)
        return InputLevels(
            self.frames, self.levels[chosen], self.peaks[chosen], self.resolution[chosen], self.bands[chosen]
        )

    @property
    def full_band(self) -> NDArray[np.bool_]:
        """Whether each channel (C,) is already full-band."""
        return np.array([band.full_band for band in self.bands]) & ~self.silent

    def copied(self, options: Options) -> NDArray[np.bool_]:
        """Whether each channel (C,) is copied unchanged."""
        return self.full_band & (options.if_full_band == "copy")

    def warnings(self, inputs: int, options: Options) -> list[str]:
        """Warnings about input that a model with so many ``inputs`` was not made for."""
        bone = self.bone(inputs)
        return [*self._silence(inputs), *unsuited(bone.bands, bone.silent, copied=options.if_full_band == "copy")]

    def _silence(self, inputs: int) -> list[str]:
        silent = np.flatnonzero(self.silent)
        if len(silent) == len(self.levels):
            return ["silent; restored as silence"]
        bone, air = (
            ", ".join(str(channel + 1) for channel in silent if (channel % inputs > 0) == is_air)
            for is_air in (False, True)
        )
        return [f"channel {bone} silent; restored as silence"] * bool(bone) + [f"channel {air} silent"] * bool(air)


def measure_levels(source: AudioSource, sample_rate: int, *, causal: bool = False) -> InputLevels:
    """Measure each channel's active level and band as they are at ``sample_rate``, for a ``causal`` model or another.

    Raises AudioError if there are no samples or some are not finite.
    """
    meter, frames, peaks = LevelMeter(source.channels, sample_rate), 0, np.zeros(source.channels)
    bands, clipping = BandMeter(source.channels, sample_rate), ClipMeter(source.channels)

    def checked() -> Iterator[NDArray[Any]]:
        nonlocal frames, peaks
        for block in source.blocks():
            invalid = np.flatnonzero(~np.isfinite(block).all(axis=0))
            if invalid.size:
                seconds = (frames + invalid[0]) / source.sample_rate
                raise AudioError(f"NaN or infinite samples, the first at {seconds:.3f} s", subject=source.name)
            frames += block.shape[1]
            peaks = np.maximum(peaks, np.abs(block).max(axis=1, initial=0))
            if peaks.max() > np.finfo(np.float32).max:
                reason = f"samples of up to {peaks.max():.0e} are more than can be restored"
                raise AudioError(reason, subject=source.name)
            clipping.add(block)
            yield block

    for block in without_rumble(checked(), source, sample_rate, causal=causal):
        meter.add(block)
        bands.add(block)
    if frames == 0:
        raise AudioError("holds no samples", subject=source.name)
    resolution = np.maximum(np.maximum(source.step, EPSILON * peaks), LEAST)
    channels = zip(bands.bands(), clipping.shares(), strict=True)
    channel_bands = tuple(replace(band, clipped=float(share)) for band, share in channels)
    return InputLevels(frames, meter.levels(), meter.peak, resolution, channel_bands)


def without_rumble(
    blocks: Iterator[NDArray[Any]], source: AudioSource, sample_rate: int, *, causal: bool
) -> Iterator[Audio]:
    """Remove everything below speech from blocks of ``source``, before resampling: it would ring in the resampler."""
    high = highpassed(blocks, source.sample_rate, source.channels, causal=causal)
    return resampled(high, source.sample_rate, sample_rate, source.channels)


def step_of(subtype: str) -> float:
    """The difference between two adjacent values of a sound file's encoding, at full scale 1; 0 for floats."""
    return STEPS.get(subtype, STEP_16)
