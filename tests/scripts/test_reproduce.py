"""Tests of scripts/reproduce.sh: the table, resuming, the commands that it runs, and errors."""

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
STEPS = ["base", "vocoder", "sensor", "restorer", "pairs", "throat"]  # without --smoke, eben too
RATE = 16000
# Replaces python: logs its arguments, writes tables of one row, and fails if an argument equals FAIL.
STUB = """#!/usr/bin/env bash
[[ $1 == -c ]] && exit 0
printf '%q ' "$@" >>"$LOG"
echo >>"$LOG"
[[ -n $FAIL && " $* " == *" $FAIL "* ]] && exit 3
while [[ $# -gt 1 && $1 != -o ]]; do shift; done
[[ $1 == -o && $2 != *.yaml ]] && mkdir -p "$2/all" && echo "# t" | tee "$2/table.md" >"$2/all/table.md"
exit 0
"""
# Replaces python too, and runs its arguments in a fork of a process that has already imported everything.
CLIENT = """#!{python} -SE
import os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect({address!r})
    socket.send_fds(line, ["\\0".join([os.getcwd(), *sys.argv[1:]]).encode()], [1, 2])
    sys.exit(int(line.recv(8) or 1))
"""
SERVER = """
import os, runpy, socket, sys
import matplotlib.figure, pesq, pystoi, scipy.signal, torch, torch.utils.flop_counter
import twostage.evaluation.runner, twostage.training.recipes

def run(arguments):
    if arguments[0] == "-c":
        sys.argv = arguments[:1] + arguments[2:]
        exec(arguments[1], {})
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")

with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print("ready", flush=True)
    while True:
        line, _ = listener.accept()
        text, ends, _, _ = socket.recv_fds(line, 1 << 16, 2)
        child = os.fork()
        if not child:
            for number, end in enumerate(ends, 1):
                os.dup2(end, number)
            folder, *arguments = text.decode().split("\\0")
            os.chdir(folder)
            run(arguments)
            sys.exit()
        for end in ends:
            os.close(end)
        _, status = os.waitpid(child, 0)
        line.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        line.close()
"""


@pytest.fixture(scope="module")
def quick_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A program that runs -c, -m and scripts like python, without the seconds that imports take."""
    folder = tmp_path_factory.mktemp("py")
    address, program = folder / "socket", folder / "python"
    program.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    program.chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVER, str(address)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield program
        server.kill()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, speech: Callable[..., np.ndarray]) -> Path:
    """The manifests and the folder of noise that the script needs, with two seconds of each of two speakers."""
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


def reproduce(
    *arguments: object, python: object = sys.executable, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": str(python), "OMP_NUM_THREADS": "1"} | variables
    command = [str(argument) for argument in (SCRIPT, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_the_script_writes_the_table_and_a_second_call_repeats_nothing(
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


def test_the_commands_of_the_script_exist_and_every_training_gets_the_settings(
    data: Path, stub: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = reproduce(data, tmp_path / "r", "seed=7", "threads=1", python=stub, LOG=str(log), FAIL="")
    assert process.returncode == 0, process.stderr
    commands = [shlex.split(line) for line in log.read_text().splitlines()]
    runs: dict[str, RunConfig] = {}
    for arguments in commands:
        if arguments[0] == "-m":
            args = cli.parse(arguments[2:])  # exits if there is no such command
            if arguments[2].startswith("train-"):
                schema = RestorerRun if arguments[2] == "train-restorer" else VocoderRun
                settings: RunConfig = training_settings(args, schema)
                runs[Path(settings.run_dir).name] = settings
    assert list(runs) == ["base", "vocoder", "restorer"]
    assert {(run.seed, run.threads) for run in runs.values()} == {(7, 1)}
    assert runs["restorer"].init_from == str(tmp_path / "r" / "base" / "last.safetensors")
    other_commands = [arguments for arguments in commands if arguments[0] != "-m"]
    assert [Path(arguments[0]).name for arguments in other_commands] == ["leave_one_out.py"]
    assert other_commands[0][-2:] == ["seed=7", "threads=1"]


def test_a_stopped_script_continues_where_it_stopped(data: Path, stub: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    stopped = reproduce(data, tmp_path / "r", python=stub, LOG=str(log), FAIL="adapt")
    assert stopped.returncode == 3
    assert len(log.read_text().splitlines()) == 4
    assert "--resume" not in log.read_text()
    log.unlink()
    (tmp_path / "r" / "restorer").mkdir(parents=True, exist_ok=True)
    (tmp_path / "r" / "restorer" / "config.yaml").touch()  # the first file that a training writes
    continued = reproduce(data, tmp_path / "r", "threads=2", python=stub, LOG=str(log), FAIL="")
    assert continued.returncode == 0
    first = shlex.split(log.read_text().splitlines()[0])
    assert "adapt" in first
    assert first[-1] == "--resume"
    assert [step for step in STEPS if f"reproduce: {step}: complete, skipped" in continued.stdout] == STEPS[:3]


def test_results_of_another_recipe_are_refused(data: Path, stub: Path, tmp_path: Path) -> None:
    options = {"python": str(stub), "LOG": str(tmp_path / "log"), "FAIL": ""}
    assert reproduce(data, tmp_path / "r", **options).returncode == 0
    other = reproduce(data, tmp_path / "r", "seed=3", **options)
    assert other.returncode == 1
    assert other.stderr == (
        f"reproduce: error: {tmp_path}/r/done/base: this step was made by another command; name another folder\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
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
def test_invalid_arguments_are_reported_in_one_line(
    arguments: list[str], message: str, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.csv").touch()
    folders = {"data": data, "tmp": tmp_path}
    process = reproduce(*(argument.format(**folders) for argument in arguments))
    assert process.returncode != 0
    assert process.stderr == f"reproduce: error: {message.format(**folders)}\n"
    assert not (tmp_path / "r").exists()


def test_a_missing_python_is_named(data: Path, tmp_path: Path) -> None:
    process = reproduce(data, tmp_path / "r", python="no-such-python")
    assert (process.returncode, process.stderr) == (1, "reproduce: error: PYTHON=no-such-python: no such program\n")
