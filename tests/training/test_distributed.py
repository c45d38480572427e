"""Claims about several processes: they learn what one process learns from the joint batch."""

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

from twostage.models import checkpoint
from twostage.training import prepared, recipes
from twostage.training.config import VocoderRun, load_config
from twostage.training.distributed import Team
from twostage.utils.errors import ConfigError

ROOT = Path(__file__).parents[2]

SETTINGS = ["steps=2", "save_every=1", "log_every=1", "valid.every=2", "valid.items=1", "data.segment_length=2048"]
# small steps: what is compared are gradients, and chaos would hide them
PLAIN = ["optimizer.eps=1.0", "optimizer.learning_rate=1e-5", "optimizer.warmup=0", "optimizer.grad_clip=0"]


def settings(corpus: Path, run: Path, batch: int) -> list[str]:
    return [
        f"data.train=[{corpus}]",
        f"data.valid=[{corpus}]",
        f"run_dir={run}",
        f"data.batch_size={batch}",
        *SETTINGS,
        *PLAIN,
    ]


@pytest.fixture(scope="module")
def one(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state after a training by one process, with the joint batch."""
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


def check_same_gradients(one: dict[str, Any], two: dict[str, Any]) -> None:
    for which in ("optimizer", "adversary"):
        ours, theirs = (s["optimizer"] if which == "optimizer" else s["adversary"]["optimizer"] for s in (one, two))
        for index, moments in ours["state"].items():
            mean, same = moments["exp_avg"], theirs["state"][index]["exp_avg"]  # running means of gradients
            torch.testing.assert_close(
                same, mean, rtol=0, atol=float(1e-4 * mean.abs().max() + 1e-7), msg=f"{which} {index}"
            )
    assert one["best"] == pytest.approx(two["best"], rel=1e-3)


@pytest.mark.slow
def test_two_processes_get_the_gradients_of_the_joint_batch(corpus: Path, tmp_path: Path, one: dict[str, Any]) -> None:
    process = start(["--standalone", "--nproc-per-node", "2"], settings(corpus, tmp_path / "two", 2))
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    check_same_gradients(one, checkpoint.load_state(tmp_path / "two" / "state.pt"))


@pytest.mark.slow
def test_two_machines_train_as_the_documentation_says(corpus: Path, tmp_path: Path, one: dict[str, Any]) -> None:
    """Its commands, one a machine, both of them this one with one process each."""
    lines = re.findall(r"^torchrun (.*) scripts/train_vocoder.py", (ROOT / "docs/CLUSTER.md").read_text(), re.MULTILINE)
    assert len(lines) == 2
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    here = {"--nproc-per-node": "1", "--master-addr": "127.0.0.1", "--master-port": str(port)}
    nodes = []
    for line in lines:
        options = dict(zip(line.split()[::2], line.split()[1::2], strict=True)) | here
        inputs = settings(corpus, tmp_path / "two", 2)
        nodes.append(start([word for option in options.items() for word in option], inputs))
    outputs = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    check_same_gradients(one, checkpoint.load_state(tmp_path / "two" / "state.pt"))


@pytest.mark.parametrize(
    ("changes", "step", "files", "message"),
    [
        (["seed=3"], 0, 5, r"process 0 differs from process 1: seed is 0, there 3$"),
        ([], 7, 5, r"process 0 differs from process 1: it is at step 0 and 5 files, there step 7 and 5 files$"),
        ([], 0, 4, r"process 0 differs from process 1: it is at step 0 and 5 files, there step 0 and 4 files$"),
        (["threads=2", "device=cpu", "data.prefetch=1"], 0, 5, ""),  # what may differ
    ],
)
def test_processes_that_would_not_learn_one_model_stop(
    corpus: Path, tmp_path: Path, changes: list[str], step: int, files: int, message: str
) -> None:
    ours, theirs = (
        load_config(VocoderRun, ["vocoder", "tiny"], [*settings(corpus, tmp_path, 2), *more]) for more in ([], changes)
    )

    class Two(Team):
        def gather(self, value: Any) -> list[Any]:
            return [value, (theirs, step, files)]

    stopping = pytest.raises(ConfigError, match=message) if message else nullcontext()
    with stopping:
        prepared._check_same(Two(torch.device("cpu"), 0, 2), ours, 0, 5)
