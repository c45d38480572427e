"""Trainings that are killed repeatedly at random moments, and must end bitwise like an undisturbed one."""

import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from trainings import equal

from torture.assets import Assets, training
from torture.harness import Child, Limits, Place, Session, record, violations
from twostage.models import checkpoint

ADVERSARIAL = ("weights.adv=1", "weights.fm=1", "adversary.mel_discriminator.channels=[4,8]")
STAGES: dict[str, tuple[str, ...]] = {"train-restorer": ADVERSARIAL, "train-vocoder": ()}
KEPT = ("best.safetensors", "last.safetensors")
MOST = 40  # maximal number of kills of one training
LIMITS = Limits(120, addresses=0)


def kills(
    session: Session, assets: Assets, count: int = 110, stages: Sequence[str] = tuple(STAGES), most: int = MOST
) -> None:
    """At least ``count`` kills, at most ``most`` per training, of ``stages`` in turn, half of them during a write."""
    undisturbed_runs = {stage: _undisturbed(session, assets, stage) for stage in stages}
    total_kills = number = 0
    while total_kills < count:
        stage = stages[number % len(stages)]
        rng = np.random.default_rng([session.seed, 3, number])
        with session.case(f"{number:02}", stage) as (place, row):
            undisturbed, seconds = undisturbed_runs[stage]
            arguments = training(assets.corpus, stage, "run", *STAGES[stage])
            killed, during_writes = _kill_until_complete(place, row, arguments, rng, seconds, most)
            row.figures = {"kills": killed, "while a file was being written": during_writes}
            if not row.problems:
                row.problems += differences(undisturbed, place.work / "run")
            total_kills += killed
        number += 1
    for stage in stages:
        rows = [row for row in session.rows if row.kind == stage]
        total, during_writes = (
            sum(row.figures[name] for row in rows) for name in ("kills", "while a file was being written")
        )
        session.note(
            f"{stage}: {len(rows)} trainings, killed {total} times, "
            f"{during_writes} of these while a file was being written"
        )
    for undisturbed, _ in undisturbed_runs.values():
        shutil.rmtree(undisturbed.parent.parent)


def _undisturbed(session: Session, assets: Assets, stage: str) -> tuple[Path, float]:
    """The run folder of an undisturbed training, and its time in seconds."""
    place = session.place(f"whole-{stage}")
    outcome = place.run(training(assets.corpus, stage, "run", *STAGES[stage]), LIMITS)
    if outcome.code:
        raise RuntimeError(outcome.err)
    return place.work / "run", outcome.seconds


def _kill_until_complete(
    place: Place, row: Any, arguments: list[str], rng: np.random.Generator, seconds: float, most: int
) -> tuple[int, int]:
    """Kill and resume a training until it is complete; return the number of kills, and of those during a write."""
    killed = during_writes = 0
    run = place.work / "run"
    while killed <= most:
        child = place.start([*arguments, *["--resume"] * (run / "config.yaml").exists()], LIMITS)
        if killed < most:
            writing = killed % 2 == 0
            (_kill_while_writing if writing else _kill_at_random_moment)(child, run, rng, seconds)
        outcome = child.wait()
        if outcome.hung or outcome.code != -signal.SIGKILL:
            record(row, outcome, violations(outcome, codes=(0,)))
            return killed, during_writes
        killed += 1
        during_writes += any(path.name.endswith(".part") for path in run.rglob("*")) if run.exists() else 0
        row.seconds += outcome.seconds
        row.problems += _incomplete_files(run)
    raise AssertionError  # the last round of the loop has no kill


def _kill_at_random_moment(child: Child, run: Path, rng: np.random.Generator, seconds: float) -> None:
    until = rng.uniform(0, 1.1 * seconds)
    while child.poll() is None and child.elapsed < until:
        time.sleep(0.001)
    child.send(signal.SIGKILL)


def _kill_while_writing(child: Child, run: Path, rng: np.random.Generator, seconds: float) -> None:
    """Stop a training while one of its files is being written, and kill it there."""
    remaining = int(rng.integers(1, 12))  # files to wait for
    seen: set[str] = set()
    while child.poll() is None:
        names = set(_partial(run))
        new = names - seen
        seen |= names
        remaining -= len(new)
        if new and remaining <= 0:
            time.sleep(rng.uniform(0, 0.0008))
            child.stop()
            if _partial(run):
                child.send(signal.SIGKILL)
                return
            child.send(signal.SIGCONT)  # the file was complete before it stopped: wait for the next
        time.sleep(0.0001)


def _partial(run: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(run) if entry.name.endswith(".part")]
    except OSError:
        return []


def _incomplete_files(run: Path) -> list[str]:
    """Incomplete files under their final names, of which there must be none at any moment."""
    problems = []
    try:
        if (run / "state.pt").exists():
            checkpoint.load_state(run / "state.pt")
        for name in KEPT:
            if (run / name).exists():
                checkpoint.load_stage(run / name)
    except Exception as error:
        problems.append(f"after a kill: {error}")
    return problems


def differences(one: Path, other: Path) -> list[str]:
    """The differences between two trainings, except times and folders."""
    different = [name for name in KEPT if not equal(_weights(one / name), _weights(other / name))]
    states = [checkpoint.load_state(run / "state.pt") for run in (one, other)]
    for state in states:
        state["settings"].pop("run_dir")
    different += [f"state.pt, {key}" for key in states[0] if not equal(states[0][key], states[1].get(key))]
    if _logged(one) != _logged(other):
        different.append("log.jsonl")
    return [f"differs from the training that nothing disturbed: {name}" for name in different]


def _weights(path: Path) -> tuple[Any, Any]:
    """The metadata of a file, which safetensors writes in any order, and its tensors."""
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping


def _logged(run: Path) -> list[dict[str, Any]]:
    """The lines of the log, without times."""
    import json

    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "steps_per_second", "data_share")} for line in lines]
