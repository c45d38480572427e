"""Compares several evaluations in one table and in plots: quality against cost, errors by frequency, spectrograms."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twostage.audio import plots, sound_files
from twostage.audio.types import Audio
from twostage.evaluation import metrics, report
from twostage.evaluation.costs import Costs
from twostage.evaluation.metrics import HIGHER_IS_BETTER, SAMPLE_RATE
from twostage.evaluation.pictures import draw, file_name
from twostage.evaluation.report import CLEAN, COLUMNS, RAW, metrics_of, summarize
from twostage.evaluation.results import PICTURES, SOUNDS, TABLE, EvaluationResults, merge
from twostage.evaluation.systems import COPY
from twostage.utils.errors import DataError
from twostage.utils.files import replacing

CSV, COST, BANDS, BANDS_CSV = "table.csv", "cost.png", "bands.png", "bands.csv"
NOTHING = 1e-4  # real-time factor of a system that returns its input
PRICES = {  # axis -> its value for the costs of a system
    "GMAC for a second of audio": lambda cost: cost.gmac,
    "million parameters": lambda cost: cost.parameters / 1e6,
    "latency, ms": lambda cost: cost.latency and cost.latency * 1000,
    "real-time factor": lambda cost: cost.real_time_factor if cost.real_time_factor > NOTHING else None,
}


def compare(folders: Sequence[Path], out: Path, *, metric: str = "estoi", title: str = "Comparison") -> str:
    """Combine the results of `twostage evaluate` in ``folders``; writes the table and the plots to ``out``.

    Returns the table. Spectrograms and errors by frequency use the utterances whose sounds are in every folder.
    Raises DataError if a folder contains no evaluation, or if two of them have different scores of one system.
    """
    if metric not in COLUMNS:
        raise DataError(f"no metric {metric!r}; there are {', '.join(COLUMNS)}")
    results, costs = merge(folders)
    if results.rows and metric not in metrics_of(results.rows):
        raise DataError(f"no folder has scores of {metric}; there are {', '.join(metrics_of(results.rows))}")
    text = report.markdown(results.rows, costs, results.failures, title=title)
    report.write_text(out / TABLE, text)
    _write_csv(out / CSV, _flat(results, costs))
    charts = cost_charts(results, costs, metric)
    systems = list(dict.fromkeys(row.system for row in results.rows))
    if charts:
        plots.draw_charts(out / COST, charts, names=systems, overwrite=True)
    kept = kept_sounds(folders, systems)
    for name, sounds in kept.items():
        draw(out / PICTURES / f"{name}.png", sounds)
    if kept:
        errors = mean_errors(kept)
        width = SAMPLE_RATE / 2 / len(next(iter(errors.values())))
        centers = [width * (index + 0.5) for index in range(round(SAMPLE_RATE / 2 / width))]
        rows = [
            {"system": system} | dict(zip(map(str, centers), levels, strict=True)) for system, levels in errors.items()
        ]
        _write_csv(out / BANDS_CSV, rows)
        lines = {system: list(zip(centers, levels, strict=True)) for system, levels in errors.items()}
        up = f"error of band levels, dB ({len(kept)} utterances)"
        plots.draw_charts(out / BANDS, [plots.Chart("Hz", up, lines, logarithmic=False)], names=systems, overwrite=True)
    return text


def cost_charts(results: EvaluationResults, costs: Mapping[str, Costs], metric: str) -> list[plots.Chart]:
    """A chart of score against cost for each kind of cost. Systems without costs are left out.

    So is copy-synthesis, which uses the clean speech: its score would compress the scale for all others.
    """
    means = {system: intervals[metric].mean for system, intervals in summarize(results.rows).items()}
    means = {system: mean for system, mean in means.items() if not system.endswith(COPY)}
    raw = {RAW: means[RAW]} if RAW in means else {}
    heading = f"{COLUMNS[metric][0]} ({'higher' if HIGHER_IS_BETTER[metric] else 'lower'} is better)"
    charts = []
    for axis, cost_of in PRICES.items():
        prices = {system: cost_of(costs[system]) for system in means if system in costs}
        points = {system: [(float(cost), means[system])] for system, cost in prices.items() if cost}
        if points:
            charts.append(plots.Chart(axis, heading, points, from_zero=False, levels=raw))
    return charts


def kept_sounds(folders: Sequence[Path], systems: Sequence[str]) -> dict[str, dict[str, Audio]]:
    """The sounds (T,) by system, the clean speech last, of each utterance whose sounds are in all folders."""
    names = [{path.name for path in (folder / SOUNDS).glob("*")} for folder in folders]
    kept = {}
    for name in sorted(set.intersection(*names)) if names else []:
        sounds: dict[str, Audio] = {}
        for title in (*(system for system in systems if system != CLEAN), CLEAN):
            files = [folder / SOUNDS / name / f"{file_name(title)}.flac" for folder in folders]
            file = next((file for file in files if file.is_file()), None)
            if file:
                sounds[title] = sound_files.read(file)[0][0]
        kept[name] = sounds
    return kept


def mean_errors(utterances: Mapping[str, Mapping[str, Audio]]) -> dict[str, NDArray[np.float64]]:
    """For each system, the mean error in dB by band over the utterances."""
    errors: dict[str, list[NDArray[np.float64]]] = {}
    for sounds in utterances.values():
        for system, sound in sounds.items():
            if system != CLEAN:
                aligned = metrics.align(sounds[CLEAN], sound)
                errors.setdefault(system, []).append(metrics.band_errors(aligned.reference, aligned.estimate))
    return {system: np.nanmean(system_errors, axis=0) for system, system_errors in errors.items()}


def _flat(results: EvaluationResults, costs: Mapping[str, Costs]) -> list[dict[str, object]]:
    rows = []
    for system, intervals in summarize(results.rows).items():
        row: dict[str, object] = {"system": system, "n": max(interval.n for interval in intervals.values())}
        row |= {metric: interval.mean for metric, interval in intervals.items()}
        cost = costs.get(system)
        cost_values = (cost.parameters, cost.gmac, cost.latency, cost.real_time_factor) if cost else ("",) * 4
        rows.append(row | dict(zip(("parameters", "gmac", "latency_s", "real_time_factor"), cost_values, strict=True)))
    return rows


def _write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
