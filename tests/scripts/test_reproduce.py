"""Claims about scripts/reproduce.sh: from speech to the table, on where it stopped, and what is wrong in a line."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from twostage import cli
from twostage.audio import sound_files
from twostage.commands.options import training_settings
from twostage.data.simulator import PRESETS, seeded, simulate
from twostage.training.config import RestorerRun, RunConfig, VocoderRun

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "reproduce.sh"
STEPS = ["base", "vocoder", "sensor", "restorer", "pairs", "throat"]  # eben too, but for --smoke
RATE = 16000
# Stands for python: writes down what it is asked, makes tables of one row, and fails at the word in FAIL.
STUB = """#!/usr/bin/env bash
[[ $1 == -c ]] && exit 0
printf '%q ' "$@" >>"$LOG"
echo >>"$LOG"
[[ -n $FAIL && " $* " == *" $FAIL "* ]] && exit 3
while [[ $# -gt 1 && $1 != -o ]]; do shift; done
[[ $1 == -o && $2 != *.yaml ]] && mkdir -p "$2/all" && echo "# t" | tee "$2/table.md" >"$2/all/table.md"
exit 0
"""
# Stands for python too, and runs what it is asked: in a fork of a process that has imported everything already.
CLIENT = """#!{python} -SE
import os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect({place!r})
    socket.send_fds(line, ["\\0".join([os.getcwd(), *sys.argv[1:]]).encode()], [1, 2])
    sys.exit(int(line.recv(8) or 1))
"""
SERVER = """
import os, runpy, socket, sys
import matplotlib.figure, pesq, pystoi, scipy.signal, torch, torch.utils.flop_counter
import twostage.evaluation.runner, twostage.training.recipes

def run(words):
    if words[0] == "-c":
        sys.argv = words[:1] + words[2:]
        exec(words[1], {})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")

with socket.socket(socket.AF_UNIX) as door:
    door.bind(sys.argv[1])
    door.listen()
    print("ready", flush=True)
    while True:
        line, _ = door.accept()
        text, ends, _, _ = socket.recv_fds(line, 1 << 16, 2)
        child = os.fork()
        if not child:
            for number, end in enumerate(ends, 1):
                os.dup2(end, number)
            folder, *words = text.decode().split("\\0")
            os.chdir(folder)
            run(words)
            sys.exit()
        for end in ends:
            os.close(end)
        _, status = os.waitpid(child, 0)
        line.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        line.close()
"""


@pytest.fixture(scope="module")
def quick_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A program that does what python does with -c, -m and a script, without the seconds of its imports."""
    folder = tmp_path_factory.mktemp("py")
    place, program = folder / "door", folder / "python"
    program.write_text(CLIENT.format(python=sys.executable, place=str(place)))
    program.chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVER, str(place)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield program
        server.kill()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, speech: Callable[..., np.ndarray]) -> Path:
    """The four files and folders that the script asks for: two seconds each of two speakers."""
    folder = tmp_path_factory.mktemp("data")
    manifests = dict.fromkeys(("train", "dev"), "path,speaker,corpus,seconds\n") | {
        "pairs": "bone,air,speaker,seconds\n"
    }
    for seed in range(2):
        for name in manifests:
            clean = speech(2 * RATE, seed=seed + 2 * len(name))
            sound_files.write(folder / f"{name}{seed}.wav", clean, RATE)
            row = f"{name}{seed}.wav,{name}{seed},c{seed},2.0\n"
            if name == "pairs":
                bone = simulate(clean, RATE, PRESETS["throat"], seeded(seed, "bone"))
                sound_files.write(folder / f"bone{seed}.wav", bone, RATE)
                row = f"bone{seed}.wav,{name}{seed}.wav,p{seed},2.0\n"
            manifests[name] += row
    for name, text in manifests.items():
        (folder / f"{name}.csv").write_text(text)
    hiss = 0.01 * np.random.default_rng(0).standard_normal(RATE)
    sound_files.write(folder / "noise" / "hiss.wav", hiss.astype(np.float32), RATE)
    return folder


def reproduce(*words: object, python: object = sys.executable, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": str(python), "OMP_NUM_THREADS": "1"} | variables
    command = [str(word) for word in (SCRIPT, *words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_from_speech_to_the_table_and_a_second_call_has_nothing_to_do(
    data: Path, tmp_path: Path, quick_python: Path
) -> None:
    first = reproduce("--smoke", data, tmp_path / "results", python=quick_python)
    assert first.returncode == 0, first.stderr
    table = (tmp_path / "results" / "table.md").read_text()
    assert first.stdout.endswith(table)
    assert re.findall("^#+ .*", table, re.MULTILINE) == [
        "# Real pairs, each speaker by a restorer that has not heard it",
        *("## speaker: p0", "## speaker: p1"),
        "# Held-out speech, simulated: throat",
        *("## corpus: c0", "## corpus: c1"),
    ]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| two-stage")]
    assert {row[0] for row in rows} == {"two-stage", "two-stage, copy-synthesis"}
    scores = [float(cell.split()[0].replace("M", "")) for row in rows for cell in row[1:]]
    assert len(scores) > 100
    assert np.isfinite(scores).all()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*") if path.name != "table.md"}
    second = reproduce("--smoke", data, tmp_path / "results", python=quick_python)
    assert second.returncode == 0, second.stderr
    assert re.findall(r"^reproduce: (\w+): (.*)", second.stdout, re.MULTILINE) == [
        (step, "complete, skipped") for step in STEPS
    ]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert second.stdout.endswith(table)


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(STUB)
    path.chmod(0o755)
    return path


def test_the_recipes_commands_exist_and_every_training_gets_the_settings(
    data: Path, stub: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    done = reproduce(data, tmp_path / "r", "seed=7", "threads=1", python=stub, LOG=str(log), FAIL="")
    assert done.returncode == 0, done.stderr
    asked = [shlex.split(line) for line in log.read_text().splitlines()]
    runs: dict[str, RunConfig] = {}
    for words in asked:
        if words[0] == "-m":
            args = cli.parse(words[2:])  # exits if there is no such command
            if words[2].startswith("train-"):
                schema = RestorerRun if words[2] == "train-restorer" else VocoderRun
                settings: RunConfig = training_settings(args, schema)
                runs[Path(settings.run_dir).name] = settings
    assert list(runs) == ["base", "vocoder", "restorer"]
    assert {(run.seed, run.threads) for run in runs.values()} == {(7, 1)}
    assert runs["restorer"].init_from == str(tmp_path / "r" / "base" / "last.safetensors")
    others = [words for words in asked if words[0] != "-m"]
    assert [Path(words[0]).name for words in others] == ["leave_one_out.py"]
    assert others[0][-2:] == ["seed=7", "threads=1"]


def test_what_was_stopped_goes_on_where_it_was(data: Path, stub: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    stopped = reproduce(data, tmp_path / "r", python=stub, LOG=str(log), FAIL="adapt")
    assert stopped.returncode == 3
    assert len(log.read_text().splitlines()) == 4
    assert "--resume" not in log.read_text()
    log.unlink()
    (tmp_path / "r" / "restorer").mkdir(parents=True, exist_ok=True)
    (tmp_path / "r" / "restorer" / "config.yaml").touch()  # what a training writes first
    again = reproduce(data, tmp_path / "r", "threads=2", python=stub, LOG=str(log), FAIL="")
    assert again.returncode == 0
    first = shlex.split(log.read_text().splitlines()[0])
    assert "adapt" in first
    assert first[-1] == "--resume"
    assert [step for step in STEPS if f"reproduce: {step}: complete, skipped" in again.stdout] == STEPS[:3]


def test_results_of_another_recipe_are_not_mixed_in(data: Path, stub: Path, tmp_path: Path) -> None:
    how = {"python": str(stub), "LOG": str(tmp_path / "log"), "FAIL": ""}
    assert reproduce(data, tmp_path / "r", **how).returncode == 0
    other = reproduce(data, tmp_path / "r", "seed=3", **how)
    assert other.returncode == 1
    assert other.stderr == (
        f"reproduce: error: {tmp_path}/r/done/base: this step was made by another command; name another folder\n"
    )


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "give DATA and RESULTS: scripts/reproduce.sh [--smoke] DATA RESULTS [key=value ...]"),
        (["{data}"], "give DATA and RESULTS: scripts/reproduce.sh [--smoke] DATA RESULTS [key=value ...]"),
        (["{data}", "{tmp}/r", "--fast"], "--fast: no such option"),
        (["{data}", "{tmp}/r", "fast"], "fast: not key=value"),
        (["{data}", "{tmp}/r", "run_dir=x"], "run_dir=x: is set by the recipe"),
        (["{tmp}/gone", "{tmp}/r"], "{tmp}/gone: no such folder"),
        (["{tmp}", "{tmp}/r"], "{tmp}/dev.csv: no such file"),
        (["{data}", "{data}/dev.csv"], "{data}/dev.csv: cannot make this folder"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], what: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "train.csv").touch()
    places = {"data": data, "tmp": tmp_path}
    done = reproduce(*(word.format(**places) for word in words))
    assert done.returncode != 0
    assert done.stderr == f"reproduce: error: {what.format(**places)}\n"
    assert not (tmp_path / "r").exists()


def test_a_python_that_cannot_do_it_is_named(data: Path, tmp_path: Path) -> None:
    gone = reproduce(data, tmp_path / "r", python="no-such-python")
    assert (gone.returncode, gone.stderr) == (1, "reproduce: error: PYTHON=no-such-python: no such program\n")
