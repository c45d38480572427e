"""Score the raw input, restored speech, copy-synthesis and the clean speech itself, utterance by utterance.

All scores are computed at 16 kHz on the first channel, after delays and length differences of up to 20 ms are
compensated.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace

from twostage.audio.types import Audio
from twostage.data.manifest import Entry
from twostage.evaluation import metrics
from twostage.evaluation.pairs import PairSource
from twostage.evaluation.report import CLEAN, COLUMNS, Row
from twostage.evaluation.results import EvaluationResults
from twostage.evaluation.scoring import score, scoring_pool
from twostage.evaluation.systems import System, estimates

SAVE_EVERY = 10.0  # seconds

Waiting = deque[tuple[str, str, list[Future[Row]]]]  # utterances being scored: name, path, one row per system


def evaluate(
    entries: Iterable[Entry],
    source: PairSource,
    systems: Sequence[System],
    results: EvaluationResults,
    *,
    names: Sequence[str] = tuple(COLUMNS),
    keep_low_band: float = 0.0,
    jobs: int = 1,
    save: Callable[[], None] = lambda: None,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Score every entry that is missing in ``results`` by the metrics ``names``, and add the scores to it.

    The clean speech has a separate row with the no-reference metrics. ``save`` is called every SAVE_EVERY seconds
    and at the end.

    A file that cannot be read or scored becomes one line of ``results.failures``, and none of its rows is added. With
    ``jobs`` above 1, so many processes compute scores while this one runs the models.
    """
    metrics.require_packages(names)
    reference_free = [name for name in names if name in metrics.NO_REFERENCE]
    done = results.done([*source.inputs, *(system.name for system in systems), *([CLEAN] if reference_free else [])])
    pending: Waiting = deque()
    saved = time.monotonic()
    try:
        with scoring_pool(jobs) as pool:
            for entry in entries:
                name = source.name(entry)
                if name in done:
                    progress()
                    continue
                with results.collecting(name, entry.name):
                    rows = _rows(entry, name, source, systems, keep_low_band)
                    scored = [pool.submit(score, row, clean, estimate, names) for row, clean, estimate in rows]
                    if reference_free:
                        row, clean, _ = rows[0]
                        scored.append(pool.submit(score, replace(row, system=CLEAN), clean, clean, reference_free))
                    pending.append((name, entry.name, scored))
                _collect(pending, 0 if jobs == 1 else 2 * jobs, results, progress)
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
                    saved = time.monotonic()
            _collect(pending, 0, results, progress)
    finally:
        save()


def _collect(pending: Waiting, max_pending: int, results: EvaluationResults, progress: Callable[[], None]) -> None:
    """Wait until at most ``max_pending`` utterances are left; rows and failures keep the order of the entries."""
    while len(pending) > max_pending:
        name, path, futures = pending.popleft()
        with results.collecting(name, path):
            results.rows += [future.result() for future in futures]
        progress()


def _rows(
    entry: Entry, name: str, source: PairSource, systems: Sequence[System], keep_low_band: float
) -> list[tuple[Row, Audio, Audio]]:
    """Rows without scores, each with its clean speech and estimate."""
    degraded, clean = source.read(entry)
    rows = []
    for label, estimate in estimates(degraded, clean, systems, keep_low_band):
        row = Row(name, entry.corpus, entry.speaker, round(len(clean) / metrics.SAMPLE_RATE, 3), label, {})
        rows.append((row, clean, estimate))
    return rows
