"""Speech levels in dB re full scale, without pauses and without sounds that are not speech.

The active level is the RMS over the frames of 20 ms within 20 dB of the loudest frame of speech: a tap on the sensor or
a door is louder and must not affect it. ITU-T P.56 does not help here: it distributes all of the energy over the active
time, and one tap can have more energy than the speech. Sound below the lowest voice (mains hum, rumble, movement) is
not measured at all.
"""

from functools import lru_cache
from math import log10

import numpy as np
from numpy.typing import NDArray

from twostage.audio.sos_filter import SosDesign, SosFilter, highpass_sections
from twostage.audio.types import AnyAudio

Floats = NDArray[np.float64]

LEVEL = -26.0  # dBFS: active level at which the models are trained, and to which every input channel is scaled
FRAME = 0.02  # seconds: a frame of the level meter
RANGE = 20.0  # dB below the loudest frame at which speech counts as a pause
SILENCE = -700.0  # dB: below, as in what some decoders make of digital silence, no float32 gain reaches LEVEL
LOWEST = 75.0  # Hz: cutoff of the meter's high-pass; 65 Hz and below are attenuated by 50 dB
# zeros and poles, without their conjugates, of an elliptic low-pass of order 9 with a ripple of 0.02 dB and a stop band
# attenuation of 50 dB; computed by scipy.signal.ellipap(9, 0.02, 50)
ZEROS = np.array([2.2548904064929505j, 1.3712525475357444j, 1.1584163213044003j, 1.0974461318458886j])
POLES = np.array(
    [
        -0.6268432901791818,
        -0.45638001502794756 + 0.6114612843646047j,
        -0.21481810780355967 + 0.8959632114618693j,
        -0.08210246577407558 + 0.9917975039143594j,
        -0.020586225300243448 + 1.020502654360728j,
    ]
)

DEEPEST = 90  # dB below the loudest frame down to which the loudest frame of speech is searched
FEW = 0.5  # of the candidate frames of speech: up to so many within RANGE of the loudest frame may be an event
OUTNUMBERED = 2  # least ratio of frames of speech to frames that are louder than speech
LONGEST, GAP = 60, 5  # maximum length in frames of a tap or a door, and of pauses within it
FULL = 0.6  # of the highest count of frames within RANGE of a level: that level is the loudest of the speech
PEAKS, RARE = 12.0, 0.15  # dB by which speech exceeds its median; fraction of frames above that may be no speech
LAG, CHANGE, SHARE = 5, 6.0, 80  # frames, dB, percentile: in 100 ms a fifth of the frames of speech changes by 6 dB
SHADOW = 5  # frames after a louder event in which the meter's filter still rings


def rms(audio: AnyAudio) -> float:
    """Root mean square over all samples; 0 if there are none."""
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) if audio.size else 0.0


def leveled(audio: AnyAudio, sample_rate: int) -> AnyAudio:
    """Scale audio (..., T) to the active level LEVEL; silence is not changed."""
    level = active_level(audio, sample_rate)
    return audio * np.float32(10 ** ((LEVEL - level) / 20)) if np.isfinite(level) else audio


@lru_cache(maxsize=8)
def _weighting(sample_rate: int) -> SosDesign:
    return SosDesign(highpass_sections(ZEROS, POLES, LOWEST, sample_rate)[0])


class LevelMeter:
    """The active level and the peak of a stream of blocks (C, T); stores one number per channel for every 20 ms."""

    def __init__(self, channels: int, sample_rate: int) -> None:
        self.frame = max(1, round(FRAME * sample_rate))
        self.peak = np.zeros(channels)
        self.total = 0
        self._weighting = _weighting(sample_rate)
        self._filter: SosFilter | None = None
        self._energy = np.zeros(channels)
        self._pending = np.zeros((channels, 0))
        self._powers: list[Floats] = []

    def add(self, block: AnyAudio) -> None:
        if not block.shape[1]:
            return
        self.total += block.shape[1]
        self.peak = np.maximum(self.peak, np.abs(block).max(axis=1))
        exact = block.astype(np.float64)
        self._energy += np.square(exact).sum(axis=1)
        if self._filter is None:  # as if the signal had been constant before its first sample
            self._filter = SosFilter(self._weighting, self._weighting.settled * exact[:, :1])
        filtered = np.concatenate([self._pending, self._filter.push(exact)], axis=1)
        complete = filtered.shape[1] // self.frame * self.frame
        self._pending = filtered[:, complete:].copy()
        if complete:
            self._powers.append(np.square(filtered[:, :complete].reshape(len(filtered), -1, self.frame)).mean(axis=2))

    def levels(self) -> Floats:
        """Active level of each channel (C,) in dB re full scale; -inf for silence.

        If there is less than one frame, the level of all samples.
        """
        if not self.total:
            return np.full(len(self.peak), -np.inf)
        powers = np.concatenate(self._powers, axis=1) if self._powers else self._energy[:, None] / self.total
        return np.array([_active(channel) for channel in powers])


def active_level(audio: AnyAudio, sample_rate: int) -> float:
    """Active level of (T,) or (C, T) audio in dB re full scale, over all its channels; -inf for silence."""
    meter = LevelMeter(1, sample_rate)
    for channel in np.atleast_2d(audio):
        meter.add(np.asarray(channel, np.float32)[None])
    return float(meter.levels()[0])


def _active(powers: Floats) -> float:
    """Level in dB of the speech among frames with powers (L,)."""
    loudest = powers.max()
    if not loudest > 10 ** (SILENCE / 10):
        return -np.inf
    frames = 10 * np.log10(np.maximum(powers / loudest, 1e-15))
    top = _without_peaks(frames, _without_events(frames))
    counted = _within(frames, top) & ~_shadowed(frames > top)
    counted = counted if counted.any() else _within(frames, top)
    return 10 * log10(powers[counted].mean())


def _within(frames: Floats, top: float) -> NDArray[np.bool_]:
    """Which frames are speech if ``top`` is the level of its loudest frame."""
    return (frames <= top) & (frames >= top - RANGE)


def _without_events(frames: Floats) -> float:
    """Level of the loudest frame of speech; louder events, which are short and few, are ignored."""
    tops = frames.max() - np.arange(DEEPEST)
    ordered = np.sort(frames)
    at_or_below = np.searchsorted(ordered, tops, "right")
    within, above = at_or_below - np.searchsorted(ordered, tops - RANGE, "left"), len(frames) - at_or_below
    likely = np.flatnonzero((within * FEW > within[0]) & (above * OUTNUMBERED <= within))
    speech_like = [i for i in likely if _brief(frames > tops[i]) and _like_speech(frames, tops[i])]
    if not speech_like:
        return float(tops[0])
    highest_count = within[speech_like].max()
    head = next(i for i in speech_like if within[i] >= FULL * highest_count)
    return float(frames[frames <= tops[head]].max())


def _without_peaks(frames: Floats, top: float) -> float:
    """Lower ``top`` until no frames remain that are too rare and too far above the median to be speech."""
    while True:
        active = frames[_within(frames, top)]
        limit = np.median(active) + PEAKS
        if top <= limit or (active > limit).mean() > RARE or not _like_speech(frames, limit):
            return top
        top = float(frames[frames <= limit].max())


def _brief(marked: NDArray[np.bool_]) -> bool:
    """Whether every run of marked frames, short gaps included, is short enough for a tap or a door."""
    positions = np.flatnonzero(marked)
    runs = np.split(positions, np.flatnonzero(np.diff(positions) > GAP + 1) + 1)
    return all(run[-1] - run[0] < LONGEST for run in runs if len(run))


def _like_speech(frames: Floats, top: float) -> bool:
    """Whether the levels up to ``top`` fluctuate as syllables do; those of noise and breath are steady."""
    low = top - RANGE
    earlier, later = frames[:-LAG], frames[LAG:]
    counted = (np.maximum(earlier, later) > low) & (np.maximum(earlier, later) <= top)
    if not counted.any():
        return False
    change = np.abs(np.maximum(later[counted], low) - np.maximum(earlier[counted], low))
    return bool(np.percentile(change, SHARE) >= CHANGE)


def _shadowed(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the frames that follow marked frames."""
    shadow = np.zeros_like(marked)
    for lag in range(1, min(SHADOW, len(marked) - 1) + 1):
        shadow[lag:] |= marked[:-lag]
    return shadow
