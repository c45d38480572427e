"""Tests of scripts/benchmark.py: the tables, resuming, the budget, the report and errors."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from twostage import cli
from twostage.audio import plots, sound_files
from twostage.evaluation.report import read_rows
from twostage.models import checkpoint
from twostage.training.config import EnhancerRun, RestorerRun, load_config
from twostage.utils.errors import ConfigError, DataError, TwoStageError

RATE = 16000
SYSTEMS = ("lowpass", "wave-unet")
SMALL = ("model.levels=3", "model.channels=4")


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("benchmark")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, speech: Callable[..., np.ndarray]) -> Path:
    """One second of speech for training and one for scores, which also form a pair."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("train", "dev")):
        sound_files.write(folder / f"{name}.wav", speech(RATE, seed=seed), RATE)
        (folder / f"{name}.csv").write_text(f"path,speaker,seconds\n{name}.wav,{name},1.0\n")
    (folder / "pairs.csv").write_text("bone,air,speaker,seconds\ntrain.wav,dev.wav,p,1.0\n")
    return folder


@pytest.fixture
def task(quick_quality: None, script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(script.SMALL, "wave-unet", SMALL)
    for picture in ("draw", "draw_charts"):  # slow, and tested in test_compare.py and test_plots.py
        monkeypatch.setattr(plots, picture, lambda path, *_, **__: path.parent.mkdir(exist_ok=True))
    return script.Task("smoke", data, tmp_path / "out", ("seed=7",))


def modification_times(out: Path) -> dict[Path, int]:
    """Modification times of all files except the comparison, which is always written anew."""
    files = [path for path in out.rglob("*") if path.is_file() and "comparison" not in path.parts]
    return {path: path.stat().st_mtime_ns for path in files}


def test_the_benchmark_writes_the_tables_and_a_second_call_repeats_nothing(script, task, capsys):
    script.benchmark(task, SYSTEMS)
    for name in ("throat", "eben", "pairs"):
        table = (task.out / "comparison" / name / "table.md").read_text()
        rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| wave-unet")]
        scores = [float(cell.split()[0]) for row in rows for cell in row[1:]]
        assert len(scores) == 21
        assert np.isfinite(scores).all()
    plan = json.loads((task.out / "plan.json").read_text())
    assert plan["systems"].keys() == {"wave-unet"}
    assert plan["systems"]["wave-unet"]["steps"] == 2
    assert plan["systems"]["wave-unet"]["seconds"] > 0
    weights = task.out / "runs" / "wave-unet" / "last.safetensors"
    assert checkpoint.read_header(weights).provenance["steps"] == 2
    assert checkpoint.read_header(weights).config["levels"] == 3
    # the cost of a system is measured once
    costs = [
        json.loads((task.out / name / "wave-unet" / "summary.json").read_text())["costs"]
        for name in task.sets("wave-unet")
    ]
    assert costs[0] == costs[1] == costs[2]

    before = modification_times(task.out)
    capsys.readouterr()
    script.benchmark(task, SYSTEMS)
    assert modification_times(task.out) == before
    commands = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("twostage ")]
    assert commands == ["compare"] * 3


class Killed(Exception):
    pass


def test_a_benchmark_killed_at_any_command_continues_where_it_stopped(script, task, monkeypatch):
    """It is killed before every command, and once in the middle of a training."""
    seen_commands: list[str] = []
    original = cli.main

    def killed_once(command):
        key = " ".join(command[:2]) + command[command.index("-o") + 1] if "-o" in command else command[0]
        if key not in seen_commands:
            seen_commands.append(key)
            if command[0] == "train-enhancer" and "wave-unet" in command:
                original([*command, "steps=1"])
            raise Killed
        return original(command)

    monkeypatch.setattr(cli, "main", killed_once)
    kills = 0
    while True:
        try:
            script.benchmark(task, SYSTEMS)
            break
        except Killed:
            kills += 1
    assert kills == len(seen_commands) == 1 + 6 + 3  # one of the two systems needs no training
    assert checkpoint.read_header(task.out / "runs" / "wave-unet" / "last.safetensors").provenance["steps"] == 2
    log = (task.out / "runs" / "wave-unet" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log if '"train"' in line] == [1, 2]
    assert len(read_rows(task.out / "pairs" / "wave-unet" / "utterances.csv")) == 3  # raw, restored, clean


def test_a_folder_of_another_benchmark_is_refused(script, task):
    script.benchmark(task, ["lowpass"])
    plan = script.Plan(task)
    plan.steps("wave-unet")
    other = script.Task("smoke", task.data, task.out, ("seed=8",))
    with pytest.raises(
        ConfigError, match=r"plan.json: settings is \['seed=7'\], not \['seed=8'\]; name another folder"
    ):
        script.benchmark(other, ["lowpass"])
    (task.out / "plan.json").write_text("{}")
    with pytest.raises(DataError, match=r"plan.json: not the plan of a benchmark \('budget'\)"):
        script.benchmark(task, ["lowpass"])


def test_every_system_gets_the_same_time(script, data, tmp_path, monkeypatch):
    timed_calls = []

    def fake_timed(task, *arguments):
        steps = int(next(text for text in arguments if text.startswith("steps=")).partition("=")[2])
        timed_calls.append(arguments)
        (task.out / "probe").mkdir(parents=True, exist_ok=True)
        return 3.0 + 0.5 * steps

    monkeypatch.setattr(script, "timed", fake_timed)
    plan = script.Plan(script.Task("cpu-40-minutes", data, tmp_path))
    assert plan.steps("bwe") == round(40 * 60 / 0.5)
    assert len(timed_calls) == 3
    assert script.Plan(script.Task("cpu-40-minutes", data, tmp_path)).steps("bwe") == plan.steps("bwe")
    assert len(timed_calls) == 3


def test_every_system_trains_with_the_same_data_and_its_own_schedule(script, data, tmp_path):
    task = script.Task("cpu-40-minutes", data, tmp_path)
    systems = ("two-stage", "wave-unet", "bwe")
    runs = {}
    for system in systems:
        kind = RestorerRun if system == "two-stage" else EnhancerRun
        command, *arguments = task.training(system, tmp_path / system, 600)
        assert command == ("train-restorer" if system == "two-stage" else "train-enhancer")
        runs[system] = load_config(kind, arguments[:1], arguments[1:])
    for run in runs.values():
        assert run.data.sensors == ("any", "in-ear", "forehead", "temple", "eben")
        assert (run.data.gate_db, run.data.speed, run.data.eq_db) == (20, 0.1, 2)
        assert (run.threads, run.steps, run.optimizer.cooldown, run.optimizer.decay) == (1, 600, 200, 1)
    assert [run.optimizer.warmup for run in runs.values()] == [30] * 3
    assert runs["bwe"].adversary.start == 300  # half of the steps, as in its YAML
    assert runs["wave-unet"].weights.own == {"mse": 1}


def save_picture(task: object, name: str, picture: str) -> None:
    """Write a picture of noise where `twostage compare` draws one; the fixture ``task`` disables its drawing."""
    path = task.out / "comparison" / name / picture
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (150, 300, 3), np.uint8)).save(path)


def test_a_report_has_a_page_of_means_and_a_page_for_each_test_set(script, task, tmp_path, monkeypatch):
    script.benchmark(task, SYSTEMS)
    monkeypatch.setattr(script, "LARGEST", 20_000)
    for picture in ("cost.png", "spectrograms/first.png", "spectrograms/second.png"):
        save_picture(task, "throat", picture)
    script.report(task.out, tmp_path / "docs")
    first, sets = tmp_path / "docs" / "COMPARISON.md", tmp_path / "docs" / "comparison"
    assert sorted(file.name for file in sets.iterdir()) == [
        "eben.md",
        "pairs.md",
        "throat-cost.png",
        "throat-spectrograms.png",
        "throat.md",
    ]
    assert 10_000 < (sets / "throat-cost.png").stat().st_size < 20_000

    text = first.read_text()
    headings = ["# Comparison", "## Mean scores", "### ESTOI", "### PESQ-WB", "### MOS", "## Budget: smoke"]
    assert re.findall("^#+ .*", text, re.MULTILINE) == headings
    assert "| wave-unet | 2 |" in text
    estoi = rows(text.partition("### ESTOI")[2])
    assert list(estoi) == ["system", "---", "raw input", "lowpass", "wave-unet"]
    assert estoi["system"] == ["throat", "eben", "pairs"]
    for place, name in enumerate(estoi["system"]):
        table = (task.out / "comparison" / name / "table.md").read_text()
        page = (sets / f"{name}.md").read_text()
        assert table.partition("\n\n")[2].strip() in page  # all but its heading
        assert re.findall("^# .*", page, re.MULTILINE) == [f"# {script.SETS[name]}"]
        assert f"[{script.SETS[name]}](comparison/{name}.md)" in text
        assert "(../COMPARISON.md)" in page
        full = rows(table)
        column = next(n for n, head in enumerate(full["system"]) if head.startswith("ESTOI"))
        for system in SYSTEMS:
            assert float(estoi[system][place]) == float(full[system][column].split()[0])
    page = (sets / "throat.md").read_text()
    assert re.findall(r"\]\((.*png)\)", page) == ["throat-cost.png", "throat-spectrograms.png"]
    assert ".png" not in (sets / "eben.md").read_text()


def rows(text: str) -> dict[str, list[str]]:
    """First column -> the other cells of the row, for the first table in ``text``."""
    table = re.search(r"(^\|.*\n)+", text, re.MULTILINE)[0]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    return {first: others for first, *others in cells}


def test_means_are_read_from_a_table_also_those_of_some_utterances_and_missing_ones(script):
    table = "# T\n\n1 s.\n\n| system | n | STOI ↑ | LSD ↓ |\n| --- | ---: | ---: | ---: |\n"
    table += "| a | 5 | 0.674 [0.624, 0.715] (n = 3) | - |\n\n| system | n | STOI ↑ |\n| --- | ---: | ---: |\n"
    table += "| a | 5 | +0.1 |\n"
    assert script.means(table, "STOI") == {"a": "0.674"}
    assert script.means(table, "LSD") == {}
    assert script.means(table, "ESTOI") == {}


def test_a_report_keeps_the_text_around_it(script, task, tmp_path):
    script.benchmark(task, SYSTEMS)
    save_picture(task, "throat", "cost.png")
    script.report(task.out, tmp_path / "docs")
    pages = [tmp_path / "docs" / name for name in ("COMPARISON.md", "comparison/throat.md")]
    edited = {}
    for path in pages:
        heading, _, rest = path.read_text().partition("\n")
        edited[path] = f"{heading}\n\nMine.\n{rest}\nMine too.\n"
        path.write_text(edited[path])
    script.report(task.out, tmp_path / "docs")
    assert {path: path.read_text() for path in pages} == edited

    # the error names the page without marks, and no page is changed
    pages[1].write_text("Mine only.\n")
    (tmp_path / "docs" / "comparison" / "throat-cost.png").unlink()
    pages[0].write_text(f"Old.\n{script.BEGIN}\n{script.END}\n")
    with pytest.raises(DataError, match=r"throat.md: lacks the lines <!-- benchmark.py writes from here -->"):
        script.report(task.out, tmp_path / "docs")
    assert [path.read_text() for path in pages] == [f"Old.\n{script.BEGIN}\n{script.END}\n", "Mine only.\n"]
    assert not (tmp_path / "docs" / "comparison" / "throat-cost.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --budget, or --report"),
        (["--budget", "cpu-40-minutes"], "--budget cpu-40-minutes needs --data"),
        (
            ["--budget", "smoke", "--systems", "lowpas"],
            "--systems: no system lowpas; there are lowpass, shift,",
        ),
        (["--budget", "cpu-40-minutes", "--data", "{tmp}/no"], "{tmp}/no/train.csv: no such file"),
        (["--budget", "cpu-40-minutes", "--data", "{data}", "fast"], "fast: not key=value"),
        (["--budget", "cpu-40-minutes", "--data", "{data}", "steps=3"], "steps=3: is set by the budget"),
        (["--report", "{tmp}"], "{tmp}/out/plan.json: not the plan of a benchmark"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(script, data, tmp_path, monkeypatch, arguments, message):
    folders = {"data": data, "tmp": tmp_path}
    monkeypatch.setattr(
        "sys.argv", ["benchmark", "-o", f"{tmp_path}/out", *(argument.format(**folders) for argument in arguments)]
    )
    with pytest.raises(TwoStageError) as error:
        script.main()
    assert str(error.value).startswith(message.format(**folders))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
