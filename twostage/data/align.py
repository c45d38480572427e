"""Measures the time alignment of the two channels of a pair, and decides whether the pair can be used."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from twostage.audio import sound_files
from twostage.audio.highpass import highpassed
from twostage.audio.levels import LevelMeter
from twostage.data.manifest import Entry
from twostage.data.spectra import Floats
from twostage.data.timing import Timing, estimate_timing
from twostage.utils.errors import ConfigError, DataError, TwoStageError

RATE = 16000  # Hz: maximum rate at which channels are compared; the speech that both contain is below 1.5 kHz
SURE = 3.0  # standard errors that a drift must exceed to count as significant
HEARD = 3e-4  # seconds by which a drift must shift the channels from one end to the other; less is ignored
SAME = 0.9999  # correlation without any delay from which on two channels are one recording
UNSURE = 0.8  # ratio of the peak of the opposite sign to the peak from which on the polarity is uncertain


@dataclass(frozen=True)
class AlignConfig:
    """Limits beyond which a pair is rejected."""

    max_delay: float = math.inf  # seconds
    min_peak: float = 0.2  # normalized cross-correlation, of either sign
    min_overlap: float = 0.5  # seconds that both channels share, or half of the shorter recording if that is less
    max_clipped: float = 0.001  # fraction of samples at full scale
    min_level_db: float = -70.0  # active level
    max_drift: float = 1000.0  # ppm between the clocks

    def __post_init__(self) -> None:
        for name in ("max_delay", "min_overlap", "max_clipped", "max_drift"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"align.{name} is {getattr(self, name)}, must not be negative")
        if not 0 <= self.min_peak <= 1:
            raise ConfigError(f"align.min_peak is {self.min_peak}, must lie between 0 and 1")


@dataclass(frozen=True)
class Verdict:
    """The measurements of a pair; ``problem`` is empty if the pair can be used.

    ``seconds`` that both channels share; ``delay`` of bone in seconds, ``drift`` and its standard error in ppm, levels
    in dB; ``peak`` and ``opposite`` as in `twostage.data.timing.Timing`.
    """

    name: str
    speaker: str
    problem: str = ""
    seconds: float = 0.0
    delay: float = 0.0
    drift: float = 0.0
    drift_error: float | None = None
    peak: float = 0.0
    opposite: float = 0.0
    inverted: bool = False
    bone_level: float = 0.0
    air_level: float = 0.0
    clipped: float = 0.0


class _Channel(NamedTuple):
    """A recording (T,) at ``rate``, and what was measured while it was read."""

    audio: Floats
    rate: int
    level: float
    clipped: float
    finite: bool


def align_pair(bone: Floats, air: Floats, sample_rate: int, config: AlignConfig, *, name: str = "") -> Verdict:
    """Measure one pair of channels, (T,) and (T',), and decide whether it can be used."""
    bone_channel, clean = (_channel([x[None]], sample_rate, sample_rate) for x in (bone, air))
    return _assessed(bone_channel, clean, config, name)


def _channel(blocks: "Sequence[Floats] | Iterator[Floats]", sample_rate: int, rate: int) -> _Channel:
    """The first channel of a stream of blocks (C, T), resampled from ``sample_rate`` to ``rate``."""
    meter = LevelMeter(1, sample_rate)
    clipped = total = 0
    finite = True

    def measured() -> Iterator[Floats]:
        nonlocal clipped, total, finite
        for block in blocks:
            first = np.asarray(block[:1], np.float32)
            if not np.isfinite(first).all():
                finite = False
                return
            meter.add(first)
            full = np.abs(first[0]) >= 0.999  # only consecutive samples at full scale count
            clipped, total = clipped + int((full[1:] & full[:-1]).sum()), total + len(full)
            yield first

    speech = highpassed(measured(), sample_rate, 1)
    parts = [np.zeros((1, 0), np.float32), *sound_files.resampled(speech, sample_rate, rate, 1)]
    level = float(meter.levels()[0]) if finite else 0.0
    return _Channel(np.concatenate(parts, axis=1)[0], rate, level, clipped / max(1, total), finite)


def _assessed(bone: _Channel, air: _Channel, config: AlignConfig, name: str) -> Verdict:
    if not (bone.finite and air.finite):
        return Verdict(name, "", problem="holds samples that are not finite")
    verdict = Verdict(name, "", bone_level=bone.level, air_level=air.level, clipped=max(bone.clipped, air.clipped))
    for side, channel in (("bone", bone), ("air", air)):
        if channel.level < config.min_level_db:
            return replace(
                verdict, problem=f"{side} is silent: {channel.level:.0f} dB, the limit is {config.min_level_db:g}"
            )
    if _same(bone.audio, air.audio):
        return replace(
            verdict,
            problem="both sides are the same recording: of a file with several channels, only the first is used",
        )
    limits = {"max_delay": config.max_delay, "min_overlap": config.min_overlap}
    timing = _significant(estimate_timing(bone.audio, air.audio, bone.rate, **limits), len(air.audio) / air.rate)
    verdict = replace(
        verdict,
        seconds=timing.seconds,
        delay=timing.delay,
        drift=timing.drift,
        drift_error=timing.drift_error if math.isfinite(timing.drift_error) else None,
        peak=timing.peak,
        opposite=timing.opposite,
        inverted=timing.peak < 0,
    )
    return replace(verdict, problem=_problem(verdict, config))


def _same(bone: Floats, air: Floats) -> bool:
    """Whether two channels (T,) differ by no more than a gain and rounding, as no two microphones do."""
    if len(bone) != len(air):
        return False
    return float(bone @ air) >= SAME * float(np.linalg.norm(bone) * np.linalg.norm(air))


def _significant(timing: Timing, air_seconds: float) -> Timing:
    """Remove a drift that is not significant or too small to matter; the delay in the middle stays the same."""
    if abs(timing.drift) >= SURE * timing.drift_error and abs(timing.drift) * 1e-6 * timing.seconds >= HEARD:
        return timing
    begin = max(0.0, -timing.delay)
    middle = (begin + min(air_seconds, begin + timing.seconds)) / 2
    return replace(timing, delay=timing.delay + timing.drift * 1e-6 * middle, drift=0.0)


def _problem(verdict: Verdict, config: AlignConfig) -> str:
    if verdict.clipped > config.max_clipped:
        return f"clipped: {verdict.clipped:.2%} of the samples, the limit is {config.max_clipped:.2%}"
    if abs(verdict.peak) < config.min_peak:
        return f"the channels do not match: correlation {abs(verdict.peak):.2f}, the limit is {config.min_peak:g}"
    if abs(verdict.delay) >= config.max_delay:
        return f"the delay reaches the limit of {config.max_delay * 1000:g} ms"
    if abs(verdict.drift) > config.max_drift:
        return f"the clocks drift apart by {verdict.drift:+.0f} ppm, the limit is {config.max_drift:g}"
    return ""


def align(entries: Sequence[Entry], config: AlignConfig) -> Iterator[tuple[Entry, Verdict]]:
    """Yield each paired entry with measured delay, drift and polarity, and its verdict.

    The duration of an entry becomes that which both channels share. Entries without a pair are skipped.
    """
    for entry in entries:
        if entry.paired:
            verdict = replace(_verdict(entry, config), speaker=entry.speaker)
            yield _filled(entry, verdict), verdict


def _filled(entry: Entry, verdict: Verdict) -> Entry:
    return replace(
        entry,
        delay=round(verdict.delay, 6),
        drift=round(verdict.drift, 2),
        inverted=verdict.inverted,
        seconds=round(verdict.seconds, 4) or entry.seconds,
    )


def agree_on_polarity(verdicts: Sequence[tuple[Entry, Verdict]]) -> list[tuple[Entry, Verdict]]:
    """Set uncertain polarities to that of most pairs of the corpus, because polarity is a property of the device."""
    votes: dict[str, float] = defaultdict(float)
    for entry, verdict in verdicts:
        if not verdict.problem and verdict.opposite < UNSURE * abs(verdict.peak):
            votes[entry.corpus] += math.copysign(abs(verdict.peak) - verdict.opposite, verdict.peak)
    agreed = []
    for entry, verdict in verdicts:
        uncertain = not verdict.problem and verdict.opposite >= UNSURE * abs(verdict.peak)
        if uncertain and votes[entry.corpus]:
            verdict = replace(verdict, inverted=votes[entry.corpus] < 0)
        agreed.append((replace(entry, inverted=verdict.inverted), verdict))
    return agreed


def _verdict(entry: Entry, config: AlignConfig) -> Verdict:
    paths = [str(path) for path in (entry.degraded, entry.clean)]
    try:
        rate = min(RATE, sound_files.info(paths[0]).sample_rate)
        bone, air = (_opened(path, rate) for path in paths)
    except TwoStageError as error:
        return Verdict(entry.name, "", problem=str(error))
    return _assessed(bone, air, config, entry.name)


def _opened(path: str, rate: int) -> _Channel:
    with sound_files.Reader(path) as reader:
        channel = _channel(reader.blocks(), reader.info.sample_rate, rate)
    if not channel.finite:
        raise DataError("holds samples that are not finite", subject=path)
    return channel
