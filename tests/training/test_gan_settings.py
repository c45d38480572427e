"""Tests of the GANs among the baselines: every alternative in the literature is a setting that works for each."""

import copy

import pytest
import torch
from trainings import data_overrides

from twostage.data.pairs import Pair
from twostage.models.registry import ENHANCERS
from twostage.training.adversary import Adversary
from twostage.training.config import EnhancerRun, load_config
from twostage.training.recipes import last_weight
from twostage.training.tasks import Enhancing
from twostage.training.trainer import Training, fit

TINY = {
    "bwe": ["model.channels=4", "model.layers=2"],
    "seanet": ["model.channels=2", "model.strides=[2,4]", "model.bottleneck=2"],
    "eben": ["model.channels=2", "model.strides=[2,2]", "model.bottleneck=2"],
}
SETTINGS = {
    "as it is": [],
    "least squares": ["adversary.loss=least_squares"],
    "hinge": ["adversary.loss=hinge"],
    "bounded hinge": ["adversary.loss=bounded_hinge"],
    "feature matching": ["weights.fm=2", "weights.stft=0"],
    "multi-resolution STFT": ["weights.fm=0", "weights.stft=2.5"],
    "adaptive": ["adversary.adaptive=true", "weights.wave=1"],
    "each loss adaptive": ["adversary.adaptive=each", "weights.wave=1", "weights.stft=1"],
    "two steps to one": ["adversary.generator_steps=2"],
    "content first": ["adversary.start=1", "weights.wave=1"],
}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_trains_every_gan(name, setting, corpus, speech):
    files = [*data_overrides(corpus, "none"), "valid.metrics=[mel_l1]"]
    small = ["adversary.discriminator.width=0.0625", "adversary.start=0", "valid.best=mel_l1", "optimizer.warmup=0"]
    settings = load_config(EnhancerRun, [name], [*files, *small, *TINY[name], *SETTINGS[setting]])
    assert settings.weights.adv > 0
    torch.manual_seed(0)
    model = ENHANCERS[name][1](settings.architecture)
    training = Training(model, settings.optimizer, Adversary(settings.adversary, settings.optimizer))
    before, clean = copy.deepcopy(model.state_dict()), torch.from_numpy(speech(2048))[None, None]
    pair, reported = Pair(torch.nn.functional.avg_pool1d(clean, 9, 1, 4), clean), []
    fit(
        training,
        Enhancing(settings.mel, settings.weights),
        iter(lambda: pair, None),
        settings.weights,
        steps=2,
        report=lambda _, progress: reported.append(progress.values),
        last_layer=last_weight(model),
    )
    assert all(value.isfinite() for values in reported for value in values.values())
    assert any(not torch.equal(before[key], after) for key, after in model.state_dict().items())
    discriminator_steps = {"two steps to one": [True, False], "content first": [False, True]}.get(setting, [True, True])
    assert ["discriminator_loss" in values for values in reported] == discriminator_steps
    assert ("fm" in reported[-1]) == bool(settings.weights.fm)
    assert ("stft" in reported[-1]) == bool(settings.weights.stft)
    assert ("adaptive_adv" in reported[-1]) == bool(settings.adversary.adaptive)
