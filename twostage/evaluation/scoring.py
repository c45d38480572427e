"""Computes the scores of one estimate, in this process or in several worker processes."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

import torch

from twostage.audio.types import Audio
from twostage.evaluation import metrics
from twostage.evaluation.report import Row
from twostage.utils.errors import TwoStageError
from twostage.utils.signals import interrupt_blocked


def score(row: Row, clean: Audio, estimate: Audio, names: Sequence[str]) -> Row:
    """Align an estimate (T,) with clean speech (T'), both at 16 kHz, and add the scores ``names`` to ``row``."""
    aligned = metrics.align(clean, estimate)
    exact, reasons = metrics.score(aligned.reference, aligned.estimate, names)
    # rounded as in the CSV: further digits of ESTOI are noise, and a resumed evaluation must have the same summary
    scores = {metric: float(f"{value:.6g}") for metric, value in exact.items()}
    return replace(row, scores=scores, delay=aligned.delay, longer=aligned.longer, note="; ".join(reasons))


def scoring_pool(jobs: int) -> Executor:
    """An executor for ``score``: ``jobs`` processes, or this process for one job."""
    return ProcessPoolExecutor(jobs, _QuietContext(), torch.set_num_threads, (1,)) if jobs > 1 else _SameProcess()


class _SameProcess(Executor):
    """Runs submitted calls immediately in this process."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **kwargs))
        except TwoStageError as error:
            future.set_exception(error)
        return future


class _QuietProcess(SpawnProcess):
    """A process that ignores Ctrl-C, which all processes of a terminal receive; its parent handles it and ends it."""

    def start(self) -> None:
        with interrupt_blocked():
            super().start()


class _QuietContext(SpawnContext):  # spawn: a fork of a process with torch threads can hang
    Process = _QuietProcess
