"""Trainings that are killed at any moment, again and again, and must end bit by bit as one that was not."""

import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from torture.assets import Assets, training
from torture.harness import Child, Limits, Place, Session, complaints, noted
from twostage.models import checkpoint

ADVERSARIAL = ("weights.adv=1", "weights.fm=1", "adversary.mel_discriminator.channels=[4,8]")
STAGES: dict[str, tuple[str, ...]] = {"train-restorer": ADVERSARIAL, "train-vocoder": ()}
KEPT = ("best.safetensors", "last.safetensors")
MOST = 40  # kills of one training, after which it may come to its end
LIMITS = Limits(120, addresses=0)


def kills(
    session: Session, assets: Assets, count: int = 110, stages: Sequence[str] = tuple(STAGES), most: int = MOST
) -> None:
    """``count`` kills or a few more, ``most`` a training, over ``stages`` in turn: half of them at a write."""
    wholes = {stage: _whole(session, assets, stage) for stage in stages}
    done = number = 0
    while done < count:
        stage = stages[number % len(stages)]
        rng = np.random.default_rng([session.seed, 3, number])
        with session.case(f"{number:02}", stage) as (place, row):
            whole, seconds = wholes[stage]
            words = training(assets.corpus, stage, "run", *STAGES[stage])
            killed, halves = _killed_to_its_end(place, row, words, rng, seconds, most)
            row.figures = {"kills": killed, "while a file was being written": halves}
            if not row.problems:
                row.problems += differences(whole, place.work / "run")
            done += killed
        number += 1
    for stage in stages:
        rows = [row for row in session.rows if row.kind == stage]
        total, halves = (sum(row.figures[name] for row in rows) for name in ("kills", "while a file was being written"))
        session.note(
            f"{stage}: {len(rows)} trainings, killed {total} times, {halves} of these while a file was being written"
        )
    for whole, _ in wholes.values():
        shutil.rmtree(whole.parent.parent)


def _whole(session: Session, assets: Assets, stage: str) -> tuple[Path, float]:
    """The directory of a training that nothing disturbs, and how long it takes."""
    place = session.place(f"whole-{stage}")
    outcome = place.run(training(assets.corpus, stage, "run", *STAGES[stage]), LIMITS)
    if outcome.code:
        raise RuntimeError(outcome.err)
    return place.work / "run", outcome.seconds


def _killed_to_its_end(
    place: Place, row: Any, words: list[str], rng: np.random.Generator, seconds: float, most: int
) -> tuple[int, int]:
    """Kill a training and resume it until it comes to its end; kills, and those that left a file half-written."""
    killed = halves = 0
    run = place.work / "run"
    while killed <= most:
        child = place.start([*words, *["--resume"] * (run / "config.yaml").exists()], LIMITS)
        if killed < most:
            writing = bool(rng.random() < 0.5)
            (_while_writing if writing else _anywhere)(child, run, rng, seconds)
        outcome = child.wait()
        if outcome.hung or outcome.code != -signal.SIGKILL:
            noted(row, outcome, complaints(outcome, codes=(0,)))
            return killed, halves
        killed += 1
        halves += any(path.name.endswith(".part") for path in run.rglob("*")) if run.exists() else 0
        row.seconds += outcome.seconds
        row.problems += _not_whole(run)
    raise AssertionError  # the last turn of the loop has no kill in it


def _anywhere(child: Child, run: Path, rng: np.random.Generator, seconds: float) -> None:
    until = rng.uniform(0, 1.1 * seconds)
    while child.poll() is None and child.elapsed < until:
        time.sleep(0.001)
    child.send(signal.SIGKILL)


def _while_writing(child: Child, run: Path, rng: np.random.Generator, seconds: float) -> None:
    """Wait for one of the files that are being written, and kill within a millisecond or so."""
    left = int(rng.integers(1, 12))  # of those seen
    seen: set[str] = set()
    while child.poll() is None:
        names = set(_partial(run))
        new = names - seen
        seen |= names
        left -= len(new)
        if new and left <= 0:
            time.sleep(rng.uniform(0, 0.0008))
            child.send(signal.SIGKILL)
            return
        time.sleep(0.0001)


def _partial(run: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(run) if entry.name.endswith(".part")]
    except OSError:
        return []


def _not_whole(run: Path) -> list[str]:
    """Files under their names that are not whole: there must be none at any moment."""
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
    """In what two trainings ended differently; the time and where they are aside, nothing may be."""
    actual = [name for name in KEPT if not _same(_weights(one / name), _weights(other / name))]
    states = [checkpoint.load_state(run / "state.pt") for run in (one, other)]
    for state in states:
        state["settings"].pop("run_dir")
    actual += [f"state.pt, {key}" for key in states[0] if not _same(states[0][key], states[1].get(key))]
    if _logged(one) != _logged(other):
        actual.append("log.jsonl")
    return [f"differs from the training that nothing disturbed: {name}" for name in actual]


def _weights(path: Path) -> tuple[Any, Any]:
    """What a file says of itself, and its tensors; safetensors writes the former in any order."""
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def _logged(run: Path) -> list[dict[str, Any]]:
    """Lines of the log, without what is of the clock."""
    import json

    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "steps_per_second", "data_share")} for line in lines]
