"""The folder of an evaluation: its files, resuming an evaluation, combining several."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twostage.evaluation import report
from twostage.evaluation.costs import Costs
from twostage.evaluation.report import Row
from twostage.utils.errors import ConfigError, DataError, TwoStageError, called, reason_of
from twostage.utils.schema import build, parse_json

ROWS, SETTINGS_FILE, TABLE, SUMMARY = "utterances.csv", "settings.json", "table.md", "summary.json"
PICTURES, SOUNDS = "spectrograms", "sounds"


@dataclass
class EvaluationResults:
    """The rows so far, and the failures, one line for each file."""

    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def done(self, systems: Iterable[str]) -> set[str]:
        """The utterances that have a row for every system."""
        keys = {row.key for row in self.rows}
        system_names = list(systems)
        return {row.utterance for row in self.rows if all((row.utterance, system) in keys for system in system_names)}

    @contextmanager
    def collecting(self, name: str, path: str) -> Iterator[None]:
        """A context that records an error about the utterance ``name``, a file at ``path``, as a failure.

        The other utterances are not affected.
        """
        try:
            with called({path: name}):
                yield
        except TwoStageError as error:
            self.failures.append(error.about(name))
        except BrokenProcessPool:  # the scoring packages contain C code
            self.failures.append(f"{name}: a scoring process died, maybe from another file; try again with --jobs 1")


def known_costs(path: Path, fingerprints: Mapping[str, str]) -> dict[str, Costs]:
    """Costs of systems from the summary of another evaluation with the same weights.

    ``fingerprints``: the digest of the weights of each system by name.
    """
    summary = _json(path)
    costs, settings = _costs(summary, path), summary.get("settings")
    models = settings.get("models") if isinstance(settings, dict) else None
    if not isinstance(models, dict):
        raise DataError("does not state the weights that its costs belong to", subject=path)
    for name, digest in fingerprints.items():
        if name not in costs or models.get(name) != digest:
            raise DataError(f"contains no costs of {name} with these weights", subject=path)
    return {name: costs[name] for name in fingerprints}


def _costs(summary: Mapping[str, Any], path: Path) -> dict[str, Costs]:
    try:
        return {name: build(Costs, cost, f"costs.{name}") for name, cost in summary["costs"].items()}
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise DataError(f"not a summary ({error!r})", subject=path) from None


def resume(folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> EvaluationResults:
    """Rows of an evaluation that was started in ``folder`` with the same settings; empty if there is none.

    Raises DataError if the folder contains an evaluation with other settings, unless ``overwrite``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make this folder ({reason_of(error)})", subject=folder) from None
    stored = _json(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).exists() and not overwrite else dict(settings)
    for key in sorted({*stored, *settings}):
        if stored.get(key) != settings.get(key):
            former, value = stored.get(key), settings.get(key)
            raise DataError(f"{folder} holds another evaluation ({key}: {former} there, {value} here); see --overwrite")
    report.write_json(folder / SETTINGS_FILE, settings)
    if overwrite or not (folder / ROWS).exists():
        return EvaluationResults()
    return EvaluationResults(report.read_rows(folder / ROWS))


def merge(folders: Sequence[Path]) -> tuple[EvaluationResults, dict[str, Costs]]:
    """Combine the rows, failures and costs of several evaluations; shared rows (of the raw input) are included once.

    If they have different metrics, rows have all of them. Raises DataError if two contain different scores of one
    system on one utterance.
    """
    merged: dict[tuple[str, str], tuple[Row, Path]] = {}
    failures: list[str] = []
    costs: dict[str, Costs] = {}
    for folder in folders:
        for row in report.read_rows(folder / ROWS):
            earlier, origin = merged.get(row.key, (row, folder))
            if not _agree(earlier, row):
                raise DataError(f"{origin} and {folder} differ in the scores of {row.system} on {row.utterance}")
            notes = "; ".join(dict.fromkeys(filter(None, (earlier.note, row.note))))
            merged[row.key] = replace(earlier, scores={**row.scores, **earlier.scores}, note=notes), origin
        summary = _json(folder / SUMMARY)
        costs = _costs(summary, folder / SUMMARY) | costs
        failed = summary.get("failures", [])
        if not isinstance(failed, list):
            raise DataError(f"failures is {failed!r}, must be a list", subject=folder / SUMMARY)
        failures += map(str, failed)
    return EvaluationResults([row for row, _ in merged.values()], failures), costs


def _agree(left: Row, right: Row) -> bool:
    """Whether two rows can belong to the same estimate: equal in everything that both contain."""
    shared = left.scores.keys() & right.scores.keys()
    reduced = [
        replace(row, scores={name: row.scores[name] for name in sorted(shared)}, note="") for row in (left, right)
    ]
    return repr(reduced[0]) == repr(reduced[1])  # as text, because NaN != NaN


def _json(path: Path) -> dict[str, Any]:
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(reason_of(error), subject=path) from None
    except ValueError as error:
        raise DataError(f"not JSON: {error}", subject=path) from None
    if not isinstance(values, dict):
        raise DataError("not a JSON object", subject=path)
    return values
