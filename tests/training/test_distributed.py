"""Tests of training with several processes: their gradients equal those of one process with the joint batch."""

import os
import re
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import data_overrides

from twostage.models import checkpoint
from twostage.training import prepared, recipes
from twostage.training.config import VocoderRun, load_config
from twostage.training.distributed import Team
from twostage.utils.errors import ConfigError

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "docs" / "CLUSTER.md"

SETTINGS = ["steps=2", "save_every=1", "log_every=1", "valid.every=2", "valid.items=1", "data.segment_length=2048"]
# small steps, so that gradients can be compared before trainings diverge by rounding errors
PLAIN = ["optimizer.eps=1.0", "optimizer.learning_rate=1e-5", "optimizer.warmup=0", "optimizer.grad_clip=0"]


def settings(corpus: Path, run: Path, batch: int) -> list[str]:
    return [
        *data_overrides(corpus, run),
        f"data.batch_size={batch}",
        *SETTINGS,
        *PLAIN,
    ]


@pytest.fixture(scope="module")
def single_process(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state after a training by one process with the joint batch."""
    run = tmp_path_factory.mktemp("one")
    recipes.train_vocoder(load_config(VocoderRun, ["vocoder", "tiny"], settings(corpus, run, 4)))
    return checkpoint.load_state(run / "state.pt")


def start(launch: list[str], inputs: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *launch, str(ROOT / "scripts" / "train_vocoder.py")]
    inputs = ["vocoder", "tiny", *inputs]
    return subprocess.Popen(
        [*command, *inputs], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def assert_same_gradients(single_process: dict[str, Any], two_processes: dict[str, Any]) -> None:
    for optimizer_name in ("optimizer", "adversary"):
        single_state, joint_state = (
            s["optimizer"] if optimizer_name == "optimizer" else s["adversary"]["optimizer"]
            for s in (single_process, two_processes)
        )
        for index, moments in single_state["state"].items():
            mean, mean_of_two = moments["exp_avg"], joint_state["state"][index]["exp_avg"]  # running means of gradients
            torch.testing.assert_close(
                mean_of_two, mean, rtol=0, atol=float(1e-4 * mean.abs().max() + 1e-7), msg=f"{optimizer_name} {index}"
            )
    assert single_process["best"] == pytest.approx(two_processes["best"], rel=1e-3)


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_the_joint_batch(
    corpus: Path, tmp_path: Path, single_process: dict[str, Any]
) -> None:
    process = start(["--standalone", "--nproc-per-node", "2"], settings(corpus, tmp_path / "two", 2))
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert_same_gradients(single_process, checkpoint.load_state(tmp_path / "two" / "state.pt"))


@pytest.mark.slow
def test_the_documented_commands_for_two_machines_train(
    corpus: Path, tmp_path: Path, single_process: dict[str, Any]
) -> None:
    """Both commands, one per machine, run on this machine with one process each."""
    lines = re.findall(
        r"^torchrun (.*?) \\\n +scripts/train_vocoder.py", CLUSTER.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(lines) == 2
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    local_options = {"--nproc-per-node": "1", "--master-addr": "127.0.0.1", "--master-port": str(port)}
    nodes = []
    for line in lines:
        options = dict(zip(line.split()[::2], line.split()[1::2], strict=True)) | local_options
        inputs = settings(corpus, tmp_path / "two", 2)
        nodes.append(start([word for option in options.items() for word in option], inputs))
    outputs = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    assert_same_gradients(single_process, checkpoint.load_state(tmp_path / "two" / "state.pt"))


@pytest.mark.parametrize(
    ("changes", "step", "files", "message"),
    [
        (["seed=3"], 0, 5, r"process 0 differs from process 1: seed is 0, there 3$"),
        ([], 7, 5, r"process 0 differs from process 1: it is at step 0 and 5 files, there step 7 and 5 files$"),
        ([], 0, 4, r"process 0 differs from process 1: it is at step 0 and 5 files, there step 0 and 4 files$"),
        (["threads=2", "device=cpu", "data.prefetch=1"], 0, 5, ""),  # settings that may differ
    ],
)
def test_processes_with_different_settings_or_data_are_refused(
    corpus: Path, tmp_path: Path, changes: list[str], step: int, files: int, message: str
) -> None:
    first, second = (
        load_config(VocoderRun, ["vocoder", "tiny"], [*settings(corpus, tmp_path, 2), *extra])
        for extra in ([], changes)
    )

    class Two(Team):
        def gather(self, value: Any) -> list[Any]:
            return [value, (second, step, files)]

    expectation = pytest.raises(ConfigError, match=message) if message else nullcontext()
    with expectation:
        prepared._check_same(Two(torch.device("cpu"), 0, 2), first, 0, 5)
