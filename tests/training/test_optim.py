"""Claims about how weights move."""

import pytest
import torch
from torch import nn

from twostage.training import optim
from twostage.training.optim import OptimizerConfig
from twostage.utils.errors import ConfigError


def test_settings_arrive_in_adamw():
    config = OptimizerConfig(learning_rate=0.3, betas=(0.7, 0.9), eps=1e-6, weight_decay=0.2)
    group = optim.adamw(nn.Linear(2, 2).parameters(), config).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.3, (0.7, 0.9), 1e-6, 0.2)


def test_frozen_weights_are_left_out():
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
def test_the_learning_rate_rises_shrinks_and_ends(settings, step, rate):
    assert optim.learning_rate(OptimizerConfig(learning_rate=1.0, **settings), step, 1000) == pytest.approx(rate)


@pytest.mark.parametrize(("clip", "length"), [(0.0, 5.0), (1.0, 1.0), (10.0, 5.0)])
def test_the_gradient_is_clipped_to_a_norm(clip, length):
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([weight], eps=1e6, weight_decay=0)  # so large an eps makes a step a scaled gradient
    weight.grad = torch.tensor([3.0, 4.0])
    norm = optim.apply(optimizer, OptimizerConfig(grad_clip=clip), 1e6)
    assert float(norm) == pytest.approx(5)
    torch.testing.assert_close(weight.detach().norm(), torch.tensor(length), rtol=1e-3, atol=0)
    assert weight.grad is None


@pytest.mark.parametrize(("ema", "step", "decay"), [(0.999, 1, 2 / 11), (0.5, 100, 0.5), (0.0, 100, 0.0)])
def test_the_average_ramps_up(ema, step, decay):
    model, average = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    nn.init.constant_(model.weight, 1.0)
    nn.init.constant_(average.weight, 0.0)
    model.running_mean.fill_(7)
    optim.average(average, model, OptimizerConfig(ema_decay=ema), step)
    assert float(average.weight.detach()) == pytest.approx(1 - decay)
    assert float(average.running_mean) == 7


def test_the_first_that_is_not_finite_is_named():
    good, bad = torch.ones(2), torch.tensor([1.0, float("nan")])
    assert optim.first_not_finite({"a": good, "b": bad}) == "b"
    assert optim.first_not_finite({"a": good}) == ""


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
def test_settings_that_cannot_be_name_the_field(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        OptimizerConfig(**settings)
