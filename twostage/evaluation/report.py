"""Scores of many utterances as a CSV, a Markdown table and a JSON summary, with bootstrap intervals."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twostage.evaluation.costs import Costs
from twostage.evaluation.metrics import HIGHER_IS_BETTER, SAMPLE_RATE
from twostage.utils.errors import DataError, reason_of
from twostage.utils.files import replacing

RAW, AIR, CLEAN = "raw input", "noisy air", "clean"
COLUMNS = {  # metric -> heading and digits in tables
    "pesq": ("PESQ-WB", 2),
    "stoi": ("STOI", 3),
    "estoi": ("ESTOI", 3),
    "lsd": ("LSD", 2),
    "mel_l1": ("mel L1", 2),
    "mcd": ("MCD dB", 1),
    "mos": ("MOS", 2),
    "dnsmos": ("DNSMOS", 2),
}
UNMEASURED = "-"  # in a CSV; scores that were measured but have no value are empty
DRAWS = 2000  # bootstrap samples


@dataclass(frozen=True)
class Row:
    """The scores of one system on one utterance; ``delay`` and ``longer`` (samples at 16 kHz) were compensated before.

    Metrics that were not measured are not in ``scores``; those without a value are NaN.
    """

    utterance: str
    corpus: str
    speaker: str
    seconds: float
    system: str
    scores: Mapping[str, float]
    delay: int = 0
    longer: int = 0
    note: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.utterance, self.system


class Interval(NamedTuple):
    """Mean of ``n`` values and its 95 % bootstrap interval; NaN without values; no interval for one value."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap(values: Iterable[float], seed: int = 0) -> Interval:
    """Percentile interval of the mean over resampled utterances (Efron, 1979). NaN values are ignored.

    >>> bootstrap([1.0, 1.0, float("nan")])
    Interval(mean=1.0, low=1.0, high=1.0, n=2)
    """
    valid = np.array([value for value in values if not np.isnan(value)])
    if not valid.size:
        return Interval(np.nan, np.nan, np.nan, 0)
    if valid.size == 1:
        return Interval(float(valid[0]), np.nan, np.nan, 1)
    draws = np.random.default_rng(seed).integers(0, valid.size, (DRAWS, valid.size))
    low, high = np.percentile(valid[draws].mean(1), [2.5, 97.5])
    return Interval(float(valid.mean()), float(low), float(high), valid.size)


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """The metrics in any of the rows, in the order of ``COLUMNS``."""
    return [metric for metric in COLUMNS if any(metric in row.scores for row in rows)]


def summarize(rows: Sequence[Row]) -> dict[str, dict[str, Interval]]:
    """Interval of every metric for every system, systems in the order of their first rows."""
    systems = dict.fromkeys(row.system for row in rows)
    return {
        system: {
            metric: bootstrap(row.scores.get(metric, np.nan) for row in rows if row.system == system)
            for metric in metrics_of(rows)
        }
        for system in systems
    }


def gains(rows: Sequence[Row]) -> dict[str, dict[str, Interval]]:
    """Intervals of the differences to the raw input of the same utterance; narrower, because speakers cancel out."""
    raw = {row.utterance: row.scores for row in rows if row.system == RAW}
    paired = [
        Row(row.utterance, row.corpus, row.speaker, row.seconds, row.system, _minus(row.scores, raw[row.utterance]))
        for row in rows
        if row.system != RAW and row.utterance in raw
    ]
    return summarize(paired)


def _minus(scores: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, float]:
    return {metric: scores[metric] - baseline[metric] for metric in scores if metric in baseline}


def markdown(
    rows: Sequence[Row],
    costs: Mapping[str, Costs],
    failures: Sequence[str] = (),
    *,
    title: str = "Evaluation",
    group_by: str | None = None,
) -> str:
    """Tables of means with 95 % intervals: overall with costs, differences to raw, and by corpus or speaker."""
    utterances = {row.utterance: row.seconds for row in rows}
    speakers = len({row.speaker for row in rows})
    lines = [f"# {title}", ""]
    lines += [f"{len(utterances)} utterances of {speakers} speakers, {sum(utterances.values()):.0f} s. Means and 95 %"]
    lines += ["bootstrap intervals over utterances; the arrow says which way is better.", ""]
    lines += _table(summarize(rows), costs)
    paired = gains(rows)
    if paired:
        lines += ["", "Differences to the raw input of the same utterance:", "", *_table(paired, sign="+")]
    if group_by:
        for group in sorted({getattr(row, group_by) for row in rows}):
            chosen = [row for row in rows if getattr(row, group_by) == group]
            lines += ["", f"## {group_by}: {group or '(none)'}", "", *_table(summarize(chosen))]
    return "\n".join([*lines, "", *_remarks(rows, costs, failures)])


def _table(
    systems: Mapping[str, Mapping[str, Interval]], costs: Mapping[str, Costs] | None = None, *, sign: str = ""
) -> list[str]:
    metrics = list(next(iter(systems.values()), {}))
    heads = [f"{COLUMNS[metric][0]} {'↑' if HIGHER_IS_BETTER[metric] else '↓'}" for metric in metrics]
    heads = ["system", "n", *heads, *(["RTF", "GMAC/s", "parameters"] if costs is not None else [])]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for system, intervals in systems.items():
        n = max(interval.n for interval in intervals.values())
        cells = [system, str(n), *(_cell(intervals[m], COLUMNS[m][1], sign, n) for m in metrics)]
        if costs is not None:
            cells += _costs(costs.get(system))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(interval: Interval, digits: int, sign: str, n: int) -> str:
    if not interval.n:
        return "-"
    cell = f"{interval.mean:{sign}.{digits}f}"
    if interval.n > 1:
        cell += f" [{interval.low:{sign}.{digits}f}, {interval.high:{sign}.{digits}f}]"
    return cell if interval.n == n else f"{cell} (n = {interval.n})"


def _costs(costs: Costs | None) -> list[str]:
    if costs is None:
        return ["-", "-", "-"]
    return [f"{costs.real_time_factor:.3f}", f"{costs.gmac:.2f}", f"{costs.parameters / 1e6:.2f} M"]


def _remarks(rows: Sequence[Row], costs: Mapping[str, Costs], failures: Sequence[str]) -> list[str]:
    lines = []
    shifted = [row for row in rows if row.delay or row.longer]
    if shifted:
        delays, lengths = ([getattr(row, name) * 1000 / SAMPLE_RATE for row in shifted] for name in ("delay", "longer"))
        lines.append(
            f"- Aligned before scoring: {len(shifted)} of {len(rows)} estimates, delays of {min(delays):+.2f} to "
            f"{max(delays):+.2f} ms, lengths off by {min(lengths):+.2f} to {max(lengths):+.2f} ms."
        )
    notes = Counter(row.note for row in rows if row.note)
    lines += [f"- Without a score, {count} estimates: {note}." for note, count in notes.items()]
    machines = sorted({f"{cost.device}, {cost.threads} threads" for cost in costs.values()})
    if machines:
        lines.append(
            f"- RTF: seconds of work for a second of audio ({'; '.join(machines)}); GMAC for a second of audio."
        )
    lines += [f"- Failed: {failure}" for failure in failures]
    return [*lines, ""] if lines else []


def as_json(
    rows: Sequence[Row], costs: Mapping[str, Costs], failures: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of the tables as plain values; NaN is null."""
    return {
        "settings": dict(settings),
        "utterances": len({row.utterance for row in rows}),
        "systems": _plain(summarize(rows)),
        "differences to raw": _plain(gains(rows)),
        "costs": {system: asdict(cost) for system, cost in costs.items()},
        "aligned": sum(bool(row.delay or row.longer) for row in rows),
        "failures": list(failures),
    }


def _plain(systems: Mapping[str, Mapping[str, Interval]]) -> dict[str, Any]:
    return {
        system: {
            metric: {name: None if np.isnan(value) else value for name, value in interval._asdict().items()}
            for metric, interval in intervals.items()
        }
        for system, intervals in systems.items()
    }


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a CSV atomically, one line per utterance and system, with delays in milliseconds."""
    metrics = metrics_of(rows)
    heads = ["utterance", "corpus", "speaker", "seconds", "system", *metrics, "delay_ms", "longer_ms", "note"]
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(heads)
        for row in rows:
            scores = [_number(row.scores[metric]) if metric in row.scores else UNMEASURED for metric in metrics]
            shifts = [f"{samples * 1000 / SAMPLE_RATE:g}" for samples in (row.delay, row.longer)]
            writer.writerow(
                [row.utterance, row.corpus, row.speaker, row.seconds, row.system, *scores, *shifts, row.note]
            )


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"


def read_rows(path: Path) -> list[Row]:
    """Read rows that ``write_rows`` wrote. Raises DataError that names the file and the line."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_row(values, f"{path}:{line}") for line, values in enumerate(csv.DictReader(file), 2)]
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", subject=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(reason_of(error) if isinstance(error, OSError) else "not a text file", subject=path) from None


def _row(values: Mapping[str, str], where: str) -> Row:
    try:
        measured = [metric for metric in COLUMNS if values.get(metric, UNMEASURED) != UNMEASURED]
        scores = {metric: float(values[metric] or "nan") for metric in measured}
        delay, longer = (round(float(values[name]) * SAMPLE_RATE / 1000) for name in ("delay_ms", "longer_ms"))
        seconds = float(values["seconds"])
        identity = (values["utterance"], values["corpus"], values["speaker"])
        return Row(*identity, seconds, values["system"], scores, delay, longer, values["note"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"not a line of scores ({error!r})", subject=where) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as JSON, atomically."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
