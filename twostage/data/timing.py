"""Time alignment of two recordings of one event: offset, clock drift and polarity, estimated from the sound only.

First, the envelopes of four bands give the offset, over all possible overlaps. Then, short windows of the waveforms are
correlated. The straight line with the largest sum of correlations gives the drift, and the delay to a fraction of a
sample. At first, the windows are within seconds of the point where the recordings match best, then they are spread
wider and wider: an hour costs as little as a minute, and the drift stays within the search range of the windows.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import uniform_filter1d

from twostage.audio.resampling import cut
from twostage.data.spectra import Complex, Floats

BAND = (80.0, 1500.0)  # Hz: band in which both channels contain speech
EDGES = (100.0, 300.0, 600.0, 1000.0, 1500.0)  # Hz: bands of the envelopes
HOP, FRAME = 0.01, 0.032  # seconds: hop and frame length of the envelopes
PART, PARTS = 120.0, 6  # length in seconds and number of the parts of a long recording that are searched in the other
CANDIDATES = 4  # number of offsets that are compared by the waveforms
COARSE = 0.03  # seconds: maximum error of the offset from the envelopes
MOST_WINDOWS = 64  # maximum number per fit
FIRST_SPAN, WIDER = 12.0, 4.0  # span in seconds of the windows of the first fit; its factor from fit to fit
STEEPEST = 6000.0  # ppm: maximum drift that is searched
GRID = 1.5e-4  # seconds: distance of neighboring lines of a search at their ends
NEAR = 0.006  # seconds: search range on each side of a known line
QUIET = 0.01  # of the power of loud windows: windows below are ignored
GROUPS = 4  # groups of windows whose drifts are compared for the standard error


@dataclass(frozen=True)
class Timing:
    """Maps the time of air to that of bone: ``delay + (1 + drift / 1e6) * time``, in seconds of their own clocks.

    ``peak``: normalized cross-correlation of 80 to 1500 Hz along that line, negative if the polarity is inverted;
    ``opposite``: the largest one of opposite sign within some milliseconds; ``drift_error``: standard error in ppm;
    ``seconds``: the duration that both share.
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
    best = _best_fit(pair, fits)
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
    error: float  # standard error of the slope in ppm


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
        """Logarithms of the powers (K, L), minus their running mean over two seconds."""
        floors = [0.1 * np.quantile(band[band > 0], 0.9) if (band > 0).any() else 1.0 for band in self.powers]
        levels = np.log(self.powers + np.array(floors, np.float32)[:, None])
        return np.asarray(levels - uniform_filter1d(levels, round(2 / HOP), axis=1))

    def power(self, begin: Floats, width: float) -> Floats:
        """Mean power in the bands of sections of ``width`` seconds from ``begin`` (N,) on."""
        sums = np.concatenate([[0.0], np.cumsum(self.powers.sum(0, dtype=np.float64))])
        edges = [np.clip(np.round(x / HOP).astype(int), 0, len(sums) - 1) for x in (begin, begin + width)]
        return np.asarray((sums[edges[1]] - sums[edges[0]]) * HOP / width)

    def cut(self, start: int, samples: int) -> Floats:
        """Samples (samples,) from ``start``; zeros beyond either end."""
        return cut(self.signal, start, samples)


@dataclass(frozen=True)
class _Pair:
    bone: _Side
    air: _Side

    def shared(self, line: _Line) -> tuple[float, float]:
        """Start and end of the time that both share, in seconds of air."""
        begin, end = ((at - line.at(0.0)) / (1 + line.slope) for at in (0.0, self.bone.length))
        return max(0.0, begin), min(self.air.length, end)

    def seconds(self, line: _Line) -> float:
        begin, end = self.shared(line)
        return max(0.0, end - begin)


def _best_fit(pair: _Pair, fits: list[_Fit]) -> _Fit:
    """The best fit; among similarly good ones, as for repeated sentences, the one with the longest overlap."""
    best = max(abs(fit.peak) for fit in fits)
    return max((fit for fit in fits if abs(fit.peak) > 0.95 * best), key=lambda fit: pair.seconds(fit.line))


def _coarse(pair: _Pair, max_delay: float, min_overlap: float) -> list[_Line]:
    """Candidate offsets from the envelopes, each at the time where these match best."""
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
        candidates += [(float(scores[peak]), int(lags[peak])) for peak in best]
    accepted: list[int] = []
    for _, lag in sorted(candidates, reverse=True):
        if len(accepted) < CANDIDATES and all(abs(lag - accepted_lag) * HOP > 0.1 for accepted_lag in accepted):
            accepted.append(lag)
    return [_Line(_time_of_best_match(bone, air, lag), lag * HOP) for lag in accepted]


def _scores(
    part: Floats, air: Floats, start: int, total: int, min_overlap: float
) -> tuple[Floats, NDArray[np.integer]]:
    """Scores (N,) of the match of a ``part`` (K, M) of bone with ``air`` (K, L), and lags (N,) in frames.

    ``part`` begins at frame ``start`` of the ``total`` frames of bone. A score is the normalized correlation times the
    root of the overlap, because few frames correlate by chance.
    """
    lengths = part.shape[1], air.shape[1]
    size = fft.next_fast_len(sum(lengths), real=True)
    lags = np.arange(-lengths[1] + 1, lengths[0])  # frame of the part minus frame of air
    spectra = [fft.rfft(x, size, axis=1) for x in (part, air)]
    products = fft.irfft((spectra[0] * spectra[1].conj()).sum(0), size)[lags]
    sums = [np.concatenate([[0.0], np.cumsum(np.square(x, dtype=np.float64).sum(0))]) for x in (part, air)]
    first, last = np.maximum(0, lags), np.minimum(lengths[0], lengths[1] + lags)
    energies = (sums[0][last] - sums[0][first]) * (sums[1][last - lags] - sums[1][first - lags])
    correlation = products / np.sqrt(np.maximum(energies, 1e-6 * energies.max() + 1e-12))
    overlap = (last - first) * HOP
    allowed = overlap >= min(min_overlap, 0.5 * min(lengths) * HOP)
    lags = lags + start
    total_overlap = np.minimum(total, lengths[1] + lags) - np.maximum(0, lags)
    scores = np.where(allowed, correlation * np.sqrt(overlap), 0) * (1 + 0.05 * total_overlap / max(total, lengths[1]))
    return scores, lags


def _time_of_best_match(bone: Floats, air: Floats, lag: int) -> float:
    """The time in air, in seconds, around which the envelopes (K, L) match best."""
    first, last = max(0, -lag), min(air.shape[1], bone.shape[1] - lag)
    agreement = (air[:, first:last] * bone[:, first + lag : last + lag]).sum(0)
    width = min(len(agreement), round(FIRST_SPAN / HOP))
    sums = np.concatenate([[0.0], np.cumsum(agreement, dtype=np.float64)])
    return (first + int((sums[width:] - sums[:-width]).argmax()) + width / 2) * HOP


def _fit(pair: _Pair, line: _Line, span: float, max_offset: float, steepest: float) -> _Fit:
    """The line near ``line`` along which the windows within ``span`` seconds around its time correlate best.

    ``max_offset``: maximum difference in the middle in seconds; ``steepest``: that of the slope in ppm.
    """
    rate = pair.air.rate
    times, width = _windows(pair, line, span)
    if not len(times):
        return _Fit(line, 0.0, 0.0, float("inf"))
    middle = float(times.mean())
    half = float(np.abs(times - middle).max())
    max_lag = round((max_offset + 0.001) * rate)
    lags = max_lag + round((steepest * 1e-6 * half + 0.001) * rate)
    curves = np.stack([_curve(pair, line, time, width, lags) for time in times])
    steps = round(steepest * 1e-6 * half / GRID)
    slopes = np.linspace(-steepest, steepest, 2 * steps + 1) * 1e-6 if steps else np.zeros(1)
    step = float(slopes[1] - slopes[0]) if steps else 0.0
    offsets = times - middle
    scores = np.array([np.abs(_along(curves, offsets, slope, rate, max_lag)).max() for slope in slopes])
    best = int(scores.argmax())
    slope = float(slopes[best]) + _vertex(scores, best) * step
    total = _along(curves, offsets, slope, rate, max_lag)
    top = int(np.abs(total).argmax())
    delay = line.at(middle) + (top - max_lag + _vertex(np.abs(total), top)) / rate
    nearby = total[max(0, top - round(NEAR * rate)) : top + round(NEAR * rate) + 1] * np.sign(total[top])
    error = _slope_error(curves, offsets, slopes, rate, max_lag)
    return _Fit(_Line(middle, delay, line.slope + slope), float(total[top]), max(0.0, -float(nearby.min())), error)


def _windows(pair: _Pair, line: _Line, span: float) -> tuple[Floats, float]:
    """Centers (N,) of windows in air and their width, in seconds.

    All windows with half overlap; if these are too many, the loudest of each section, without quiet ones.
    """
    begin, end = pair.shared(line)
    # an unknown drift smears the correlation within a window, short windows less
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
    """Normalized cross-correlation (2 * lags + 1,) of the window around ``time``, at lags relative to the line."""
    rate = pair.air.rate
    samples, start = round(width * rate), round((time - width / 2) * rate)
    position = start + line.at(start / rate + width / 2) * rate
    size = fft.next_fast_len(samples + 4 * lags + 1, real=True)
    bone_part = pair.bone.cut(round(position) - lags, samples + 2 * lags)
    banded, air, bone = (
        _banded(x, size, rate) for x in (bone_part, pair.air.cut(start, samples), bone_part[lags : lags + samples])
    )
    scale = np.sqrt(np.sum(np.abs(air) ** 2) * np.sum(np.abs(bone) ** 2)) * 2 / size
    if scale <= 0:
        return np.zeros(2 * lags + 1)
    # a linear phase compensates the rounding of the position
    turn = np.exp(2j * np.pi * np.arange(size // 2 + 1) * (position - round(position)) / size)
    return np.asarray(fft.irfft(banded * air.conj() * turn, size)[: 2 * lags + 1] / scale)


def _banded(signal: Floats, size: int, sample_rate: int) -> Complex:
    spectrum = fft.rfft(signal, size)
    frequencies = np.arange(len(spectrum)) * (sample_rate / size)
    inside = (frequencies >= BAND[0]) & (frequencies <= min(BAND[1], 0.45 * sample_rate))
    width = max(1, round(100 * size / sample_rate))
    smoothed = np.sqrt(uniform_filter1d(np.abs(spectrum), width, mode="constant"))
    return np.asarray(np.where(inside & (smoothed > 0), spectrum / np.maximum(smoothed, 1e-12), 0))


def _along(curves: Floats, offsets: Floats, slope: float, rate: int, max_lag: int) -> Floats:
    """Mean of the curves (2 * max_lag + 1,), each shifted by ``slope`` times its offset in time."""
    lags = np.arange(-max_lag, max_lag + 1)
    shifts = slope * offsets * rate
    whole_shifts = np.floor(shifts).astype(int)
    fractions = (shifts - whole_shifts)[:, None]
    indices = curves.shape[1] // 2 + whole_shifts[:, None] + lags
    rows = np.arange(len(curves))[:, None]
    return np.asarray(((1 - fractions) * curves[rows, indices] + fractions * curves[rows, indices + 1]).mean(0))


def _slope_error(curves: Floats, offsets: Floats, slopes: Floats, rate: int, max_lag: int) -> float:
    """Standard error in ppm, from the slopes of groups of windows; at least a quarter of the step of the search."""
    if len(curves) < 2 * GROUPS or len(slopes) < 2:
        return float("inf")
    group_slopes = []
    for group in range(GROUPS):
        curve, offset = curves[group::GROUPS], offsets[group::GROUPS]
        scores = [np.abs(_along(curve, offset, slope, rate, max_lag)).max() for slope in slopes]
        group_slopes.append(slopes[int(np.argmax(scores))])
    return 1e6 * float(np.hypot(np.std(group_slopes, ddof=1) / GROUPS**0.5, (slopes[1] - slopes[0]) / 4))


def _vertex(values: Floats, index: int) -> float:
    """Offset of the vertex of a parabola from the middle of three values; 0 at an end."""
    if not 0 < index < len(values) - 1:
        return 0.0
    left, middle, right = values[index - 1 : index + 2]
    bend = left - 2 * middle + right
    return float(0.5 * (left - right) / bend) if bend < 0 else 0.0
