"""Claims about several processes: they learn what one process learns from the joint batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from twostage import checkpoint, recipes
from twostage.config import VocoderRun, load_config

SETTINGS = ["steps=2", "save=1", "report=1", "valid.every=2", "valid.items=1", "data.samples=2048"]
# small steps: what is compared are gradients, and chaos would hide them
PLAIN = ["optimizer.eps=1.0", "optimizer.learning_rate=1e-5", "optimizer.warmup=0", "optimizer.clip=0"]


def settings(corpus: Path, run: Path, batch: int) -> list[str]:
    return [f"data.train=[{corpus}]", f"data.valid=[{corpus}]", f"run={run}", f"data.batch={batch}", *SETTINGS, *PLAIN]


def test_two_processes_get_the_gradients_of_the_joint_batch(corpus: Path, tmp_path: Path) -> None:
    script = str(Path(__file__).parent.parent / "scripts" / "train_vocoder.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    given = ["vocoder", "tiny", *settings(corpus, tmp_path / "two", 2)]
    process = subprocess.run([*launch, *given], env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    recipes.train_vocoder(load_config(VocoderRun, ["vocoder", "tiny"], settings(corpus, tmp_path / "one", 4)))
    one, two = (checkpoint.load_state(tmp_path / run / "state.pt") for run in ("one", "two"))
    for which in ("optimizer", "adversary"):
        ours, theirs = (s["optimizer"] if which == "optimizer" else s["adversary"]["optimizer"] for s in (one, two))
        for index, moments in ours["state"].items():
            mean, same = moments["exp_avg"], theirs["state"][index]["exp_avg"]  # running means of gradients
            torch.testing.assert_close(
                same, mean, rtol=0, atol=float(1e-4 * mean.abs().max() + 1e-7), msg=f"{which} {index}"
            )
    assert one["best"] == pytest.approx(two["best"], rel=1e-3)
