"""Fits a sensor to a few minutes of pairs: measures statistics by band and fits the simulator to them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twostage.audio.levels import active_level
from twostage.data.aligned_pair import open_pair
from twostage.data.manifest import Entry
from twostage.data.sensors import CURVES, Curve, Sensor, as_curve
from twostage.data.simulator import seeded, simulate
from twostage.data.spectra import (
    OVERLAP,
    Complex,
    Floats,
    active_frames,
    decibels,
    frame_size,
    power,
    stft,
    voice_level,
)
from twostage.utils.errors import DataError

Starts = NDArray[np.intp]  # first bins of the bands (K + 1,)

QUIET = 38.0  # dB below the loudest frame of the clean channel: frames below are pauses, with the sensor's noise only
CHUNK = 4.0  # seconds: longer recordings are divided, to have enough of them for statistics
DROP = 20.0  # dB: a drop by so much within 400 Hz is a band limit
SPEECH_SHARE = 0.75  # of the gains that the fit does not explain: the function is unknown, but speech is what decides


class Recording(NamedTuple):
    """An aligned pair: (T,) each at one sample rate."""

    clean: Floats
    degraded: Floats


@dataclass(frozen=True)
class SensorStatistics:
    """Statistics of pairs of channels by band, with both at the same active level. dB unless stated otherwise."""

    frequencies: Floats  # Hz, centers of the bands (K,)
    response_db: Floats  # power of the degraded speech relative to the clean speech, with noise subtracted
    response_spread_db: Floats  # its standard deviation between recordings
    slope: Floats  # change of a degraded band per dB in the clean band, by regression over the frames
    voice_slope: Floats  # change of a degraded band per dB of voice level, by the same regression
    gain_spread_db: Floats  # standard deviation of the residuals of that regression
    coherence: Floats  # magnitude-squared, 32 ms frames
    noise_db: Floats  # power density in the pauses of the degraded channel, per Hz, relative to its speech
    noise_spread_db: float
    band_limit: float  # Hz; 0 if there is none
    recordings: int
    seconds: float


@dataclass(frozen=True)
class FittedSensor:
    """A sensor for the simulator, the statistics that it was fitted to, and those of its simulation."""

    sensor: Sensor
    measured: SensorStatistics
    simulated: SensorStatistics


def bands(sample_rate: int) -> Floats:
    """Band edges in Hz (K + 1,): widths of 31 Hz, then 62.5 Hz, and a fifth of an octave at the top."""
    edges = [0.0, 31.0]
    while edges[-1] < sample_rate / 2:
        edges.append(edges[-1] + max(62.5, 0.15 * edges[-1]))
    edges[-1] = sample_rate / 2
    return np.array(edges)


def load_recordings(entries: Sequence[Entry], sample_rate: int) -> list[Recording]:
    """Load the first channel of both files of paired entries, aligned by the delay of the entry."""
    return [_load(entry, sample_rate) for entry in entries if entry.paired]


def _load(entry: Entry, sample_rate: int) -> Recording:
    degraded, clean = open_pair(entry, sample_rate).cut()
    for path, channel in ((entry.clean, clean), (entry.degraded, degraded)):
        if not channel.any():
            raise DataError("silent, cannot be used for a fit", subject=path)
    return Recording(clean, degraded)


def measure_sensor(recordings: Iterable[Recording], sample_rate: int) -> SensorStatistics:
    """Measure how the degraded channels differ from the clean ones. Raises DataError if there is too little speech."""
    views = [_view(part, sample_rate) for recording in recordings for part in _chunks(recording, sample_rate)]
    views = [view for view in views if view.active.sum() >= 20]
    if not views:
        raise DataError("the pairs contain too little speech: 0.2 s are needed in a recording of 0.5 s or more")
    edges = bands(sample_rate)
    grid = np.arange(views[0].clean.shape[1]) * (sample_rate / frame_size(sample_rate))
    starts = np.searchsorted(grid, edges)
    noise, noise_spread = _noise(views, starts)
    response = np.array([_mean_ratio(view, starts, noise) for view in views])
    slopes, scatter = _regression(views, starts, grid)
    return SensorStatistics(
        frequencies=(edges[1:] + edges[:-1]) / 2,
        response_db=response.mean(0),
        response_spread_db=response.std(0, ddof=1) if len(response) > 1 else np.zeros(len(edges) - 1),
        slope=slopes[0],
        voice_slope=slopes[1],
        gain_spread_db=scatter,
        coherence=_by_band(_coherence(views)[None], starts)[0],
        noise_db=decibels(noise / (sample_rate / 2)),
        noise_spread_db=noise_spread,
        band_limit=_band_limit(views, grid),
        recordings=len(views),
        seconds=sum(len(view.clean) for view in views) * frame_size(sample_rate) / OVERLAP / sample_rate,
    )


def fit_sensor(recordings: Sequence[Recording], sample_rate: int, *, rounds: int = 4, seed: int = 0) -> FittedSensor:
    """Fit a sensor to pairs so that the simulation of their clean channels has the measured statistics.

    The measured curves are the initial guess. They are not sufficient: time-varying gains lower the coherence, finite
    frames scatter without any gain, and noise fills quiet bands. The clean channels are therefore simulated and
    measured in the same way, and the settings are corrected by the difference, ``rounds`` times.
    """
    measured = measure_sensor(recordings, sample_rate)
    sensor = _first_guess(measured)
    for number in range(rounds):
        sensor = _corrected(sensor, measured, _simulated(recordings, sample_rate, sensor, seed, number))
    sensor = replace(_rounded(sensor), speech_share=SPEECH_SHARE)
    return FittedSensor(sensor, measured, _simulated(recordings, sample_rate, sensor, seed, rounds))


def _simulated(
    recordings: Sequence[Recording], sample_rate: int, sensor: Sensor, seed: int, number: int
) -> SensorStatistics:
    draws = 3 if sum(len(r.clean) for r in recordings) < 120 * sample_rate else 1  # reduces the variance
    simulated = [
        Recording(r.clean, simulate(r.clean, sample_rate, sensor, seeded(seed, number, draw, index)))
        for draw in range(draws)
        for index, r in enumerate(recordings)
    ]
    return measure_sensor(simulated, sample_rate)


def _first_guess(measured: SensorStatistics) -> Sensor:
    sensor = Sensor(
        frequencies=as_curve(measured.frequencies),
        response_db=as_curve(measured.response_db),
        response_spread_db=as_curve(measured.response_spread_db.clip(0, 6)),
        slope=as_curve(measured.slope.clip(-0.2, 1.2)),
        voice_slope=as_curve(measured.voice_slope.clip(-0.5, 1.2)),
        gain_spread_db=as_curve((measured.gain_spread_db - 3).clip(0, 8)),
        coherence=as_curve(measured.coherence.clip(0, 1)),
        # harmonics are distinct from the noise at low frequencies, where the sensor picks up the voice, and less above
        noise_share=as_curve(np.interp(np.log2(measured.frequencies), np.log2([500, 2000]), [0.05, 0.2])),
        noise_db=as_curve(measured.noise_db.clip(-110, 0)),
        noise_spread_db=min(measured.noise_spread_db, 6.0),
        band_limit=measured.band_limit,
        band_limit_jitter=0.01 if measured.band_limit else 0.0,
        rounding_db=_rounding(measured),
    )
    return _held(sensor)


def _rounding(measured: SensorStatistics) -> float | None:
    """Total level of the white noise that remains above the band limit."""
    above = measured.noise_db[measured.frequencies > 1.15 * (measured.band_limit or np.inf)]
    return float(np.median(above) + decibels(measured.frequencies[-1:])[0]) if len(above) else None


def _corrected(sensor: Sensor, measured: SensorStatistics, simulated: SensorStatistics) -> Sensor:
    """Correct every setting against its error, within its limits."""

    def shifted(name: str, step: float, low: float, high: float) -> Curve:
        error = getattr(measured, name) - getattr(simulated, name)
        return as_curve((np.array(getattr(sensor, name)) + step * error).clip(low, high))

    def spread(name: str, high: float) -> Curve:
        """Correct a standard deviation; variances add up."""
        error = getattr(measured, name) ** 2 - getattr(simulated, name) ** 2
        return as_curve(np.sqrt((np.array(getattr(sensor, name)) ** 2 + error).clip(0, high**2)))

    corrected = replace(
        sensor,
        response_db=shifted("response_db", 1.0, -60, 40),
        response_spread_db=spread("response_spread_db", 6),
        slope=shifted("slope", 0.8, -0.2, 1.2),
        voice_slope=shifted("voice_slope", 0.8, -0.5, 1.2),
        gain_spread_db=spread("gain_spread_db", 9),
        coherence=shifted("coherence", 1.0, 0, 1),
        noise_db=shifted("noise_db", 1.0, -120, 0),
    )
    return _held(corrected)


def _held(sensor: Sensor) -> Sensor:
    """Hold every curve constant above the last complete band below the band limit: there are no data above."""
    if not sensor.band_limit:
        return sensor
    last = max(0, sum(f < 0.95 * sensor.band_limit for f in sensor.frequencies) - 1)
    curves = {name: getattr(sensor, name) for name in CURVES}
    values: dict[str, Any] = {
        name: curve[: last + 1] + (curve[last],) * (len(curve) - last - 1) for name, curve in curves.items() if curve
    }
    return replace(sensor, **values)


def _by_band(powers: Floats, starts: Starts) -> Floats:
    """Mean over the bins of each band: (L, F) to (L, K). Not a matrix product, which would start threads."""
    return np.add.reduceat(powers[:, : starts[-1]], starts[:-1], axis=1) / np.diff(starts)


class _View(NamedTuple):
    clean: Complex  # (L, F), both channels at level 1
    degraded: Complex
    active: Floats  # (L,) of bool
    quiet: Floats


def _chunks(recording: Recording, sample_rate: int) -> list[Recording]:
    """Divide a long recording into equal parts of CHUNK seconds or up to twice as long."""
    count = max(1, int(len(recording.clean) / (CHUNK * sample_rate)))
    parts = zip(np.array_split(recording.clean, count), np.array_split(recording.degraded, count), strict=True)
    return [Recording(*part) for part in parts if len(part[0]) > sample_rate / 2]


def _view(recording: Recording, sample_rate: int) -> _View:
    size = frame_size(sample_rate)
    clean, degraded = (
        stft(x * np.float32(10 ** (-active_level(x, sample_rate) / 20)), size) / np.float32((size / OVERLAP) ** 0.5)
        for x in recording
    )
    active, quiet = active_frames(power(clean)), np.logical_not(active_frames(power(clean), QUIET))
    inside = slice(2 * OVERLAP, -2 * OVERLAP)  # without frames that contain padding
    return _View(clean[inside], degraded[inside], active[inside], quiet[inside])


def _noise(views: list[_View], starts: Starts) -> tuple[Floats, float]:
    """Noise power (K,) in the pauses of the degraded channel, and its deviation between recordings in dB."""
    pauses = [_by_band(power(view.degraded[view.quiet]), starts) for view in views if view.quiet.sum() >= 5]
    if not pauses:  # without pauses, use the quietest frames
        pauses = [np.quantile(_by_band(power(view.degraded), starts), 0.05, axis=0)[None] for view in views]
    levels = np.array([decibels(np.median(pause, axis=0)) for pause in pauses])
    spread = levels.mean(1).std(ddof=1) if len(levels) > 1 else 0.0
    return 10 ** (levels.mean(0) / 10), float(spread)


def _mean_ratio(view: _View, starts: Starts, noise: Floats) -> Floats:
    """Degraded power relative to clean power (K,) in the speech of a recording, in dB, with the noise subtracted."""
    clean, degraded = (_by_band(power(x[view.active]), starts).mean(0) for x in (view.clean, view.degraded))
    return decibels(np.maximum(degraded - noise, 0.03 * degraded) / (clean + 1e-9))


def _regression(views: list[_View], starts: Starts, grid: Floats) -> tuple[Floats, Floats]:
    """Regress degraded bands on clean band and voice level, in dB: slopes (2, K) and residual deviation (K,)."""
    rows = []
    for view in views:
        clean, degraded = (
            decibels(_by_band(power(x[view.active]), starts) + 1e-7) for x in (view.clean, view.degraded)
        )
        voice = voice_level(power(view.clean[view.active]), grid)[:, None]
        rows.append(np.stack([x - x.mean(0) for x in (clean, np.broadcast_to(voice, clean.shape), degraded)]))
    band, voice, target = np.concatenate(rows, axis=1)
    a, b, c = (band**2).mean(0) + 1.0, (voice**2).mean(0) + 1.0, (band * voice).mean(0)  # with a ridge of 1 dB
    p, q = (band * target).mean(0), (voice * target).mean(0)
    slopes = np.stack([b * p - c * q, a * q - c * p]) / (a * b - c**2)
    return slopes, (target - slopes[0] * band - slopes[1] * voice).std(0)


def _coherence(views: list[_View]) -> Floats:
    """Magnitude-squared coherence (F,), corrected for its bias, mean over recordings."""
    return np.mean([_coherence_of(view) for view in views], axis=0)


def _coherence_of(view: _View) -> Floats:
    cross = np.abs((view.clean.conj() * view.degraded).mean(0)) ** 2
    raw = cross / (power(view.clean).mean(0) * power(view.degraded).mean(0) + 1e-12)
    bias = 1.5 * OVERLAP / 2 / len(view.clean)  # about half of the overlapping frames are independent
    return ((raw - bias) / (1 - bias)).clip(0, 1)


def _band_limit(views: list[_View], grid: Floats) -> float:
    """The frequency above which only the clean channel has content; 0 if there is none."""
    curves = [
        decibels(np.mean([power(x).mean(0) for x in side], axis=0))
        for side in zip(*[v[:2] for v in views], strict=True)
    ]
    span = max(2, int(200 / grid[1]))
    drops = np.zeros(len(grid))
    for k in range(2 * span, len(grid) - 2 * span):
        clean, degraded = (c[k - 2 * span : k - span].mean() - c[k + span : k + 2 * span].mean() for c in curves)
        drops[k] = degraded - max(clean, 0)
    edge = int(drops.argmax())
    if drops[edge] < DROP:
        return 0.0
    passed = curves[1] > curves[1][edge - 2 * span : edge - span].mean() - 0.75 * DROP
    return float(grid[np.flatnonzero(passed[: edge + span])[-1]])


def _rounded(sensor: Sensor) -> Sensor:
    values = {f.name: getattr(sensor, f.name) for f in fields(sensor)}
    return Sensor(**{name: _shortened(value) for name, value in values.items()})


def _shortened(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_shortened, value))
    return round(value, 3) if isinstance(value, float) else value
