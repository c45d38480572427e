"""Train and measure every system on the same pairs, at a named budget, from clean speech to the table.

    python scripts/benchmark.py --budget smoke -o results/smoke
    python scripts/benchmark.py --budget cpu-hour --data DATA -o results/cpu-hour

DATA holds train.csv and dev.csv (manifests of clean speech, no speaker in both), pairs.csv (a manifest of pairs) and
noise/ (room sound). `smoke` needs none: it goes through every step with the sample recording, and its table means
nothing. A budget is the time for all systems' training together, shared evenly: what each makes of the same speech in
the same time. Steps follow from a few that are timed first. What is complete is skipped, what was stopped goes on.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twostage import audio, checkpoint
from twostage.cli import main as twostage
from twostage.config import RestorerRun, load_config, plain
from twostage.errors import ConfigError, TwoStageError
from twostage.files import replacing
from twostage.report import write_json

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
# what needs no training, then from small to large; `two-stage` trains its restorer, on the shipped vocoder
FREE = ("lowpass", "shift")
TRAINED = ("two-stage", "bilstm", "wave-unet", "dccrn", "dpcrn", "bsrnn", "seanet", "eben", "bwe")
SHARED = ("sensors", "sensor_weights", "gate_db", "speed", "eq_db")  # of restorer.yaml: the same pairs for all
WEIGHTS = "last.safetensors"  # not best, which was chosen on the speech that is scored


@dataclass(frozen=True)
class Budget:
    """Minutes of training for all systems together (0: ``steps`` each), and utterances that are scored."""

    minutes: float
    device: str
    limit: int
    steps: int = 0
    settings: tuple[str, ...] = ()


BUDGETS = {
    "smoke": Budget(0, "cpu", 1, 2, ("data.samples=16384", "data.batch=1", "valid.items=1", "valid.seconds=1")),
    "cpu-hour": Budget(60, "cpu", 40),
    "gpu-hour": Budget(60, "cuda", 116),
}
PROBE = 12  # steps that are timed; the first ones only warm up


@dataclass(frozen=True)
class Task:
    """Where things are, and what every training and evaluation is given."""

    budget: Budget
    data: Path
    out: Path
    systems: Sequence[str]
    settings: tuple[str, ...]

    def training(self, system: str, folder: Path, steps: int) -> list[str]:
        """The command that trains ``system``; its learning rate falls over the last third."""
        kind = ["train-restorer", "restorer"] if system == "two-stage" else ["train-enhancer", system]
        lists = [f"data.{side}=[{self.data / name}.csv]" for side, name in (("train", "train"), ("valid", "dev"))]
        length = [f"steps={steps}", f"optimizer.cooldown={max(1, steps // 3)}", "optimizer.decay=1.0"]
        often = [f"save={max(1, steps // 8)}", f"valid.every={max(1, steps // 2)}", f"report={max(1, steps // 20)}"]
        return [*kind, f"run={folder}", *lists, *self.shared(), *length, *often, "valid.show=0", *self.settings]

    def shared(self) -> list[str]:
        given = load_config(
            RestorerRun, ["restorer"], [f"data.{n}=[{__file__}]" for n in ("train", "valid")] + ["run=x"]
        )
        noise = [f"data.noise={self.data / 'noise'}"] if (self.data / "noise").is_dir() else []
        return [f"data.{name}={json.dumps(plain(given)['data'][name])}" for name in SHARED] + noise


def run(*arguments: object) -> None:
    command = [str(argument) for argument in arguments]
    print("twostage", *command, flush=True)
    code = twostage(command)
    if code:
        sys.exit(code)


def seconds_per_step(task: Task, system: str) -> float:
    """By the difference of two short trainings, which begin alike; what they made is not kept."""
    taken = []
    for steps in (2, 2 + PROBE):
        folder = task.out / "probe" / f"{system}-{steps}"
        begun = time.perf_counter()
        run(*task.training(system, folder, steps), "valid.items=1", "valid.seconds=0.5")
        taken.append(time.perf_counter() - begun)
    return max(1e-3, (taken[1] - taken[0]) / PROBE)


def plan(task: Task) -> dict[str, int]:
    """Steps of every trained system, kept in plan.json: whoever goes on must go on with the same."""
    path = task.out / "plan.json"
    known: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    trained = [system for system in task.systems if system not in FREE]
    for system in trained:
        if system not in known:
            share = task.budget.minutes * 60 / len(trained)
            known[system] = task.budget.steps or max(1, round(share / seconds_per_step(task, system)))
            write_json(path, known)
    return known


def evaluate(task: Task, system: str, weights: Path) -> None:
    """Score on every set; those that are complete say so by their summary."""
    model = [f"{system}={weights}"]
    if system == "two-stage":
        vocoder = task.out / "vocoder.safetensors"
        if not vocoder.exists():
            checkpoint.save(vocoder, checkpoint.load_stage("default", "vocoder"), provenance={"taken_from": "default"})
        model.append(str(vocoder))
    for name, given in sets(task).items():
        folder = task.out / name / system
        if not (folder / "summary.json").exists() or not (folder / "sounds").exists():
            run("evaluate", *given, "--model", *model, "-o", folder, "--device", task.budget.device)


def sets(task: Task) -> dict[str, list[object]]:
    dev = ["--clean", task.data / "dev.csv", "--limit", task.budget.limit]
    return {
        "throat": [*dev, "--simulate", "throat"],
        "eben": [*dev, "--simulate", "eben"],
        "pairs": ["--pairs", task.data / "pairs.csv"],
    }


def sample_data(folder: Path) -> Path:
    """Manifests of the sample recording, as training, held-out speech and pair alike."""
    clean, throat = SAMPLES / "clean.flac", SAMPLES / "throat.flac"
    seconds = audio.info(clean).frames / audio.info(clean).sample_rate
    alone = f"path,speaker,corpus,seconds\n{clean},sample,sample,{seconds}\n"
    pair = f"bone,air,speaker,sensor,seconds\n{throat},{clean},sample,throat,{seconds}\n"
    for name, text in (("train", alone), ("dev", alone), ("pairs", pair)):
        with replacing(folder / f"{name}.csv") as partial:
            partial.write_text(text, encoding="utf-8")
    return folder


def benchmark(task: Task, title: str) -> None:
    steps = plan(task)
    for system in task.systems:
        folder = task.out / "runs" / system
        run(*task.training(system, folder, steps.get(system, 1)), "--resume")
        evaluate(task, system, folder / WEIGHTS)
    for name in sets(task):
        folders = [task.out / name / system for system in task.systems]
        run("compare", *folders, "-o", task.out / "comparison" / name, "--title", f"{title}: {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", required=True, choices=BUDGETS)
    parser.add_argument("--data", type=Path, help="folder of the speech; not needed for smoke")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of trainings, scores and tables")
    parser.add_argument("--systems", default=",".join([*FREE, *TRAINED]), metavar="NAME,...", help="some of them alone")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of every training")
    options = parser.parse_args()
    budget: Any = BUDGETS[options.budget]
    if not options.data and options.budget != "smoke":
        raise ConfigError(f"--budget {options.budget} needs --data")
    systems = options.systems.split(",")
    unknown = sorted(set(systems) - {*FREE, *TRAINED, "seanet-fusion"})
    if unknown:
        raise ConfigError(f"--systems: no system {', '.join(unknown)}; there are {', '.join([*FREE, *TRAINED])}")
    data = options.data or sample_data(options.out / "data")
    settings = (*budget.settings, f"device={budget.device}", *options.settings)
    benchmark(Task(budget, data.absolute(), options.out, systems, settings), options.budget)


if __name__ == "__main__":
    try:
        main()
    except TwoStageError as error:
        sys.exit(f"benchmark: error: {error}")
