"""Tests of the optimizer: AdamW's settings, learning rate, clipping and averaged weights."""

import pytest
import torch
from torch import nn

from twostage.training import optim
from twostage.training.optim import OptimizerConfig
from twostage.utils.errors import ConfigError


def test_the_settings_are_passed_to_adamw():
    config = OptimizerConfig(learning_rate=0.3, betas=(0.7, 0.9), eps=1e-6, weight_decay=0.2)
    group = optim.adamw(nn.Linear(2, 2).parameters(), config).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.3, (0.7, 0.9), 1e-6, 0.2)


def test_frozen_weights_are_not_optimized():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    assert len(optim.adamw(layer.parameters(), OptimizerConfig()).param_groups[0]["params"]) == 1


@pytest.mark.parametrize(
    ("settings", "step", "rate"),
    [
        ({"decay": 1.0}, 500, 1.0),
        ({"decay": 1.0, "warmup": 100}, 49, 0.5),
        ({"decay": 1.0, "warmup": 100}, 100, 1.0),
        ({"decay": 0.5, "decay_every": 100}, 200, 0.25),
        ({"decay": 1.0, "cooldown": 100}, 950, 0.5),
        ({"decay": 1.0, "cooldown": 100}, 899, 1.0),
    ],
)
def test_the_learning_rate_has_warmup_decay_and_cooldown(settings, step, rate):
    assert optim.learning_rate(OptimizerConfig(learning_rate=1.0, **settings), step, 1000) == pytest.approx(rate)


@pytest.mark.parametrize(("clip", "length"), [(0.0, 5.0), (1.0, 1.0), (10.0, 5.0)])
def test_the_gradient_is_clipped_to_a_norm(clip, length):
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW(
        [weight], eps=1e6, weight_decay=0
    )  # with so large an eps, a step is a scaled gradient
    weight.grad = torch.tensor([3.0, 4.0])
    norm = optim.apply(optimizer, OptimizerConfig(grad_clip=clip), 1e6)
    assert float(norm) == pytest.approx(5)
    torch.testing.assert_close(weight.detach().norm(), torch.tensor(length), rtol=1e-3, atol=0)
    assert weight.grad is None


@pytest.mark.parametrize(("ema", "step", "decay"), [(0.999, 1, 2 / 11), (0.5, 100, 0.5), (0.0, 100, 0.0)])
def test_the_decay_of_the_averaged_weights_ramps_up(ema, step, decay):
    model, average = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    nn.init.constant_(model.weight, 1.0)
    nn.init.constant_(average.weight, 0.0)
    model.running_mean.fill_(7)
    optim.average(average, model, OptimizerConfig(ema_decay=ema), step)
    assert float(average.weight.detach()) == pytest.approx(1 - decay)
    assert float(average.running_mean) == 7


def test_the_first_value_that_is_not_finite_is_named():
    finite, not_finite = torch.ones(2), torch.tensor([1.0, float("nan")])
    assert optim.first_not_finite({"a": finite, "b": not_finite}) == "b"
    assert optim.first_not_finite({"a": finite}) == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.0},
        {"betas": (0.9, 1.0)},
        {"ema_decay": 1.0},
        {"decay": 0.0},
        {"decay_every": 0},
        {"grad_clip": -1.0},
    ],
)
def test_invalid_settings_are_errors_that_name_the_field(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        OptimizerConfig(**settings)
