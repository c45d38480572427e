"""Optimization: AdamW, its learning rate schedule, gradient clipping, and the moving average of weights."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from twostage.utils.errors import ConfigError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, 2019) with the defaults of HiFi-GAN. Lengths are in steps."""

    learning_rate: float = 2e-4  # maximum
    betas: tuple[float, float] = (0.8, 0.99)  # decay of the moving averages of gradients and of their squares
    eps: float = 1e-8  # added to the root of the averaged squares
    weight_decay: float = 0.01  # per step, times the learning rate
    warmup: int = 0  # steps of linear increase of the learning rate from zero
    decay: float = 0.999  # factor of the learning rate per decay_every steps, applied continuously
    decay_every: int = 1000  # steps
    cooldown: int = 0  # last steps, with a linear decrease of the learning rate to zero
    grad_clip: float = 0.0  # maximum norm of the gradient; 0: no clipping
    ema_decay: float = 0.999  # decay of the moving average of the weights per step; 0: no average

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.eps <= 0:
            raise ConfigError(f"optimizer: learning_rate and eps must be positive: {self.learning_rate}, {self.eps}")
        if not all(0 <= value < 1 for value in (*self.betas, self.ema_decay)):
            raise ConfigError(f"optimizer: betas and ema_decay must be in [0, 1): {self.betas}, {self.ema_decay}")
        if not 0 < self.decay <= 1 or self.decay_every < 1:
            raise ConfigError(f"optimizer.decay is {self.decay}, must be in (0, 1]; decay_every must be at least 1")
        if min(self.warmup, self.cooldown, self.grad_clip, self.weight_decay) < 0:
            raise ConfigError("optimizer: warmup, cooldown, grad_clip and weight_decay must not be negative")


def adamw(parameters: Iterable[Tensor], config: OptimizerConfig) -> AdamW:
    """The optimizer of the trainable parameters."""
    return AdamW(
        [p for p in parameters if p.requires_grad],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of the step with index ``step`` of ``steps``.

    >>> config = OptimizerConfig(learning_rate=1.0, warmup=4, decay=0.5, decay_every=10, cooldown=5)
    >>> [round(learning_rate(config, step, 40), 3) for step in (0, 3, 10, 20, 37)]
    [0.25, 0.812, 0.5, 0.25, 0.046]
    """
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    fall = min(1.0, (steps - step) / config.cooldown) if config.cooldown else 1.0
    return config.learning_rate * rise * fall * config.decay ** (step / config.decay_every)


def apply(optimizer: AdamW, config: OptimizerConfig, rate: float) -> Tensor:
    """Clip the gradients and take a step; returns their norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, config.grad_clip or float("inf"))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


@torch.no_grad()
def average(ema: nn.Module, model: nn.Module, config: OptimizerConfig, step: int) -> None:
    """Move the weights of ``ema`` toward those of ``model``; the decay is min(ema_decay, (1 + step) / (10 + step)).

    The ramp makes the weights of the first steps decay quickly (TensorFlow's ExponentialMovingAverage). Buffers are
    copied.
    """
    decay = min(config.ema_decay, (1 + step) / (10 + step)) if config.ema_decay else 0.0
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
    for ema_buffer, buffer in zip(ema.buffers(), model.buffers(), strict=True):
        ema_buffer.copy_(buffer)


def first_not_finite(tensors: dict[str, Tensor]) -> str:
    """The name of the first tensor that is not finite; empty if all are."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), "")
