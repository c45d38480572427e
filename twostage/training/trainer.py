"""The training loop; mel regression, the GAN vocoder and fine-tuning differ only in its arguments."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from twostage.data.pairs import Pair
from twostage.training import optim
from twostage.training.adversary import Adversary, Precision
from twostage.training.loss_balancer import mean_of_processes
from twostage.training.losses import adaptive_weight
from twostage.training.optim import OptimizerConfig
from twostage.training.tasks import ADVERSARIAL, LossWeights, Output, Task, named, total
from twostage.utils.errors import TwoStageError


class TaskModule(nn.Module):
    """A model with its task as one forward, as DistributedDataParallel requires."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, pair: Pair) -> Output:
        return self.task(self.model, pair)


@dataclass
class Training:
    """The complete state of a training. ``best`` is the best score so far, ``settings`` are plain values.

    ``data`` is the fingerprint of the training and validation data.
    """

    model: nn.Module
    optimizing: OptimizerConfig
    adversary: Adversary | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    best: float | None = None

    def __post_init__(self) -> None:
        self.optimizer = optim.adamw(self.model.parameters(), self.optimizing)
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers, for checkpoint.save_state."""
        return {
            "settings": dict(self.settings),
            "data": dict(self.data),
            "step": self.step,
            "best": self.best,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "adversary": self.adversary.state_dict() if self.adversary else None,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.best = state["step"], state["best"]
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.adversary:
            self.adversary.load_state_dict(state["adversary"])
        torch.set_rng_state(state["rng"])
        if len(state["cuda_rng"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda_rng"])


@dataclass(frozen=True)
class StepResult:
    """The result of one step: unweighted loss terms, gradient norms, and seconds waiting for data and in total."""

    values: dict[str, Tensor]
    waited: float
    seconds: float


StepCallback = Callable[[Training, StepResult], None]


def fit(
    training: Training,
    task: Task,
    batches: Iterator[Pair],
    weights: LossWeights,
    *,
    steps: int,
    report: StepCallback = lambda *_: None,
    precision: Precision = nullcontext,
    wrap: Callable[[nn.Module], nn.Module] = nn.Module.train,
    last_layer: Tensor | None = None,
) -> None:
    """Train from ``training.step``, where ``batches`` begin, to ``steps``; ``report`` is called after every step.

    ``precision`` returns the context (autocast) of the task, ``wrap`` distributes the model with its task;
    ``last_layer`` is the weight at which an adaptive adversarial loss is balanced.
    """
    device = next(training.model.parameters()).device
    task_module = wrap(TaskModule(training.model.train(), task))
    while training.step < steps:
        started = time.perf_counter()
        pair = Pair(*(channel.to(device, non_blocking=True) for channel in next(batches)))
        waited = time.perf_counter() - started
        rate = optim.learning_rate(training.optimizing, training.step, steps)
        with precision():
            output = task_module(pair)
        values = _learn(training, output, weights, rate, last_layer)
        training.step += 1
        optim.average(training.ema, training.model, training.optimizing, training.step)
        report(training, StepResult(values, waited, time.perf_counter() - started))


def _learn(
    training: Training, output: Output, weights: LossWeights, rate: float, last_layer: Tensor | None
) -> dict[str, Tensor]:
    """A step of the discriminators, if it is due, and a step of the model."""
    adversary, terms, logs, factors = training.adversary, output.terms, {}, {}
    pending = ADVERSARIAL if adversary else ()
    if adversary and training.step >= adversary.config.start:
        if output.fake is None or output.real is None:
            raise TwoStageError("this task has no output for an adversary")
        if (training.step - adversary.config.start) % adversary.config.generator_steps == 0:
            logs = adversary.train_step(output.fake, output.real, rate)
        losses = adversary.generator_loss(output.fake, output.real, matching=bool(weights.fm))
        terms, pending = terms | losses, ()
        if adversary.config.adaptive and last_layer is not None:
            factors = _factors(adversary, terms, weights, last_layer)
            logs |= {f"adaptive_{name}": factor for name, factor in factors.items()}
    loss = total({name: term * factors.get(name, 1) for name, term in terms.items()}, weights, pending)
    loss.backward()
    logs["grad_norm"] = optim.apply(training.optimizer, training.optimizing, rate)
    return {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}, **logs}


def _factors(
    adversary: Adversary, terms: dict[str, Tensor], weights: LossWeights, last_layer: Tensor
) -> dict[str, Tensor]:
    """The factors of the losses of an adaptive adversary, by their names."""
    if adversary.config.adaptive == "each":
        by_name = named(weights)
        return adversary.balancer.factors({name: term for name, term in terms.items() if by_name.get(name)}, last_layer)
    content = {name: term for name, term in terms.items() if name != "adv"}
    weight = adaptive_weight(total(content, weights, ADVERSARIAL), terms["adv"], last_layer)
    return {"adv": mean_of_processes(weight)}
