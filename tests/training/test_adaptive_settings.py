"""Tests of adaptive losses in fine-tuning: every combination of settings makes a step or is refused."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from trainings import data_overrides

from twostage.data.pairs import Pair
from twostage.models.restorer import RestorerConfig
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.models.vocoder import VocoderConfig
from twostage.training import recipes
from twostage.training.adversary import Adversary
from twostage.training.config import TRAINABLE, FinetuneRun, RestorerRun, load_config
from twostage.training.tasks import Finetuning
from twostage.training.trainer import Training, fit
from twostage.utils.errors import ConfigError

WEIGHTS = {
    "usual": [],
    "no matching": ["weights.fm=0"],
    "matching alone": ["weights.adv=0"],
    "restored": ["weights.restored=1"],
    "restored and the adversary alone": ["weights.restored=1", "weights.mel=0", "weights.fm=0"],
    "the adversary alone": ["weights.mel=0", "weights.fm=0"],
    "spectra": ["weights.mel=0", "weights.stft=1", "weights.multi_mel=1", "weights.intelligibility=1"],
    "no adversary": ["weights.adv=0", "weights.fm=0"],
}
REFUSALS = (
    r"weights.restored is 1(\.0)?, but train is vocoder"
    r"|weights.restored is 1(\.0)?, but adversary.adaptive is each: this loss does not reach the vocoder's last layer"
    r"|adversary.adaptive is true, but no other loss at the last layer has a weight"
)


@pytest.fixture(scope="module")
def model() -> TwoStage:
    torch.manual_seed(0)
    restorer = RestorerConfig(channels=(4, 8), time_strides=(2,), blocks=1, dilations=(1,))
    return TwoStage(TwoStageConfig(restorer, VocoderConfig(upsample_initial_channel=16)))


def settings(corpus: Path, *extra: str) -> FinetuneRun:
    overrides = [*data_overrides(corpus), "models=[x]"]
    return load_config(FinetuneRun, ["finetune", "tiny"], [*overrides, "steps=3", "threads=1", *extra])


def is_refused(train: str, adaptive: str, weights: str) -> bool:
    if "restored" in weights and (train == "vocoder" or (train == "both" and adaptive == "each")):
        return True
    no_other_loss = weights == "the adversary alone" or (weights.startswith("restored and") and train == "both")
    return adaptive == "true" and no_other_loss


def step(run: FinetuneRun, model: TwoStage) -> dict[str, float]:
    """The reported values of the last of as many steps as the discriminators wait between two of theirs."""
    model.requires_grad_(False)
    for part in TRAINABLE[run.train]:
        getattr(model, part).requires_grad_(True)
    adversary = Adversary(run.adversary, run.optimizer) if run.weights.adv or run.weights.fm else None
    training = Training(model, run.optimizer, adversary)
    last = recipes._last_trained(run.train, model) if adversary and run.adversary.adaptive else None
    pair = Pair(*(0.1 * torch.randn(1, 1, 4096, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)))
    task, last_values = Finetuning(model.config.vocoder.mel, run.weights, 12), {}
    fit(
        training,
        task,
        itertools.repeat(pair),
        run.weights,
        steps=run.adversary.generator_steps,
        last_layer=last,
        report=lambda _, progress: last_values.update({name: float(value) for name, value in progress.values.items()}),
    )
    return last_values


@pytest.mark.parametrize("generator_steps", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("adaptive", ["false", "true", "each"])
@pytest.mark.parametrize("train", TRAINABLE)
def test_every_combination_of_settings_makes_a_step_or_is_refused(
    corpus: Path, model: TwoStage, train: str, adaptive: str, generator_steps: int
) -> None:
    common = f"train={train}", f"adversary.adaptive={adaptive}", f"adversary.generator_steps={generator_steps}"
    for name, weights in WEIGHTS.items():
        if is_refused(train, adaptive, name):
            with pytest.raises(ConfigError, match=REFUSALS):
                settings(corpus, *common, *weights)
            continue
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        values = step(settings(corpus, *common, *weights), model)
        assert all(map(math.isfinite, values.values())), (name, values)
        parts = {key.partition(".")[0] for key, tensor in model.state_dict().items() if not tensor.equal(before[key])}
        assert parts == set(TRAINABLE[train]), name
        factors = {key for key in values if key.startswith("adaptive_")}
        assert bool(factors) == (adaptive != "false" and name != "no adversary"), name


def test_losses_are_balanced_at_the_last_layer_of_the_trained_stage(model: TwoStage) -> None:
    for train, stage in ("restorer", model.restorer), ("vocoder", model.vocoder), ("both", model.vocoder):
        assert recipes._last_trained(train, model) is stage.conv_post.parametrizations.weight.original1


def test_an_adaptive_adversary_of_log_mels_without_another_loss_is_refused(corpus: Path) -> None:
    overrides = [*data_overrides(corpus), "weights.mel=0", "weights.adv=1"]
    overrides += [f"weights.{name}=0" for name in ("delta", "intelligibility", "ssim", "fm")]
    with pytest.raises(ConfigError, match=r"adversary.adaptive is true, but no other loss"):
        load_config(RestorerRun, ["restorer", "tiny"], [*overrides, "adversary.adaptive=true", "threads=1"])
