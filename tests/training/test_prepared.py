"""Tests of how a training is prepared: excluded speakers, initial weights, precision."""

from pathlib import Path

import pytest
import torch
from trainings import data_overrides

from twostage.models import checkpoint
from twostage.models.features import LogMel
from twostage.models.restorer import Restorer
from twostage.training import prepared
from twostage.training.config import RestorerRun, load_config
from twostage.training.distributed import Team
from twostage.training.prepared import Plan, PreparedTraining
from twostage.training.tasks import Restoring
from twostage.training.validation import Estimate

TEAM = Team(torch.device("cpu"))


def settings(corpus: Path, *extra: str) -> RestorerRun:
    lists = [*data_overrides(corpus), "threads=1"]
    return load_config(RestorerRun, ["restorer", "tiny"], [*lists, *extra])


def plan(run: RestorerRun) -> Plan:
    torch.manual_seed(1)
    mel, task = LogMel(run.restorer.mel), Restoring(run.restorer, run.weights)
    return Plan(Restorer(run.restorer), mel, task, run.weights, lambda *_: Estimate(torch.zeros(0), None))


def test_excluded_speakers_are_not_in_the_training_data(corpus: Path) -> None:
    for excluded in ("s0", "s1"):
        run = settings(corpus, f"data.exclude_speakers=[{excluded}]", "valid.vocoder=''")
        speakers = {entry.speaker for entry in PreparedTraining.of(run, plan(run), None).dataset.clean}
        assert speakers == {"s0", "s1"} - {excluded}


def test_the_initial_weights_are_those_of_the_given_file(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    run = settings(corpus, f"init_from={path}")
    torch.manual_seed(0)
    initial = Restorer(run.restorer)
    checkpoint.save(path, initial, provenance={})
    training = prepared._training(run, plan(run), TEAM, None)
    for weights in (training.model, training.ema):
        for key, tensor in checkpoint.plain_state(weights).items():
            torch.testing.assert_close(tensor, checkpoint.plain_state(initial)[key])


@pytest.mark.parametrize(("precision", "half"), [("float32", False), ("bfloat16", True)])
def test_the_configured_precision_is_used(corpus: Path, precision: str, half: bool) -> None:
    left, right = torch.ones(2, 2), torch.ones(2, 2)
    with prepared._precision(settings(corpus, f"precision={precision}"), TEAM)():
        assert ((left @ right).dtype == torch.bfloat16) == half
