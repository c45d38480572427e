"""Tests of what a training stores: averaged weights, the best of them by its metric, and nothing that is not finite."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import data_overrides

from twostage.models import checkpoint
from twostage.models.features import LogMel
from twostage.models.restorer import Restorer
from twostage.training import monitor as module
from twostage.training.config import RestorerRun, load_config
from twostage.training.logs import RunLog
from twostage.training.monitor import Monitor
from twostage.training.optim import OptimizerConfig
from twostage.training.trainer import StepResult, Training
from twostage.utils.errors import TwoStageError
from twostage.utils.signals import Interruption


@pytest.fixture
def training(corpus: Path) -> Training:
    """A training whose averaged weights differ much from its weights."""
    torch.manual_seed(0)
    run = load_config(RestorerRun, ["restorer", "tiny"], data_overrides(corpus))
    training = Training(Restorer(run.restorer), OptimizerConfig())
    with torch.no_grad():
        for weight in training.model.parameters():
            weight.add_(1.0)
    return training


@pytest.fixture
def watch(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """watch(metric, scores) -> (a monitor that gives these scores to the steps, the weights that it scored)."""
    logs: list[RunLog] = []

    def make(metric: str, scores: list[float], *extra: str) -> tuple[Monitor, list[Any]]:
        scored: list[Any] = []

        def score(model: Any, *_: Any) -> dict[str, float]:
            scored.append(copy.deepcopy(model.state_dict()))
            return {metric: scores[len(scored) - 1]}

        monkeypatch.setattr(module, "score_examples", score)
        lists = [f"data.train=[{corpus}]", f"data.valid=[{corpus}]"]
        fixed = [f"run_dir={tmp_path}", *lists, "steps=100", "valid.every=1"]
        settings = load_config(
            RestorerRun,
            ["restorer", "tiny"],
            [*fixed, "save_every=50", "log_every=2", f"valid.metrics=[{metric}]", f"valid.best={metric}"]
            + ["valid.vocoder=default"] * (metric != "mel_l1")
            + list(extra),
        )
        logs.append(RunLog(tmp_path, console=io.StringIO()))
        monitor = Monitor(
            settings, logs[-1], [], estimate=None, mel=LogMel(settings.restorer.mel), interruption=Interruption()
        )
        return monitor, scored

    yield make
    for log in logs:
        log.close()


def step(monitor: Monitor, training: Training, loss: float = 1.0) -> None:
    training.step += 1
    monitor(training, StepResult({"loss": torch.tensor(loss)}, 0.0, 1.0))


def stored(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_stage(path).state_dict()


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, other[key], rtol=1e-4, atol=1e-5)


def test_the_averaged_weights_are_scored_and_stored(training, watch, tmp_path):
    monitor, scored = watch("mel_l1", [1.0], "save_every=1")
    step(monitor, training)
    assert_same(scored[0], training.ema.state_dict())
    for name in ("best", "last"):
        assert_same(stored(tmp_path / f"{name}.safetensors"), training.ema.state_dict())


@pytest.mark.parametrize(
    ("metric", "scores", "best"),
    [
        ("mel_l1", [3.0, 2.0, 2.5, 1.0], [1, 2, 2, 4]),
        ("stoi", [0.5, 0.7, 0.6, 0.9], [1, 2, 2, 4]),  # higher is better
        ("mel_l1", [float("nan"), 2.0, float("nan"), 3.0], [None, 2, 2, 2]),
    ],
)
def test_the_best_weights_are_stored_by_their_metric(training, watch, tmp_path, metric, scores, best):
    monitor, _ = watch(metric, scores)
    path = tmp_path / "best.safetensors"
    for expected in best:
        step(monitor, training)
        stored_step = checkpoint.read_header(path).provenance["steps"] if path.exists() else None
        assert stored_step == expected


def test_nothing_is_stored_after_a_loss_that_is_not_finite(training, watch, tmp_path):
    monitor, _ = watch("mel_l1", [1.0, 1.0], "save_every=1")
    with pytest.raises(TwoStageError, match="loss is not finite at step 1, stopped before it was saved"):
        step(monitor, training, loss=float("nan"))
    assert not list(tmp_path.glob("*.safetensors"))
    assert not (tmp_path / "state.pt").exists()


def test_a_logged_value_is_the_mean_since_the_previous_line(training, watch):
    monitor, _ = watch("mel_l1", [1.0] * 4)
    for loss in (1.0, 3.0, 10.0, 20.0):
        step(monitor, training, loss)
    lines = [line for line in monitor.log.console.getvalue().splitlines() if "loss" in line]
    assert ["loss 2 " in lines[0], "loss 15 " in lines[1]] == [True, True]


def test_the_state_is_stored_at_the_last_step_and_at_an_interruption(training, watch, tmp_path):
    monitor, _ = watch("mel_l1", [1.0] * 3, "steps=2")
    step(monitor, training)
    assert not (tmp_path / "state.pt").exists()
    step(monitor, training)
    assert checkpoint.load_state(tmp_path / "state.pt")["step"] == 2
    stopped, _ = watch("mel_l1", [1.0] * 3)
    stopped.interruption.came = True
    with pytest.raises(KeyboardInterrupt):
        step(stopped, training)
    assert checkpoint.load_state(tmp_path / "state.pt")["step"] == 3
