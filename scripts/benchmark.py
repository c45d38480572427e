"""Train and measure every system on the same pairs at a named budget, and write tables of the results.

    python scripts/benchmark.py --budget smoke -o results/smoke
    python scripts/benchmark.py --budget cpu-40-minutes --data DATA -o results/all --systems lowpass,two-stage,dccrn
    python scripts/benchmark.py -o results/all --report docs

DATA contains train.csv and dev.csv (manifests of clean speech without common speakers), pairs.csv (a manifest of
pairs) and noise/ (ambient noise). `smoke` needs none of it: it runs every step with the sample recording, and its
tables mean nothing. Settings as key=value are passed to every training.

A budget is the time for the training of each system, so that they can be trained in several calls. cpu-5-minutes and
cpu-40-minutes count processor time of one core, not wall-clock time. The number of steps follows from a few steps that
are timed first and do not count. All systems have the same speech, simulated sensors, augmentation and training time;
the number of steps, and so of segments, differs. Each keeps the recipe of its YAML file, except that lengths in steps
are scaled to the training, and except for the settings below that suit a budget. An adversary starts at the same
fraction of the steps; the learning rate rises over the first twentieth and falls over the last third.

Complete parts are skipped, and stopped ones continue. --report writes the results in OUT into a folder: COMPARISON.md
with the budget and the mean scores on all test sets, and comparison/SET.md with the tables and pictures of each test
set. Text outside the marked part of an existing page is kept.
"""

import argparse
import json
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from twostage.audio import sound_files
from twostage.cli import step
from twostage.evaluation.report import CLEAN, write_json, write_text
from twostage.evaluation.results import SUMMARY
from twostage.models import checkpoint
from twostage.models.precision import computes_bfloat16
from twostage.training.config import EnhancerRun, RestorerRun, RunConfig, load_config, plain
from twostage.training.monitor import LAST
from twostage.utils.errors import ConfigError, DataError, TwoStageError
from twostage.utils.files import replacing

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
FREE = ("lowpass", "shift")  # need no training
# `two-stage` trains its restorer, in front of the shipped vocoder
TRAINED = ("two-stage", "bilstm", "wave-unet", "dccrn", "dpcrn", "bsrnn", "seanet", "eben", "bwe")
FUSION = ("two-stage-fusion", "seanet-fusion")  # models that also take a second microphone, in the air
SYSTEMS = (*FREE, *TRAINED, *FUSION)
FILES = {
    "two-stage": ["restorer"],
    "two-stage-fusion": ["restorer", "fusion"],
    "seanet-fusion": ["seanet", "seanet-fusion"],
}
SHARED = (
    "sensors",
    "sensor_weights",
    "gate_db",
    "speed",
    "eq_db",
)  # settings of restorer.yaml that all systems share, so that they have the same pairs
WEIGHTS = LAST  # not the best, which was selected on the speech that is scored
PLAN, DONE = "plan.json", "complete"
SETS = {  # test set -> heading of its page
    "throat": "Held-out speech through a simulated throat microphone",
    "eben": "Held-out speech through a simulated in-ear microphone (EBEN's)",
    "pairs": "Real pairs of a throat microphone",
    "fusion": "Held-out speech through a simulated throat microphone, with a noisy air microphone",
}
SUMMARIZED = ("ESTOI", "PESQ-WB", "MOS")  # columns of the tables whose means are on the first page
PICTURES = {
    "cost": "ESTOI of each system against its cost",
    "bands": "Error of the band levels by frequency",
    "spectrograms": "Spectrograms of one utterance",
}
BEGIN, END = "<!-- benchmark.py writes from here -->", "<!-- benchmark.py writes to here -->"
LARGEST = 150_000  # maximal size of a picture of the report in bytes
PROBE = 12  # number of steps that are timed

# Steps of at most half a second on one core: in so short a training, many small steps learn more than few large ones.
SMALL = {
    "two-stage": ("data.batch_size=4", "data.segment_length=24576"),
    "two-stage-fusion": ("data.batch_size=4", "data.segment_length=24576"),
    "bilstm": ("data.batch_size=4", "data.segment_length=32768"),
    "dccrn": ("data.batch_size=1",),
    "wave-unet": ("optimizer.grad_clip=0.1",),  # a higher learning rate saturates it: 3e-4 does after 1500 steps
    "bwe": ("model.channels=64", "data.segment_length=8192", "adversary.discriminator.width=0.125"),
    "seanet": ("model.channels=16", "adversary.discriminator.width=0.125", "optimizer.learning_rate=3e-4"),
    "seanet-fusion": ("model.channels=16", "adversary.discriminator.width=0.125", "optimizer.learning_rate=3e-4"),
    "eben": ("adversary.discriminator.width=0.125",),
}
ON_A_CORE = ("threads=1", "data.batch_size=2", "data.segment_length=16384", "optimizer.ema_decay=0.99")


@dataclass(frozen=True)
class Budget:
    """Minutes of training for each system (0: ``steps``), and the number of utterances that are scored.

    ``settings`` are those of every training, ``own`` those of single systems, and ``last`` override both.
    """

    minutes: float
    device: str
    limit: int
    pictures: int = 3
    steps: int = 0
    settings: tuple[str, ...] = ()
    own: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    last: tuple[str, ...] = ()


BUDGETS = {
    "smoke": Budget(
        0,
        "cpu",
        1,
        pictures=1,
        steps=2,
        settings=ON_A_CORE,
        own=SMALL,
        last=("data.segment_length=8192", "data.batch_size=1"),
    ),
    "cpu-5-minutes": Budget(5, "cpu", 24, settings=ON_A_CORE, own=SMALL),
    "cpu-40-minutes": Budget(40, "cpu", 24, settings=ON_A_CORE, own=SMALL),
    "gpu-5-minutes": Budget(5, "cuda", 116),
}


@dataclass(frozen=True)
class Task:
    """The budget, folders and settings of all trainings and evaluations."""

    name: str
    data: Path
    out: Path
    settings: tuple[str, ...] = ()

    @property
    def budget(self) -> Budget:
        return BUDGETS[self.name]

    def lists(self) -> list[str]:
        noise = [f"data.noise={self.data / 'noise'}"] if (self.data / "noise").is_dir() else []
        return [f"data.train=[{self.data / 'train.csv'}]", f"data.valid=[{self.data / 'dev.csv'}]", *noise]

    def recipe(self, system: str) -> RunConfig:
        """The settings in the YAML file of ``system``."""
        kind = RestorerRun if of_two_stages(system) else EnhancerRun
        return load_config(kind, files(system), [*self.lists(), "run_dir=."])

    def training(self, system: str, folder: Path, steps: int) -> list[str]:
        """The command that trains ``system`` for ``steps``."""
        command = "train-restorer" if of_two_stages(system) else "train-enhancer"
        return [
            command,
            *files(system),
            f"run_dir={folder}",
            *self.lists(),
            *self.common(),
            *self.lengths(system, steps),
        ]

    def common(self) -> list[str]:
        """Settings of all trainings: the same pairs, and a quick validation."""
        pairs = plain(self.recipe("two-stage"))["data"]
        quiet = ["valid.items=2", "valid.seconds=2", "valid.metrics=[mel_l1]", "valid.best=mel_l1"]
        return [*(f"data.{name}={json.dumps(pairs[name])}" for name in SHARED), *quiet, f"device={self.budget.device}"]

    def lengths(self, system: str, steps: int) -> list[str]:
        """The lengths in steps of the YAML file, scaled to ``steps``, and the system's own settings."""
        recipe: Any = self.recipe(system)
        rise = [f"optimizer.warmup={steps // 20}"]
        fall = [f"optimizer.cooldown={max(1, steps // 3)}", "optimizer.decay=1.0"]
        join = [f"adversary.start={recipe.adversary.start * steps // recipe.steps}"]
        often = [
            f"save_every={max(1, steps // 8)}",
            f"valid.every={max(1, steps // 2)}",
            f"log_every={max(1, steps // 20)}",
        ]
        return [f"steps={steps}", *rise, *fall, *join, *often, *self.own(system), *self.settings]

    def own(self, system: str) -> list[str]:
        """Settings that suit the budget, with bfloat16 on processors that support it."""
        budget = self.budget
        halves = ("precision=bfloat16",) * (budget.device == "cpu" and computes_bfloat16("cpu"))
        settings = (*budget.settings, *halves, *budget.own.get(system, ()), *budget.last)
        return [f"{name}={value}" for name, value in dict(text.split("=", 1) for text in settings).items()]

    def sets(self, system: str) -> dict[str, list[object]]:
        """The sets that ``system`` is scored on: held-out speech through two simulated sensors, and the real pairs.

        Fusion systems, and for comparison the same systems with one microphone, are scored on the set with both.
        """
        dev = ["--clean", self.data / "dev.csv", "--limit", self.budget.limit]
        noise = ["--noise", self.data / "noise"] if (self.data / "noise").is_dir() else []
        both: dict[str, list[object]] = {"fusion": [*dev, "--simulate", "throat", "--air-snr", 0, *noise]}
        if system in FUSION:
            return both
        return {
            "throat": [*dev, "--simulate", "throat"],
            "eben": [*dev, "--simulate", "eben"],
            "pairs": ["--pairs", self.data / "pairs.csv"],
            **(both if f"{system}-fusion" in FUSION else {}),
        }


def files(system: str) -> list[str]:
    """The configuration files of a system, of which most have its name."""
    return FILES.get(system, [system])


def of_two_stages(system: str) -> bool:
    return system.startswith("two-stage")


def timed(task: Task, *arguments: object) -> float:
    """Run a command; return its seconds of processor time of all threads, or of wall-clock time on an accelerator."""
    clock = time.process_time if task.budget.device == "cpu" else time.perf_counter
    started = clock()
    step(*arguments)
    return clock() - started


class Plan:
    """Steps and seconds of the trained systems, stored in plan.json, so that a continued benchmark uses the same."""

    def __init__(self, task: Task) -> None:
        self.task, self.path = task, task.out / PLAN
        current = {"budget": task.name, "settings": list(task.settings), "machine": machine(task.budget.device)}
        self.values: dict[str, Any] = read_plan(task.out) if self.path.exists() else {**current, "systems": {}}
        for key, value in current.items():
            if self.values[key] != value:
                raise ConfigError(f"{self.path}: {key} is {self.values[key]}, not {value}; name another folder")

    def steps(self, system: str) -> int:
        """The number of steps of ``system``, computed once from the budget and the time of a step."""
        if system in FREE:
            return 1
        systems, budget = self.values["systems"], self.task.budget
        if system not in systems:
            seconds = budget.minutes * 60
            steps = budget.steps or max(1, round(seconds / seconds_per_step(self.task, system)))
            systems[system] = {"steps": steps, "seconds": None, "own": self.task.own(system)}
            write_json(self.path, self.values)
        return int(systems[system]["steps"])

    def took(self, system: str, seconds: float) -> None:
        if system not in FREE:
            self.values["systems"][system]["seconds"] = round(seconds, 1)
            write_json(self.path, self.values)


def read_plan(out: Path) -> dict[str, Any]:
    try:
        plan = json.loads((out / PLAN).read_text(encoding="utf-8"))
        return {name: plan[name] for name in ("budget", "settings", "systems", "machine")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{out / PLAN}: not the plan of a benchmark ({error})") from None


def machine(device: str) -> str:
    """The processor and the version of torch."""
    processors, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if processors.exists():
        lines = processors.read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{torch.cuda.get_device_name() if device == 'cuda' else f'one core of {name}'}, torch {torch.__version__}"


def seconds_per_step(task: Task, system: str) -> float:
    """The difference of two short trainings, after one that loads what both need; their files are deleted."""
    taken = []
    for steps in (1, 2, 2 + PROBE):
        folder = task.out / "probe" / f"{system}-{steps}"
        shutil.rmtree(folder, ignore_errors=True)
        taken.append(timed(task, *task.training(system, folder, steps)))
    shutil.rmtree(task.out / "probe")
    return max(1e-3, (taken[-1] - taken[-2]) / PROBE)


def train(task: Task, plan: Plan, system: str) -> Path:
    """The weights of ``system``, which is trained if they do not exist."""
    steps, folder = plan.steps(system), task.out / "runs" / system
    weights = folder / WEIGHTS
    done = steps_trained(weights)
    if done is None or (done < steps and system not in FREE):
        seconds = timed(task, *task.training(system, folder, steps), *["--resume"] * (folder / "config.yaml").exists())
        plan.took(system, seconds * steps / max(1, steps - (done or 0)))  # the time without an interruption
    return weights


def steps_trained(weights: Path) -> int | None:
    """The number of training steps of ``weights``; None without weights."""
    return int(checkpoint.read_header(weights).provenance["steps"]) if weights.exists() else None


def evaluate(task: Task, system: str, weights: Path) -> None:
    """Score on every set that is not marked complete. Costs are measured once."""
    model: list[object] = [f"{system}={weights}"]
    if of_two_stages(system):
        vocoder = task.out / "vocoder.safetensors"
        if not vocoder.exists():
            checkpoint.save(vocoder, checkpoint.load_stage("default", "vocoder"), provenance={"taken_from": "default"})
        model.append(vocoder)
    costs: list[object] = []
    for name, arguments in task.sets(system).items():
        folder = task.out / name / system
        if not (folder / DONE).exists():
            shown = ["--pictures", task.budget.pictures, "--device", task.budget.device]
            step("evaluate", *arguments, "--model", *model, "-o", folder, *shown, *costs)
            (folder / DONE).touch()
        costs = ["--costs", folder / SUMMARY]


def compare(task: Task) -> None:
    """Write a table and pictures of each set, with all complete systems."""
    for name in SETS:
        folders = [task.out / name / system for system in SYSTEMS]
        done = [folder for folder in folders if (folder / DONE).exists()]
        if done:
            step("compare", *done, "-o", task.out / "comparison" / name, "--title", f"{task.name}: {name}")


def sample_data(folder: Path) -> Path:
    """Manifests of two seconds of the sample recording as training speech, held-out speech and pair."""
    for name in (CLEAN, "throat"):
        sound, rate = sound_files.read(SAMPLES / f"{name}.flac")
        sound_files.write(folder / f"{name}.flac", sound[:, : 2 * rate], rate, overwrite=True)
    alone = "path,speaker,corpus,seconds\nclean.flac,sample,sample,2.0\n"
    pair = "bone,air,speaker,sensor,seconds\nthroat.flac,clean.flac,sample,throat,2.0\n"
    for name, text in (("train", alone), ("dev", alone), ("pairs", pair)):
        write_text(folder / f"{name}.csv", text)
    return folder


def benchmark(task: Task, systems: Sequence[str]) -> None:
    if task.budget.device == "cpu":
        torch.set_num_threads(1)  # for evaluation too, whatever trainings have set
    plan = Plan(task)
    for system in systems:
        evaluate(task, system, train(task, plan, system))
    compare(task)


def report(out: Path, folder: Path) -> None:
    """Write COMPARISON.md, and a page in comparison/ for each test set, from the results in ``out``."""
    plan = read_plan(out)
    tables = {name: out / "comparison" / name / "table.md" for name in SETS}
    texts = {name: path.read_text(encoding="utf-8") for name, path in tables.items() if path.exists()}
    if not texts:
        raise DataError(f"{out}/comparison: no tables; run the benchmark first")
    pages = {folder / "COMPARISON.md": ("Comparison", overview(plan, texts))}
    for name, text in texts.items():
        pages[folder / "comparison" / f"{name}.md"] = (SETS[name], set_page(out, name, text))
    # all texts before the first file is written: a page without the marks leaves the other pages unchanged
    written = {path: between_marks(path, heading, lines) for path, (heading, lines) in pages.items()}
    for name in texts:
        for kind, picture in pictures(out, name).items():
            write_small_picture(picture, folder / "comparison" / f"{name}-{kind}.png")
    for path, text in written.items():
        write_text(path, text)
        print(path)


def between_marks(path: Path, heading: str, lines: Sequence[str]) -> str:
    """The page at ``path`` with ``lines`` between its marks, or a new page."""
    text = path.read_text(encoding="utf-8") if path.exists() else f"# {heading}\n\n{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{path}: lacks the lines {BEGIN} and {END}, between which the report goes")
    return "\n".join([before + begin, "", *lines, "", end + after])


def overview(plan: Mapping[str, Any], texts: Mapping[str, str]) -> list[str]:
    """Lines of the first page: the mean scores on every test set, then the budget of the systems."""
    lines = ["## Mean scores", "", "The pages of the test sets have all scores, with intervals and pictures:", ""]
    lines += [f"- `{name}`: [{SETS[name]}](comparison/{name}.md)" for name in texts]
    for metric in SUMMARIZED:
        columns = {name: means(text, metric) for name, text in texts.items()}
        lines += ["", f"### {metric}", "", f"| system | {' | '.join(texts)} |", f"| --- |{' ---: |' * len(texts)}"]
        for system in dict.fromkeys(system for column in columns.values() for system in column):
            lines.append(f"| {system} | {' | '.join(column.get(system, '') for column in columns.values())} |")
    return [*lines, "", f"## Budget: {plan['budget']}", "", *budget_section(plan)]


def means(text: str, metric: str) -> dict[str, str]:
    """The means in the column ``metric`` of the first table in ``text``, by system; without those that have none."""
    lines = text.splitlines()
    begin = next(place for place, line in enumerate(lines) if line.startswith("| system |"))
    table = list(takewhile(lambda line: line.startswith("|"), lines[begin:]))
    heads, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    places = [place for place, head in enumerate(heads) if head.rpartition(" ")[0] == metric]
    return {row[0]: row[place].split()[0] for row in rows[1:] for place in places if row[place] != "-"}


def set_page(out: Path, name: str, text: str) -> list[str]:
    """The page of a test set: its tables and pictures, below the heading."""
    lines = ["How the systems were trained and how to read the tables: [Comparison](../COMPARISON.md).", ""]
    lines += text.strip().splitlines()[2:]  # its heading is that of the folder
    for kind in pictures(out, name):
        lines += ["", f"![{PICTURES[kind]}]({name}-{kind}.png)", "", f"*{PICTURES[kind]}.*"]
    return lines


def pictures(out: Path, name: str) -> dict[str, Path]:
    """The pictures of a test set that were drawn, by kind; one utterance stands for all."""
    source = out / "comparison" / name
    first = next(iter(sorted((source / "spectrograms").glob("*.png"))), source / "spectrograms.png")
    paths = {"cost": source / "cost.png", "bands": source / "bands.png", "spectrograms": first}
    return {kind: path for kind, path in paths.items() if path.exists()}


def budget_section(plan: Mapping[str, Any]) -> list[str]:
    """The budget, and the steps and settings of every system, as Markdown."""
    budget = BUDGETS[plan["budget"]]
    share = f"{budget.minutes:g} minutes" if budget.minutes else "a few steps"
    clock = "processor" if budget.device == "cpu" else "wall-clock"
    lines = [
        f"The budget of each training was {share}, on {plan['machine']}. Seconds are {clock} time.",
        "",
        "Speech, simulated sensors, augmentation and that time are the same for all systems. The number of steps, and",
        "hence the amount of speech, is not. The time does not include the training of the vocoder that follows the",
        "two-stage restorers, which was trained before, on clean speech.",
    ]
    if plan["settings"]:
        lines += ["", f"Settings of all: `{' '.join(plan['settings'])}`."]
    lines += ["", "| system | steps | seconds | its settings at this budget |", "| --- | ---: | ---: | --- |"]
    for system in (*TRAINED, *FUSION):
        if system in plan["systems"]:
            entry = plan["systems"][system]
            seconds = "-" if entry["seconds"] is None else f"{entry['seconds']:.0f}"
            lines.append(f"| {system} | {entry['steps']} | {seconds} | {' '.join(entry['own'])} |")
    return lines


def write_small_picture(source: Path, target: Path) -> None:
    """Copy a picture; if it is larger than LARGEST bytes, reduce it to 64 colors and then its size."""
    from PIL import Image

    data = source.read_bytes()
    picture = Image.open(source).convert("RGB")
    if len(data) > LARGEST:
        data = _palette(picture)
    while len(data) > LARGEST:
        scale = 0.95 * (LARGEST / len(data)) ** 0.5
        size = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        data = _palette(picture)
    with replacing(target) as partial:
        partial.write_bytes(data)


def _palette(picture: Any) -> bytes:
    file = BytesIO()
    picture.quantize(64).save(file, "PNG", optimize=True)
    return file.getvalue()


def check_setting(text: str) -> None:
    name, equals, _ = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"{text}: not key=value")
    if name in ("run_dir", "steps", "device", "data.train", "data.valid", "data.noise"):
        raise ConfigError(f"{text}: is set by the budget")


def check_data(folder: Path) -> None:
    for name in ("train", "dev", "pairs"):
        if not (folder / f"{name}.csv").is_file():
            raise DataError(f"{folder / name}.csv: no such file")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=BUDGETS)
    parser.add_argument("--data", type=Path, metavar="DATA", help="folder of the speech; not needed for smoke")
    parser.add_argument("-o", "--out", type=Path, metavar="OUT", required=True, help="trainings, scores and tables")
    parser.add_argument("--systems", default=",".join(SYSTEMS), metavar="NAME,...", help="only these systems")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write DIR/COMPARISON.md and DIR/comparison/ from the results in OUT"
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of every training")
    options = parser.parse_args()
    if options.report:
        report(options.out, options.report)
        return
    if not options.budget:
        raise ConfigError("give --budget, or --report")
    systems = options.systems.split(",")
    unknown = sorted(set(systems) - set(SYSTEMS))
    if unknown:
        raise ConfigError(f"--systems: no system {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    for text in options.settings:
        check_setting(text)
    if options.data:
        check_data(options.data)
    elif options.budget != "smoke":
        raise ConfigError(f"--budget {options.budget} needs --data")
    data = options.data or sample_data(options.out / "data")
    benchmark(Task(options.budget, data.absolute(), options.out, tuple(options.settings)), systems)


if __name__ == "__main__":
    try:
        main()
    except TwoStageError as error:
        sys.exit(f"benchmark: error: {error}")
