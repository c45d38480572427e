"""Time alignment of two recordings of one event: offset, clock drift and polarity, estimated from the sound alone.

The envelopes of four bands give the offset first, over all overlaps that are possible. Then short windows of the
waveforms are correlated. The straight line along which the sum of their correlations is largest gives the drift, and
the delay to a fraction of a sample. The windows are at first within seconds of the place where the recordings agree
best, then ever wider apart: an hour costs as little as a minute, and the drift never leaves the search range of a
window.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import uniform_filter1d

from twostage.data.spectra import Complex, Floats

BAND = (80.0, 1500.0)  # Hz in which both channels have speech
EDGES = (100.0, 300.0, 600.0, 1000.0, 1500.0)  # Hz: bands of the envelopes
HOP, FRAME = 0.01, 0.032  # seconds, of the envelopes
PART, PARTS = 120.0, 6  # seconds of a long recording that are looked for in the other, and how many of them
CANDIDATES = 4  # offsets that the waveforms decide between
COARSE = 0.03  # seconds by which the offset of the envelopes may be wrong
MOST_WINDOWS = 64  # of a fit
FIRST_SPAN, WIDER = 12.0, 4.0  # seconds that the windows of the first fit lie in; how much wider they lie in the next
STEEPEST = 6000.0  # ppm: drift that is looked for
GRID = 1.5e-4  # seconds by which neighboring lines of a search differ at their ends
NEAR = 0.006  # seconds to either side of a line that is known
QUIET = 0.01  # share of the loud windows' power below which a window does not count
GROUPS = 4  # of windows, whose drifts are compared


@dataclass(frozen=True)
class Timing:
    """Maps the time of air to that of bone: ``delay + (1 + drift / 1e6) * time``, in seconds of their own clocks.

    ``peak``: normalized cross-correlation of 80 to 1500 Hz along that line, negative if the polarity is inverted;
    ``opposite``: the largest of the other sign within some milliseconds; ``drift_error``: standard error in ppm;
    ``seconds``: the duration that both have.
    """

    delay: float = 0.0
    drift: float = 0.0
    peak: float = 0.0
    opposite: float = 0.0
    drift_error: float = float("inf")
    seconds: float = 0.0


def estimate_timing(
    bone: Floats, air: Floats, sample_rate: int, *, max_delay: float = float("inf"), min_overlap: float = 0.5
) -> Timing:
    """Offset, drift and polarity of ``bone`` (T,) against ``air`` (T',), which need not begin or end together.

    Offsets beyond ``max_delay`` seconds, or with less than ``min_overlap`` seconds in common, are not considered.

    Plain correlation is used instead of GCC-PHAT: the whitening of PHAT gives bands that the body has removed, which
    contain only noise, the same weight as those with speech. The signals are instead whitened by the square root of
    their own smoothed spectrum in the band, so that the lowest harmonics do not make the peak as wide as their period.
    """
    pair = _Pair(_Side(np.asarray(bone, np.float32), sample_rate), _Side(np.asarray(air, np.float32), sample_rate))
    max_offset = min(COARSE, max_delay)
    fits = [_fit(pair, line, FIRST_SPAN, max_offset, STEEPEST) for line in _coarse(pair, max_delay, min_overlap)]
    if not any(fit.peak for fit in fits):
        return Timing()
    best = _most_in_common(pair, fits)
    span = FIRST_SPAN
    while span < 2 * pair.seconds(best.line) or span == FIRST_SPAN:
        steepest = 4e6 * GRID / min(span, pair.seconds(best.line))
        span *= WIDER
        best = _fit(pair, best.line, span, NEAR, steepest)
    line = best.line
    return Timing(line.at(0.0), line.slope * 1e6, best.peak, best.opposite, best.error, pair.seconds(line))


class _Line(NamedTuple):
    """Delays in seconds by time in air: ``delay`` at ``time``, and ``slope`` more for every second."""

    time: float
    delay: float
    slope: float = 0.0

    def at(self, time: float) -> float:
        return self.delay + self.slope * (time - self.time)


class _Fit(NamedTuple):
    line: _Line
    peak: float
    opposite: float
    error: float  # ppm, of the slope


@dataclass(frozen=True)
class _Side:
    signal: Floats
    rate: int

    @property
    def length(self) -> float:
        return len(self.signal) / self.rate

    @cached_property
    def powers(self) -> Floats:
        """Power (K, L) of the bands, every ``HOP`` seconds."""
        frame = round(FRAME * self.rate)
        starts = np.arange(0, max(1, len(self.signal) - frame), HOP * self.rate).astype(int)
        padded = np.pad(self.signal, (0, frame))
        window = np.hanning(frame).astype(np.float32)
        bins = np.searchsorted(np.arange(frame // 2 + 1) * self.rate / frame, EDGES)
        powers = np.empty((len(EDGES) - 1, len(starts)), np.float32)
        for block in range(0, len(starts), 4096):
            frames = padded[starts[block : block + 4096, None] + np.arange(frame)] * window
            power = np.abs(fft.rfft(frames, axis=1)) ** 2
            powers[:, block : block + 4096] = np.add.reduceat(power[:, : bins[-1]], bins[:-1], axis=1).T
        return powers

    @cached_property
    def envelopes(self) -> Floats:
        """Logarithms of the powers (K, L), less their mean over the two seconds around."""
        floors = [0.1 * np.quantile(band[band > 0], 0.9) if (band > 0).any() else 1.0 for band in self.powers]
        levels = np.log(self.powers + np.array(floors, np.float32)[:, None])
        return np.asarray(levels - uniform_filter1d(levels, round(2 / HOP), axis=1))

    def power(self, begin: Floats, width: float) -> Floats:
        """Mean power in the bands of stretches of ``width`` seconds from ``begin`` (N,) on."""
        sums = np.concatenate([[0.0], np.cumsum(self.powers.sum(0, dtype=np.float64))])
        edges = [np.clip(np.round(x / HOP).astype(int), 0, len(sums) - 1) for x in (begin, begin + width)]
        return np.asarray((sums[edges[1]] - sums[edges[0]]) * HOP / width)

    def cut(self, start: int, samples: int) -> Floats:
        """Samples (samples,) from ``start``; zeros beyond either end."""
        out = np.zeros(samples, np.float32)
        first, last = max(0, start), min(len(self.signal), start + samples)
        if last > first:
            out[first - start : last - start] = self.signal[first:last]
        return out


@dataclass(frozen=True)
class _Pair:
    bone: _Side
    air: _Side

    def shared(self, line: _Line) -> tuple[float, float]:
        """The time that both have, from and to, in seconds of air."""
        begin, end = ((at - line.at(0.0)) / (1 + line.slope) for at in (0.0, self.bone.length))
        return max(0.0, begin), min(self.air.length, end)

    def seconds(self, line: _Line) -> float:
        begin, end = self.shared(line)
        return max(0.0, end - begin)


def _most_in_common(pair: _Pair, fits: list[_Fit]) -> _Fit:
    """The best fit; among fits that are about as good, as for repeated sentences, the one with the most in common."""
    best = max(abs(fit.peak) for fit in fits)
    return max((fit for fit in fits if abs(fit.peak) > 0.95 * best), key=lambda fit: pair.seconds(fit.line))


def _coarse(pair: _Pair, max_delay: float, min_overlap: float) -> list[_Line]:
    """Offsets that the envelopes suggest, each at the time where they agree best."""
    bone, air = pair.bone.envelopes, pair.air.envelopes
    count = max(1, min(PARTS, int(pair.bone.length / PART)))
    size = bone.shape[1] if count == 1 else round(PART / HOP)
    candidates: list[tuple[float, int]] = []
    for start in np.linspace(0, bone.shape[1] - size, count).astype(int):
        scores, lags = _scores(bone[:, start : start + size], air, int(start), bone.shape[1], min_overlap)
        scores = np.where(np.abs(lags) * HOP <= max_delay + HOP, scores, 0)
        padded = np.pad(scores, 1)
        peaks = np.flatnonzero((scores > 0) & (scores >= padded[2:]) & (scores > padded[:-2]))
        best = peaks[np.argsort(-scores[peaks])[: 4 * CANDIDATES]]
        candidates += [(float(scores[place]), int(lags[place])) for place in best]
    kept: list[int] = []
    for _, lag in sorted(candidates, reverse=True):
        if len(kept) < CANDIDATES and all(abs(lag - other) * HOP > 0.1 for other in kept):
            kept.append(lag)
    return [_Line(_where(bone, air, lag), lag * HOP) for lag in kept]


def _scores(
    part: Floats, air: Floats, start: int, total: int, min_overlap: float
) -> tuple[Floats, NDArray[np.integer]]:
    """How well a ``part`` (K, M) of bone, whose ``total`` frames it begins ``start`` in, fits ``air`` (K, L), by lag.

    Scores (N,) and lags (N,) in frames.

    The likeness of what overlaps, times the root of how much that is: what chance makes of few frames counts for less.
    """
    lengths = part.shape[1], air.shape[1]
    size = fft.next_fast_len(sum(lengths), real=True)
    lags = np.arange(-lengths[1] + 1, lengths[0])  # frame of the part less frame of air
    spectra = [fft.rfft(x, size, axis=1) for x in (part, air)]
    products = fft.irfft((spectra[0] * spectra[1].conj()).sum(0), size)[lags]
    sums = [np.concatenate([[0.0], np.cumsum(np.square(x, dtype=np.float64).sum(0))]) for x in (part, air)]
    first, last = np.maximum(0, lags), np.minimum(lengths[0], lengths[1] + lags)
    energies = (sums[0][last] - sums[0][first]) * (sums[1][last - lags] - sums[1][first - lags])
    likeness = products / np.sqrt(np.maximum(energies, 1e-6 * energies.max() + 1e-12))
    overlap = (last - first) * HOP
    allowed = overlap >= min(min_overlap, 0.5 * min(lengths) * HOP)
    lags = lags + start
    whole = np.minimum(total, lengths[1] + lags) - np.maximum(0, lags)
    scores = np.where(allowed, likeness * np.sqrt(overlap), 0) * (1 + 0.05 * whole / max(total, lengths[1]))
    return scores, lags


def _where(bone: Floats, air: Floats, lag: int) -> float:
    """The time in air, in seconds, around which the envelopes (K, L) agree best."""
    first, last = max(0, -lag), min(air.shape[1], bone.shape[1] - lag)
    agreement = (air[:, first:last] * bone[:, first + lag : last + lag]).sum(0)
    width = min(len(agreement), round(FIRST_SPAN / HOP))
    sums = np.concatenate([[0.0], np.cumsum(agreement, dtype=np.float64)])
    return (first + int((sums[width:] - sums[:-width]).argmax()) + width / 2) * HOP


def _fit(pair: _Pair, line: _Line, span: float, max_offset: float, steepest: float) -> _Fit:
    """The line near ``line`` on which the windows within ``span`` seconds around its time agree best.

    ``max_offset``: seconds by which it may lie off in the middle; ``steepest``: ppm by which its slope may differ.
    """
    rate = pair.air.rate
    times, width = _windows(pair, line, span)
    if not len(times):
        return _Fit(line, 0.0, 0.0, float("inf"))
    middle = float(times.mean())
    half = float(np.abs(times - middle).max())
    inside = round((max_offset + 0.001) * rate)
    lags = inside + round((steepest * 1e-6 * half + 0.001) * rate)
    curves = np.stack([_curve(pair, line, time, width, lags) for time in times])
    steps = round(steepest * 1e-6 * half / GRID)
    slopes = np.linspace(-steepest, steepest, 2 * steps + 1) * 1e-6 if steps else np.zeros(1)
    step = float(slopes[1] - slopes[0]) if steps else 0.0
    offsets = times - middle
    scores = np.array([np.abs(_along(curves, offsets, slope, rate, inside)).max() for slope in slopes])
    best = int(scores.argmax())
    slope = float(slopes[best]) + _vertex(scores, best) * step
    total = _along(curves, offsets, slope, rate, inside)
    top = int(np.abs(total).argmax())
    delay = line.at(middle) + (top - inside + _vertex(np.abs(total), top)) / rate
    near = total[max(0, top - round(NEAR * rate)) : top + round(NEAR * rate) + 1] * np.sign(total[top])
    error = _slope_error(curves, offsets, slopes, rate, inside)
    return _Fit(_Line(middle, delay, line.slope + slope), float(total[top]), max(0.0, -float(near.min())), error)


def _windows(pair: _Pair, line: _Line, span: float) -> tuple[Floats, float]:
    """Middles (N,) of windows in air and their width, in seconds.

    All that fit, half over each other; where that is too many, the loudest of each stretch and none that is quiet.
    """
    begin, end = pair.shared(line)
    # a drift that is not known yet smears what a window has: short ones stand more of it
    width = min(0.4 if span <= FIRST_SPAN else 1.0, max(0.25, (end - begin) / 6))
    begin, end = max(begin, line.time - span / 2), min(end, line.time + span / 2)
    if end - begin < width:
        return np.zeros(0), width
    count = max(1, int(2 * (end - begin) / width - 1))
    if count <= MOST_WINDOWS:
        return np.linspace(begin + width / 2, end - width / 2, count), width
    starts = np.arange(begin, end - width + HOP / 2, max(width / 4, (end - begin) / 4096))
    power = pair.air.power(starts, width) * pair.bone.power(starts + line.at(float(starts.mean())), width)
    count = min(MOST_WINDOWS, len(starts))
    loudest = [int(part[power[part].argmax()]) for part in np.array_split(np.arange(len(starts)), count)]
    loud = power[loudest] > QUIET**2 * np.quantile(power[loudest], 0.9)
    return starts[loudest][loud] + width / 2, width


def _curve(pair: _Pair, line: _Line, time: float, width: float, lags: int) -> Floats:
    """Normalized cross-correlation (2 * lags + 1,) of the window around ``time``, at lags from where the line is."""
    rate = pair.air.rate
    samples, start = round(width * rate), round((time - width / 2) * rate)
    place = start + line.at(start / rate + width / 2) * rate
    size = fft.next_fast_len(samples + 4 * lags + 1, real=True)
    wide = pair.bone.cut(round(place) - lags, samples + 2 * lags)
    banded, air, bone = (
        _banded(x, size, rate) for x in (wide, pair.air.cut(start, samples), wide[lags : lags + samples])
    )
    scale = np.sqrt(np.sum(np.abs(air) ** 2) * np.sum(np.abs(bone) ** 2)) * 2 / size
    if scale <= 0:
        return np.zeros(2 * lags + 1)
    # what rounding took away is undone by the phase
    turn = np.exp(2j * np.pi * np.arange(size // 2 + 1) * (place - round(place)) / size)
    return np.asarray(fft.irfft(banded * air.conj() * turn, size)[: 2 * lags + 1] / scale)


def _banded(signal: Floats, size: int, sample_rate: int) -> Complex:
    spectrum = fft.rfft(signal, size)
    frequencies = np.arange(len(spectrum)) * (sample_rate / size)
    inside = (frequencies >= BAND[0]) & (frequencies <= min(BAND[1], 0.45 * sample_rate))
    width = max(1, round(100 * size / sample_rate))
    smoothed = np.sqrt(uniform_filter1d(np.abs(spectrum), width, mode="constant"))
    return np.asarray(np.where(inside & (smoothed > 0), spectrum / np.maximum(smoothed, 1e-12), 0))


def _along(curves: Floats, offsets: Floats, slope: float, rate: int, inside: int) -> Floats:
    """Mean of the curves (2 * inside + 1,), each moved by what ``slope`` makes of its offset in time."""
    lags = np.arange(-inside, inside + 1)
    moves = slope * offsets * rate
    whole = np.floor(moves).astype(int)
    rest = (moves - whole)[:, None]
    places = curves.shape[1] // 2 + whole[:, None] + lags
    rows = np.arange(len(curves))[:, None]
    return np.asarray(((1 - rest) * curves[rows, places] + rest * curves[rows, places + 1]).mean(0))


def _slope_error(curves: Floats, offsets: Floats, slopes: Floats, rate: int, inside: int) -> float:
    """Standard error in ppm, from the slopes of groups of windows; no less than a quarter of the search's step."""
    if len(curves) < 2 * GROUPS or len(slopes) < 2:
        return float("inf")
    group_slopes = []
    for group in range(GROUPS):
        curve, offset = curves[group::GROUPS], offsets[group::GROUPS]
        scores = [np.abs(_along(curve, offset, slope, rate, inside)).max() for slope in slopes]
        group_slopes.append(slopes[int(np.argmax(scores))])
    return 1e6 * float(np.hypot(np.std(group_slopes, ddof=1) / GROUPS**0.5, (slopes[1] - slopes[0]) / 4))


def _vertex(values: Floats, index: int) -> float:
    """Offset of a parabola's top from the middle of three values; 0 at an end."""
    if not 0 < index < len(values) - 1:
        return 0.0
    left, middle, right = values[index - 1 : index + 2]
    bend = left - 2 * middle + right
    return float(0.5 * (left - right) / bend) if bend < 0 else 0.0
