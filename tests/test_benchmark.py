"""Claims about scripts/benchmark.py: from speech to the tables, on where it stopped, and what is wrong in a line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from twostage import audio, checkpoint
from twostage.config import EnhancerRun, load_config
from twostage.errors import ConfigError, DataError
from twostage.report import read_rows

RATE = 16000
SYSTEMS = ("lowpass", "wave-unet")
SMALL = ("model.levels=3", "model.channels=4")


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("benchmark")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, speech: Callable[..., np.ndarray]) -> Path:
    """A second each of speech to train with and to score, which is a pair as well."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("train", "dev")):
        audio.write(folder / f"{name}.wav", speech(RATE, seed=seed), RATE)
        (folder / f"{name}.csv").write_text(f"path,speaker,seconds\n{name}.wav,{name},1.0\n")
    (folder / "pairs.csv").write_text("bone,air,speaker,seconds\ntrain.wav,dev.wav,p,1.0\n")
    return folder


@pytest.fixture
def task(script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(script.SMALL, "wave-unet", SMALL)
    return script.Task("smoke", data, tmp_path / "out", ("seed=7",))


def times(out: Path) -> dict[Path, int]:
    kept = [path for path in out.rglob("*") if path.is_file() and "comparison" not in path.parts]
    return {path: path.stat().st_mtime_ns for path in kept}


def test_from_speech_to_the_tables_and_a_second_call_has_nothing_to_do(script, task, capsys):
    script.benchmark(task, SYSTEMS)
    for name in ("throat", "eben", "pairs"):
        table = (task.out / "comparison" / name / "table.md").read_text()
        rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| wave-unet")]
        scores = [float(cell.split()[0]) for row in rows for cell in row[1:]]
        assert len(scores) == 17
        assert np.isfinite(scores).all()
    plan = json.loads((task.out / "plan.json").read_text())
    assert plan["systems"].keys() == {"wave-unet"}
    assert plan["systems"]["wave-unet"]["steps"] == 2
    assert plan["systems"]["wave-unet"]["seconds"] > 0
    weights = task.out / "runs" / "wave-unet" / "last.safetensors"
    assert checkpoint.read_header(weights).provenance["steps"] == 2
    assert checkpoint.read_header(weights).config["levels"] == 3
    # what a system costs is measured once
    costs = [json.loads((task.out / name / "wave-unet" / "summary.json").read_text())["costs"] for name in task.sets()]
    assert costs[0] == costs[1] == costs[2]

    before = times(task.out)
    capsys.readouterr()
    script.benchmark(task, SYSTEMS)
    assert times(task.out) == before
    done = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("twostage ")]
    assert done == ["compare"] * 3


class Killed(Exception):
    pass


def test_what_was_stopped_goes_on_where_it_was(script, task, monkeypatch):
    """It dies before every command that it runs, and once in the middle of a training; the rest is as it would be."""
    asked: list[str] = []
    really = script.twostage

    def dying(command):
        key = " ".join(command[:2]) + command[command.index("-o") + 1] if "-o" in command else command[0]
        if key not in asked:
            asked.append(key)
            if command[0] == "train-enhancer" and "wave-unet" in command:
                really([*command, "steps=1"])
            raise Killed
        return really(command)

    monkeypatch.setattr(script, "twostage", dying)
    deaths = 0
    while True:
        try:
            script.benchmark(task, SYSTEMS)
            break
        except Killed:
            deaths += 1
    assert deaths == len(asked) == 1 + 6 + 3  # of two trainings, one needs nothing
    assert checkpoint.read_header(task.out / "runs" / "wave-unet" / "last.safetensors").provenance["steps"] == 2
    log = (task.out / "runs" / "wave-unet" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log if '"train"' in line] == [1, 2]
    assert len(read_rows(task.out / "pairs" / "wave-unet" / "utterances.csv")) == 2
