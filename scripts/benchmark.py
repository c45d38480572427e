"""Train and measure every system on the same pairs, at a named budget, from clean speech to the tables.

    python scripts/benchmark.py --budget smoke -o results/smoke
    python scripts/benchmark.py --budget cpu-hour --data DATA -o results/cpu-hour --systems lowpass,two-stage,dccrn
    python scripts/benchmark.py -o results/cpu-hour --report docs

DATA holds train.csv and dev.csv (manifests of clean speech, no speaker in both), pairs.csv (a manifest of pairs) and
noise/ (room sound). `smoke` needs none: it goes through every step with the sample recording, and its tables mean
nothing. Settings as key=value go to every training.

A budget is the time for the training of all systems together. Each has an even share of it, whichever are chosen, so
that they can be trained in several calls; cpu-hour and cpu-half-hour count the time of one core, in whatever thread,
and not the wall clock. Steps follow from a few that are timed first, which is not counted. What is equal: speech,
simulated sensors, augmentation, and that time. What is not: steps, and with them how many segments. Each
keeps its YAML's recipe but for lengths in steps, which shrink with the training, and for the settings below that suit a
budget. An adversary joins where it did, as a share of the steps; the learning rate rises over the first twentieth and
falls over the last third.

What is complete is skipped, what was stopped goes on. --report writes what OUT holds into a folder: COMPARISON.md with
the budget and the mean scores on all test sets, and comparison/SET.md with the tables and pictures of each test set.
Text outside the marked part of a page that exists is kept.
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
from twostage.cli import main as twostage
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
# a budget is shared by all of these; `two-stage` trains its restorer, in front of the shipped vocoder
TRAINED = ("two-stage", "bilstm", "wave-unet", "dccrn", "dpcrn", "bsrnn", "seanet", "eben", "bwe")
FUSION = ("two-stage-fusion", "seanet-fusion")  # take a second microphone, in the air, as well
SYSTEMS = (*FREE, *TRAINED, *FUSION)
FILES = {
    "two-stage": ["restorer"],
    "two-stage-fusion": ["restorer", "fusion"],
    "seanet-fusion": ["seanet", "seanet-fusion"],
}
SHARED = ("sensors", "sensor_weights", "gate_db", "speed", "eq_db")  # of restorer.yaml: the same pairs for all
WEIGHTS = LAST  # not best, which was chosen on the speech that is scored
PLAN, DONE = "plan.json", "complete"
SETS = {  # what is scored, and the heading of its page
    "throat": "Held-out speech through a simulated throat microphone",
    "eben": "Held-out speech through a simulated in-ear microphone (EBEN's)",
    "pairs": "Real pairs of a throat microphone",
    "fusion": "Held-out speech through a simulated throat microphone, with a noisy air microphone",
}
SUMMARIZED = ("ESTOI", "PESQ-WB")  # columns of the tables whose means stand on the first page
PICTURES = {
    "cost": "ESTOI of each system against its cost",
    "bands": "Error of the band levels by frequency",
    "spectrograms": "Spectrograms of one utterance",
}
BEGIN, END = "<!-- benchmark.py writes from here -->", "<!-- benchmark.py writes to here -->"
LARGEST = 150_000  # bytes of a picture of the report
PROBE = 12  # steps that are timed

# Steps that take one core half a second or less: so short a training learns more from many small than from few large.
SMALL = {
    "two-stage": ("data.batch_size=4", "data.segment_length=24576"),
    "two-stage-fusion": ("data.batch_size=4", "data.segment_length=24576"),
    "bilstm": ("data.batch_size=4", "data.segment_length=32768"),
    "dccrn": ("data.batch_size=1",),
    "wave-unet": ("optimizer.learning_rate=3e-4", "optimizer.grad_clip=1.0"),  # 1e-3 saturates it
    "bwe": ("model.channels=64", "data.segment_length=8192", "adversary.discriminator.width=0.125"),
    "seanet": ("model.channels=16", "adversary.discriminator.width=0.125", "optimizer.learning_rate=3e-4"),
    "seanet-fusion": ("model.channels=16", "adversary.discriminator.width=0.125", "optimizer.learning_rate=3e-4"),
    "eben": ("adversary.discriminator.width=0.125",),
}
ON_A_CORE = ("threads=1", "data.batch_size=2", "data.segment_length=16384", "optimizer.ema_decay=0.99")


@dataclass(frozen=True)
class Budget:
    """Minutes of training for all systems together (0: ``steps`` each) and utterances that are scored.

    ``settings`` of every training, ``own`` of single systems, and ``last``, which those do not change.
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
    "smoke": Budget(0, "cpu", 1, 1, 2, ON_A_CORE, SMALL, ("data.segment_length=8192", "data.batch_size=1")),
    "cpu-half-hour": Budget(30, "cpu", 24, 3, 0, ON_A_CORE, SMALL),
    "cpu-hour": Budget(60, "cpu", 24, 3, 0, ON_A_CORE, SMALL),
    "gpu-hour": Budget(60, "cuda", 116),
}


@dataclass(frozen=True)
class Task:
    """Where things are, and what every training and evaluation is given."""

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
        """What the YAML of ``system`` says."""
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
        """Settings that are the same for all: the pairs, and that what is measured on the way costs no time."""
        pairs = plain(self.recipe("two-stage"))["data"]
        quiet = ["valid.items=2", "valid.seconds=2", "valid.metrics=[mel_l1]", "valid.best=mel_l1"]
        return [*(f"data.{name}={json.dumps(pairs[name])}" for name in SHARED), *quiet, f"device={self.budget.device}"]

    def lengths(self, system: str, steps: int) -> list[str]:
        """The YAML's lengths in steps as shares of ``steps``, and settings of its own."""
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
        """What suits the budget; on a core, bfloat16 where it computes in that."""
        budget = self.budget
        halves = ("precision=bfloat16",) * (budget.device == "cpu" and computes_bfloat16("cpu"))
        settings = (*budget.settings, *halves, *budget.own.get(system, ()), *budget.last)
        return [f"{name}={value}" for name, value in dict(text.split("=", 1) for text in settings).items()]

    def sets(self, system: str) -> dict[str, list[object]]:
        """What ``system`` is scored on: held-out speech through two simulated sensors, and the real pairs.

        With a second microphone those that hear it, and for comparison their like that hear one.
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
    """Its configurations; most have the system's name."""
    return FILES.get(system, [system])


def of_two_stages(system: str) -> bool:
    return system.startswith("two-stage")


def run(*arguments: object) -> None:
    command = [str(argument) for argument in arguments]
    print("twostage", *command, flush=True)
    code = twostage(command)
    if code:
        sys.exit(code)


def timed(task: Task, *arguments: object) -> float:
    """Seconds that a command takes: of all threads' processor time, or of an accelerator's wall clock."""
    clock = time.process_time if task.budget.device == "cpu" else time.perf_counter
    begun = clock()
    run(*arguments)
    return clock() - begun


class Plan:
    """Steps and seconds of the trained systems, kept in plan.json: whoever goes on must go on with the same."""

    def __init__(self, task: Task) -> None:
        self.task, self.path = task, task.out / PLAN
        here = {"budget": task.name, "settings": list(task.settings), "machine": machine(task.budget.device)}
        self.values: dict[str, Any] = read_plan(task.out) if self.path.exists() else {**here, "systems": {}}
        for key, value in here.items():
            if self.values[key] != value:
                raise ConfigError(f"{self.path}: {key} is {self.values[key]}, not {value}; name another folder")

    def steps(self, system: str) -> int:
        """Those of ``system``, once settled; its share of the budget decides, and what a step takes."""
        if system in FREE:
            return 1
        known, budget = self.values["systems"], self.task.budget
        if system not in known:
            share = budget.minutes * 60 / len(TRAINED + FUSION)
            steps = budget.steps or max(1, round(share / seconds_per_step(self.task, system)))
            known[system] = {"steps": steps, "seconds": None, "own": self.task.own(system)}
            write_json(self.path, self.values)
        return int(known[system]["steps"])

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
    """By the difference of two short trainings, after one that loads what both need; what they made is not kept."""
    taken = []
    for steps in (1, 2, 2 + PROBE):
        folder = task.out / "probe" / f"{system}-{steps}"
        shutil.rmtree(folder, ignore_errors=True)
        taken.append(timed(task, *task.training(system, folder, steps)))
    shutil.rmtree(task.out / "probe")
    return max(1e-3, (taken[-1] - taken[-2]) / PROBE)


def train(task: Task, plan: Plan, system: str) -> Path:
    """Weights of ``system``, trained unless they are there."""
    steps, folder = plan.steps(system), task.out / "runs" / system
    weights = folder / WEIGHTS
    done = steps_trained(weights)
    if done is None or (done < steps and system not in FREE):
        seconds = timed(task, *task.training(system, folder, steps), *["--resume"] * (folder / "config.yaml").exists())
        plan.took(system, seconds * steps / max(1, steps - (done or 0)))  # as if it had not been stopped
    return weights


def steps_trained(weights: Path) -> int | None:
    """Steps that made ``weights``; None without weights."""
    return int(checkpoint.read_header(weights).provenance["steps"]) if weights.exists() else None


def evaluate(task: Task, system: str, weights: Path) -> None:
    """Score on every set that has no mark of being complete. What it costs is measured once."""
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
            run("evaluate", *arguments, "--model", *model, "-o", folder, *shown, *costs)
            (folder / DONE).touch()
        costs = ["--costs", folder / SUMMARY]


def compare(task: Task) -> None:
    """A table and pictures of each set, of all systems that are complete."""
    for name in SETS:
        folders = [task.out / name / system for system in SYSTEMS]
        done = [folder for folder in folders if (folder / DONE).exists()]
        if done:
            run("compare", *done, "-o", task.out / "comparison" / name, "--title", f"{task.name}: {name}")


def sample_data(folder: Path) -> Path:
    """Manifests of two seconds of the sample recording, as training, held-out speech and pair alike."""
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
        torch.set_num_threads(1)  # of evaluation too, whatever was trained before it
    plan = Plan(task)
    for system in systems:
        evaluate(task, system, train(task, plan, system))
    compare(task)


def report(out: Path, folder: Path) -> None:
    """COMPARISON.md, and a page in comparison/ for each test set, of what ``out`` holds."""
    plan = read_plan(out)
    tables = {name: out / "comparison" / name / "table.md" for name in SETS}
    texts = {name: path.read_text(encoding="utf-8") for name, path in tables.items() if path.exists()}
    if not texts:
        raise DataError(f"{out}/comparison: no tables; run the benchmark first")
    pages = {folder / "COMPARISON.md": ("Comparison", overview(plan, texts))}
    for name, text in texts.items():
        pages[folder / "comparison" / f"{name}.md"] = (SETS[name], set_page(out, name, text))
    # all before the first is written: a page without the marks leaves the others as they were
    written = {path: between_marks(path, heading, lines) for path, (heading, lines) in pages.items()}
    for name in texts:
        for kind, picture in pictures(out, name).items():
            smaller(picture, folder / "comparison" / f"{name}-{kind}.png")
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
    """The first page: the mean scores on every test set, then what every system was given."""
    lines = ["## Mean scores", "", "The pages of the test sets have all scores, with intervals and pictures:", ""]
    lines += [f"- `{name}`: [{SETS[name]}](comparison/{name}.md)" for name in texts]
    for metric in SUMMARIZED:
        columns = {name: means(text, metric) for name, text in texts.items()}
        lines += ["", f"### {metric}", "", f"| system | {' | '.join(texts)} |", f"| --- |{' ---: |' * len(texts)}"]
        for system in dict.fromkeys(system for column in columns.values() for system in column):
            lines.append(f"| {system} | {' | '.join(column.get(system, '') for column in columns.values())} |")
    return [*lines, "", f"## Budget: {plan['budget']}", "", *settled(plan)]


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


def settled(plan: Mapping[str, Any]) -> list[str]:
    """What every system was given, as Markdown."""
    budget = BUDGETS[plan["budget"]]
    share = f"{budget.minutes * 60 / len(TRAINED + FUSION):.0f} s" if budget.minutes else "a few steps"
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


def smaller(source: Path, target: Path) -> None:
    """A picture as it is, or in 64 colors and shrunk until it takes less than LARGEST bytes."""
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
    parser.add_argument("--systems", default=",".join(SYSTEMS), metavar="NAME,...", help="some of them alone")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write DIR/COMPARISON.md and DIR/comparison/ of what OUT holds"
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
