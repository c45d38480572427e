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

LEVEL = -26.0  # dBFS: active level that the models are trained at, and that every channel is brought to before them
FRAME = 0.02  # seconds: a frame of the level meter
RANGE = 20.0  # dB below the loudest frame at which speech counts as a pause
LOWEST = 75.0  # Hz: the meter hears what lies above; 65 Hz and less are 50 dB down
# an elliptic low-pass of order 9, with a ripple of 0.02 dB and 50 dB down: those of positive imaginary part, and the
# real one; computed by scipy.signal.ellipap(9, 0.02, 50)
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

DEEPEST = 90  # dB below the loudest frame down to which the loudest of the speech is looked for
FEW = 0.5  # of the frames that could be speech: as many within RANGE of the loudest may be something else
OUTNUMBERED = 2  # times as many frames of speech as of what is louder
LONGEST, GAP = 60, 5  # frames that a tap or a door lasts at most, and pauses in it
FULL = 0.6  # of the most frames within RANGE of a top: that top lies at the head of the speech
PEAKS, RARE = 12.0, 0.15  # dB by which speech goes beyond its median; how many of its frames may be taken for others
LAG, CHANGE, SHARE = 5, 6.0, 80  # after 100 ms speech has changed by so many dB in a fifth of its frames; noise has not
SHADOW = 5  # frames after something louder, in which the meter's filter still rings


def rms(audio: AnyAudio) -> float:
    """Root mean square over everything; 0 for nothing."""
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) if audio.size else 0.0


def leveled(audio: AnyAudio, sample_rate: int) -> AnyAudio:
    """AnyAudio (..., T) at the active level LEVEL; silence stays silence."""
    level = active_level(audio, sample_rate)
    return audio * np.float32(10 ** ((LEVEL - level) / 20)) if np.isfinite(level) else audio


@lru_cache(maxsize=8)
def _weighting(sample_rate: int) -> SosDesign:
    return SosDesign(highpass_sections(ZEROS, POLES, LOWEST, sample_rate)[0])


class LevelMeter:
    """The active level and the peak of a stream of blocks (C, T), with one number of memory for every 20 ms."""

    def __init__(self, channels: int, sample_rate: int) -> None:
        self.frame = max(1, round(FRAME * sample_rate))
        self.peak = np.zeros(channels)
        self.total = 0
        self._weighting = _weighting(sample_rate)
        self._filter: SosFilter | None = None
        self._energy = np.zeros(channels)
        self._rest = np.zeros((channels, 0))
        self._powers: list[Floats] = []

    def add(self, block: AnyAudio) -> None:
        if not block.shape[1]:
            return
        self.total += block.shape[1]
        self.peak = np.maximum(self.peak, np.abs(block).max(axis=1))
        exact = block.astype(np.float64)
        self._energy += np.square(exact).sum(axis=1)
        if self._filter is None:  # of a signal which was there before
            self._filter = SosFilter(self._weighting, self._weighting.settled * exact[:, :1])
        filtered = np.concatenate([self._rest, self._filter.push(exact)], axis=1)
        whole = filtered.shape[1] // self.frame * self.frame
        self._rest = filtered[:, whole:].copy()
        if whole:
            self._powers.append(np.square(filtered[:, :whole].reshape(len(filtered), -1, self.frame)).mean(axis=2))

    def levels(self) -> Floats:
        """Active level of each channel (C,) in dB re full scale; -inf for silence.

        Of less than a frame, the level is that of all there is.
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
    """Level in dB of the speech among frames of these powers (L,)."""
    loudest = powers.max()
    if not loudest > 0:
        return -np.inf
    frames = 10 * np.log10(np.maximum(powers / loudest, 1e-15))
    top = _without_peaks(frames, _without_events(frames))
    counted = _within(frames, top) & ~_shadowed(frames > top)
    counted = counted if counted.any() else _within(frames, top)
    return 10 * log10(powers[counted].mean())


def _within(frames: Floats, top: float) -> NDArray[np.bool_]:
    """Which frames are speech if ``top`` is its loudest."""
    return (frames <= top) & (frames >= top - RANGE)


def _without_events(frames: Floats) -> float:
    """Level of the loudest frame, events passed over that stand alone above speech: they are short, and outnumbered."""
    tops = frames.max() - np.arange(DEEPEST)
    ordered = np.sort(frames)
    upto = np.searchsorted(ordered, tops, "right")
    within, above = upto - np.searchsorted(ordered, tops - RANGE, "left"), len(frames) - upto
    likely = np.flatnonzero((within * FEW > within[0]) & (above * OUTNUMBERED <= within))
    speech_like = [i for i in likely if _brief(frames > tops[i]) and _like_speech(frames, tops[i])]
    if not speech_like:
        return float(tops[0])
    most = within[speech_like].max()
    head = next(i for i in speech_like if within[i] >= FULL * most)
    return float(frames[frames <= tops[head]].max())


def _without_peaks(frames: Floats, top: float) -> float:
    """``top``, or what is left of it without frames that are too rare, and too far above the median, for speech."""
    while True:
        active = frames[_within(frames, top)]
        limit = np.median(active) + PEAKS
        if top <= limit or (active > limit).mean() > RARE or not _like_speech(frames, limit):
            return top
        top = float(frames[frames <= limit].max())


def _brief(marked: NDArray[np.bool_]) -> bool:
    """Whether no run of frames, those with gaps included, is too long for a tap or a door."""
    places = np.flatnonzero(marked)
    runs = np.split(places, np.flatnonzero(np.diff(places) > GAP + 1) + 1)
    return all(run[-1] - run[0] < LONGEST for run in runs if len(run))


def _like_speech(frames: Floats, top: float) -> bool:
    """Whether frames up to ``top`` come and go as syllables do, where noise and breath are steady."""
    low = top - RANGE
    earlier, later = frames[:-LAG], frames[LAG:]
    counted = (np.maximum(earlier, later) > low) & (np.maximum(earlier, later) <= top)
    if not counted.any():
        return False
    change = np.abs(np.maximum(later[counted], low) - np.maximum(earlier[counted], low))
    return bool(np.percentile(change, SHARE) >= CHANGE)


def _shadowed(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Frames right after marked ones."""
    shadow = np.zeros_like(marked)
    for lag in range(1, min(SHADOW, len(marked) - 1) + 1):
        shadow[lag:] |= marked[:-lag]
    return shadow
