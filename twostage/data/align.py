"""The delay between the two channels of a pair, and whether the pair is fit for use."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import fft

from twostage.audio.levels import active_level
from twostage.audio.speech import read_speech
from twostage.data.manifest import Entry
from twostage.data.spectra import Floats
from twostage.utils.errors import ConfigError, TwoStageError

BAND = (80.0, 1500.0)  # Hz in which both channels have speech


class Delay(NamedTuple):
    """Samples that bone lags behind air, and the normalised cross-correlation there; negative: polarity turned."""

    samples: float
    peak: float


@dataclass(frozen=True)
class AlignConfig:
    """Limits beyond which a pair is rejected."""

    max_delay: float = 0.05  # seconds
    min_peak: float = 0.2  # normalised cross-correlation, of either sign
    max_length_difference: float = 0.5  # seconds
    max_clipped: float = 0.001  # share of samples at full scale
    min_level_db: float = -70.0  # active level
    max_drift: float = 0.002  # seconds between the delays of the two halves

    def __post_init__(self) -> None:
        for name in ("max_delay", "max_length_difference", "max_clipped", "max_drift"):
            if getattr(self, name) < 0:
                raise ConfigError(f"align.{name} is {getattr(self, name)}, must not be negative")
        if not 0 <= self.min_peak <= 1:
            raise ConfigError(f"align.min_peak is {self.min_peak}, must lie between 0 and 1")


@dataclass(frozen=True)
class Verdict:
    """What was found about a pair; ``problem`` is empty if it is fit for use. Times in seconds, levels in dB."""

    name: str
    speaker: str
    problem: str = ""
    seconds: float = 0.0
    delay: float = 0.0
    peak: float = 0.0
    drift: float = 0.0
    length_difference: float = 0.0
    bone_level: float = 0.0
    air_level: float = 0.0
    clipped: float = 0.0


def estimate_delay(bone: Floats, air: Floats, sample_rate: int, *, max_seconds: float = 0.02) -> Delay:
    """Delay of ``bone`` (T,) behind ``air`` (T',) by cross-correlation from 80 to 1500 Hz, to a fraction of a sample.

    Plain correlation, not GCC-PHAT: the whitening of PHAT gives the bands that the body took away, which hold nothing
    but noise, the same say as those with speech. The signals are whitened by their own smoothed spectrum in the band
    instead, to the power of one half, so that the lowest harmonics do not make the peak as wide as their period.
    """
    reach = max(1, round(max_seconds * sample_rate))
    size = fft.next_fast_len(max(len(bone), len(air)) + reach + 1, real=True)
    spectra = [_banded(np.asarray(x, np.float32), size, sample_rate) for x in (bone, air)]
    scale = np.sqrt(np.prod([np.sum(np.abs(s) ** 2) for s in spectra])) * 2 / size
    if scale <= 0:
        return Delay(0.0, 0.0)
    raw = fft.irfft(spectra[0] * spectra[1].conj(), size) / scale
    lags = np.arange(-reach, reach + 1)
    around = raw[lags]
    best = int(np.abs(around).argmax())
    return Delay(float(lags[best] + _vertex(np.abs(around), best)), float(around[best]))


def _banded(signal: Floats, size: int, sample_rate: int) -> Floats:
    spectrum = fft.rfft(signal, size)
    frequencies = np.arange(len(spectrum)) * (sample_rate / size)
    inside = (frequencies >= BAND[0]) & (frequencies <= min(BAND[1], 0.45 * sample_rate))
    magnitude = np.abs(spectrum)
    width = max(1, round(100 * size / sample_rate))
    smoothed = np.sqrt(np.convolve(magnitude, np.ones(width) / width, mode="same"))
    return np.where(inside & (smoothed > 0), spectrum / np.maximum(smoothed, 1e-12), 0)


def _vertex(values: Floats, index: int) -> float:
    """Offset of a parabola's top from the middle of three values; 0 at an end."""
    if not 0 < index < len(values) - 1:
        return 0.0
    left, middle, right = values[index - 1 : index + 2]
    bend = left - 2 * middle + right
    return float(0.5 * (left - right) / bend) if bend < 0 else 0.0


def align_pair(bone: Floats, air: Floats, sample_rate: int, config: AlignConfig, *, name: str = "") -> Verdict:
    """Measure one pair of channels, (T,) and (T',), and say whether it is fit for use."""
    if not (np.isfinite(bone).all() and np.isfinite(air).all()):
        return Verdict(name, "", problem="holds samples that are not finite")
    levels = [active_level(x, sample_rate) for x in (bone, air)]
    clipped = max(_clipped(bone), _clipped(air))
    length = min(len(bone), len(air))
    found = Verdict(
        name,
        "",
        seconds=length / sample_rate,
        length_difference=(len(bone) - len(air)) / sample_rate,
        bone_level=levels[0],
        air_level=levels[1],
        clipped=clipped,
    )
    for side, level in zip(("bone", "air"), levels, strict=True):
        if level < config.min_level_db:
            return replace(found, problem=f"{side} is silent: {level:.0f} dB, the limit is {config.min_level_db:g}")
    delay = estimate_delay(bone, air, sample_rate, max_seconds=config.max_delay)
    found = replace(found, delay=delay.samples / sample_rate, peak=delay.peak)
    if length >= 2 * sample_rate:
        found = replace(found, drift=_drift(bone, air, sample_rate, config))
    return replace(found, problem=_problem(found, config))


def _clipped(signal: Floats) -> float:
    """Share of samples at a full scale that is reached more than once in a row."""
    full = np.abs(signal) >= 0.999
    return float((full[1:] & full[:-1]).mean()) if len(signal) > 1 else 0.0


def _drift(bone: Floats, air: Floats, sample_rate: int, config: AlignConfig) -> float:
    """How far the delay moves, in seconds, from the first half to the second; 0 where a half does not tell."""
    middle = min(len(bone), len(air)) // 2
    halves = (slice(0, middle), slice(middle, 2 * middle))
    first, second = (
        estimate_delay(bone[half], air[half], sample_rate, max_seconds=config.max_delay) for half in halves
    )
    if min(abs(first.peak), abs(second.peak)) < config.min_peak:
        return 0.0
    return (second.samples - first.samples) / sample_rate


def _problem(found: Verdict, config: AlignConfig) -> str:
    if abs(found.length_difference) > config.max_length_difference:
        return f"lengths differ by {found.length_difference:+.2f} s, the limit is {config.max_length_difference:g}"
    if found.clipped > config.max_clipped:
        return f"clipped: {found.clipped:.2%} of the samples, the limit is {config.max_clipped:.2%}"
    if abs(found.peak) < config.min_peak:
        return f"the channels do not match: correlation {abs(found.peak):.2f}, the limit is {config.min_peak:g}"
    if abs(found.delay) >= config.max_delay:
        return f"the delay reaches the limit of {config.max_delay * 1000:g} ms"
    if abs(found.drift) > config.max_drift:
        return f"the delay drifts by {found.drift * 1000:+.1f} ms, the limit is {config.max_drift * 1000:g}"
    return ""


def align(entries: Sequence[Entry], config: AlignConfig) -> Iterator[tuple[Entry, Verdict]]:
    """Yield each paired entry with its delay filled in, and the verdict on it. Entries without a pair are skipped."""
    for entry in entries:
        if entry.paired:
            verdict = replace(_verdict(entry, config), speaker=entry.speaker)
            yield replace(entry, delay=round(verdict.delay, 6)), verdict


def _verdict(entry: Entry, config: AlignConfig) -> Verdict:
    try:
        bone, rate = read_speech(str(entry.degraded))
        air, _ = read_speech(str(entry.clean), rate)
    except TwoStageError as error:
        return Verdict(entry.name, "", problem=str(error))
    return align_pair(bone, air, rate, config, name=entry.name)
