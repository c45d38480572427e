"""Detects input that a restorer was not made for: a band that is not missing, no pauses, clipping.

Levels by band are percentiles over frames, so that neither pauses nor a click affect them. They are relative to the
band that every sensor picks up, so that gain does not affect them either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twostage.audio.types import AnyAudio

FRAME = 0.032  # seconds; frames overlap by half
LOW = (200.0, 800.0)  # Hz: band that a body-worn microphone picks up as well as one in the air
HIGH = ((2000.0, 4000.0), (4000.0, 5500.0), (5500.0, 7500.0))  # Hz: bands that the body attenuates
LOUD, QUIET = 0.98, 0.10  # percentiles (0 to 1) of frame levels taken as the level of speech and of its pauses
FULL_BAND_DB = -31.0  # level of HIGH relative to LOW: clean speech is above it, body-worn sensors are below
ALIVE_DB = 12.0  # minimum range between loud and quiet frames in HIGH; less is steady noise, not speech
PAUSES_DB = 22.0  # minimum range between loud and quiet frames in LOW; less is noise, music or many voices
SHORTEST = 1.0  # seconds: less sound is not measured
STEP, FLOOR, TOP = 0.5, -320.0, 160.0  # dB: bins of the level histograms; float samples can have any scale
CLIPPED_SHARE, TOUCH = 2e-4, 1e-4  # fraction of consecutive samples at the peak; relative tolerance of "at the peak"


@dataclass(frozen=True)
class ChannelBand:
    """One channel: ``high_db``, the level of 2 to 7.5 kHz relative to 200 to 800 Hz; None if there is too little sound.

    ``range_db`` and ``high_range_db``: the level of loud frames relative to quiet ones, in the low and the high bands.
    ``clipped``: the fraction of samples that are consecutive at the peak.
    """

    high_db: float | None
    range_db: float = 0.0
    high_range_db: float = 0.0
    clipped: float = 0.0

    @property
    def full_band(self) -> bool:
        """Whether there is speech in the band where a body-worn sensor picks up hardly any."""
        return self.high_db is not None and self.high_db > FULL_BAND_DB and self.high_range_db > ALIVE_DB

    @property
    def unbroken(self) -> bool:
        """Whether there are no pauses, as there would be in one voice without noise."""
        return self.high_db is not None and self.range_db < PAUSES_DB

    @property
    def is_clipped(self) -> bool:
        return self.clipped > CLIPPED_SHARE


class BandMeter:
    """Levels by band of a stream of blocks (C, T), in constant memory."""

    def __init__(self, channels: int, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self._size = max(2, round(FRAME / 2 * sample_rate)) * 2
        self._window = np.hanning(self._size + 1)[:-1]
        hertz = np.fft.rfftfreq(self._size, 1 / sample_rate)
        self._bands = [(hertz >= low) & (hertz < high) for low, high in (LOW, *HIGH) if high < sample_rate / 2]
        self._counts = np.zeros((channels, len(self._bands), round((TOP - FLOOR) / STEP)), np.int64)
        self._pending = np.zeros((channels, 0), np.float32)

    def add(self, block: AnyAudio) -> None:
        audio = np.concatenate([self._pending, block], axis=1)
        hop = self._size // 2
        frames = max(0, (audio.shape[1] - self._size) // hop + 1)
        self._pending = audio[:, frames * hop :].copy()
        if not frames or not self._bands:
            return
        for channel, row in enumerate(audio):  # one channel at a time, to bound the memory of the spectra
            framed = np.lib.stride_tricks.sliding_window_view(row, self._size)[::hop][:frames]
            self._count(channel, np.abs(np.fft.rfft(framed * self._window, axis=1)) ** 2)

    def _count(self, channel: int, power: AnyAudio) -> None:
        power = power[power.sum(axis=1) > 0]  # digital silence is not a recorded pause
        power = power * (2 / float(self._window @ self._window) / self._size)
        bins = self._counts.shape[2]
        for counts, band in zip(self._counts[channel], self._bands, strict=True):
            decibels = 10 * np.log10(power[:, band].sum(axis=1) + 10 ** (FLOOR / 10))
            bin_index = ((decibels - FLOOR) / STEP).astype(int).clip(0, bins - 1)
            counts += np.bincount(bin_index, minlength=bins)

    def bands(self) -> list[ChannelBand]:
        """The measurements of each channel."""
        return [self._band(counts) for counts in self._counts]

    def _band(self, counts: NDArray[np.int64]) -> ChannelBand:
        short = counts[:1].sum() * self._size / 2 < SHORTEST * self.sample_rate
        if short or len(self._bands) <= len(HIGH):
            return ChannelBand(None)
        loud, quiet = (np.array([_level(band, share) for band in counts]) for share in (LOUD, QUIET))
        if quiet[0] < FLOOR + 10:
            return ChannelBand(None)
        high = slice(1, None)
        return ChannelBand(
            float(loud[high].mean() - loud[0]), float(loud[0] - quiet[0]), float((loud - quiet)[high].mean())
        )


def unsuited(bands: Sequence[ChannelBand], silent: NDArray[np.bool_], *, copied: bool) -> list[str]:
    """Warnings about unsuitable input of a restorer, a line each, for the channels that are not ``silent`` (C,).

    ``copied``: full-band channels are left as they are.
    """
    lowest_db = max((band.high_db or 0.0 for band in bands if band.full_band), default=0.0)
    action = "copied" if copied else "restored anyway, which can make it worse"
    problems = {
        f"full-band already ({-lowest_db:.0f} dB from the low to the high band); {action}": [
            b.full_band for b in bands
        ],
        "without pauses (noise, music or many voices?); made for one voice without noise": [b.unbroken for b in bands],
        "clipped; the distortion is taken for speech": [b.is_clipped for b in bands],
    }
    warnings = []
    for problem, flags in problems.items():
        affected = [str(channel + 1) for channel, flag in enumerate(flags) if flag and not silent[channel]]
        if affected:
            warnings.append(problem if len(affected) == len(bands) else f"channel {', '.join(affected)} {problem}")
    return warnings


def _level(counts: NDArray[np.int64], share: float) -> float:
    """The level in dB below which a fraction ``share`` of the frames lies."""
    cumulative = np.cumsum(counts)
    return FLOOR + STEP * (float(np.searchsorted(cumulative, share * cumulative[-1])) + 0.5)


class ClipMeter:
    """Counts samples of a stream of blocks (C, T) that are consecutive at the peak, positive or negative."""

    def __init__(self, channels: int) -> None:
        self._peak = np.zeros((channels, 2, 1))
        self._count = np.zeros((channels, 2), np.int64)
        self._total = 0

    def add(self, block: AnyAudio) -> None:
        polarities = np.stack([block, -block], axis=1)
        loudest = polarities.max(axis=2, keepdims=True, initial=0.0)
        higher = loudest > self._peak * (1 + TOUCH)
        self._count[higher[..., 0]] = 0
        self._peak = np.maximum(self._peak, loudest)
        touching = (polarities >= self._peak * (1 - TOUCH)) & (self._peak > 0)
        self._count += (touching[..., :-1] & touching[..., 1:]).sum(axis=2)
        self._total += block.shape[1]

    def shares(self) -> NDArray[np.float64]:
        """The fraction of such samples in each channel (C,), between 0 and 1."""
        return self._count.sum(axis=1) / max(1, self._total)
