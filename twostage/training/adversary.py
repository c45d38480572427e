"""Adversarial training of a generator: the discriminators with their optimizer.

Source of the procedure: Kong et al., "HiFi-GAN", 2020, section 2.4.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from twostage.training import optim
from twostage.training.discriminators.audio import DiscriminatorConfig, Discriminators
from twostage.training.discriminators.mel import MelDiscriminator, MelDiscriminatorConfig
from twostage.training.loss_balancer import LossBalancer
from twostage.training.losses import (
    discriminator_hinge,
    discriminator_least_squares,
    feature_matching,
    generator_bounded_hinge,
    generator_hinge,
    generator_least_squares,
)
from twostage.training.optim import OptimizerConfig
from twostage.utils.errors import ConfigError

LOSSES = {
    "least_squares": (discriminator_least_squares, generator_least_squares),
    "hinge": (discriminator_hinge, generator_hinge),
    "bounded_hinge": (discriminator_hinge, generator_bounded_hinge),
}
Precision = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class AdversaryRules:
    """Settings of every adversary.

    ``adaptive`` scales the adversarial loss so that the norm of its gradient at the generator's last layer equals that
    of all other losses together, before its weight (Esser et al., VQGAN, 2021). With "each", every loss is scaled so
    that the norm of its gradient there equals its weight (``LossBalancer``).
    """

    loss: str = "least_squares"  # least_squares, hinge, or bounded_hinge (no gradient for logits above one)
    start: int = 0  # steps with content losses only, before it starts
    generator_steps: int = 1  # generator steps per discriminator step
    adaptive: bool | str = False  # true: scale the adversarial loss to the others; "each": every loss; false: none
    match_logits: bool = True  # feature matching includes logits, as in HiFi-GAN; false: as in MelGAN and EBEN
    init_from: str = ""  # where discriminators start: a shipped model (base), a run directory, or a state.pt

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ConfigError(f"adversary.loss is {self.loss!r}, must be one of {', '.join(LOSSES)}")
        if self.adaptive not in (False, True, "each"):
            raise ConfigError(f"adversary.adaptive is {self.adaptive!r}, must be true, false or 'each'")
        if self.start < 0 or self.generator_steps < 1:
            raise ConfigError(
                f"adversary.start is {self.start}, must not be negative; "
                f"adversary.generator_steps is {self.generator_steps}, must be at least 1"
            )

    def discriminators(self) -> nn.Module:
        """New discriminators: from real or fake signals to lists of feature maps, the last of which are the logits."""
        raise NotImplementedError


@dataclass(frozen=True)
class AdversaryConfig(AdversaryRules):
    """The adversary of a vocoder: discriminators of audio (B, 1, T)."""

    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)  # of audio

    def discriminators(self) -> nn.Module:
        return Discriminators(self.discriminator)


@dataclass(frozen=True)
class MelAdversaryConfig(AdversaryRules):
    """The adversary of a restorer: a discriminator of log-mels (B, n_mels, L).

    Its section has a separate name, so that one file can contain the discriminators of both stages.
    """

    mel_discriminator: MelDiscriminatorConfig = field(default_factory=MelDiscriminatorConfig)  # of log-mels

    def discriminators(self) -> nn.Module:
        return MelDiscriminator(self.mel_discriminator)


class DiscriminatorLoss(nn.Module):
    """The loss of the discriminators as one forward, as DistributedDataParallel requires."""

    def __init__(self, discriminators: nn.Module, loss: str) -> None:
        super().__init__()
        self.discriminators, self.loss = discriminators, LOSSES[loss][0]

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        return self.loss(_float(self.discriminators(real)), _float(self.discriminators(fake)))


class Adversary:
    """Discriminators of real and fake audio or log-mels, and the adversarial loss of the generator."""

    def __init__(
        self,
        config: AdversaryRules,
        optimizer: OptimizerConfig,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = nullcontext,
        wrap: Callable[[nn.Module], nn.Module] = nn.Module.train,
    ) -> None:
        """``precision`` returns the context (autocast) of forwards; ``wrap`` distributes the loss module."""
        self.config, self._optimizer_config, self._precision = config, optimizer, precision
        self.discriminators = config.discriminators().to(device)
        self.optimizer = optim.adamw(self.discriminators.parameters(), optimizer)
        self.balancer = LossBalancer()
        self._discriminator_loss = wrap(DiscriminatorLoss(self.discriminators, config.loss))

    def train_step(self, fake: Tensor, real: Tensor, rate: float) -> dict[str, Tensor]:
        """Train the discriminators for one step with learning rate ``rate``, without a gradient for the generator."""
        with self._precision():
            loss = self._discriminator_loss(fake.detach(), real)
        loss.backward()
        return {
            "discriminator_loss": loss.detach(),
            "discriminator_grad_norm": optim.apply(self.optimizer, self._optimizer_config, rate),
        }

    def generator_loss(self, fake: Tensor, real: Tensor, *, matching: bool = True) -> dict[str, Tensor]:
        """The generator's losses: "adv" and, if ``matching``, "fm". The discriminators are not trained."""
        self.discriminators.requires_grad_(False)
        with self._precision():
            fakes = _float(self.discriminators(fake))
            with torch.no_grad():
                reals = _float(self.discriminators(real)) if matching else []
        self.discriminators.requires_grad_(True)
        losses = {"adv": LOSSES[self.config.loss][1](fakes)}
        return losses | {"fm": feature_matching(reals, fakes, logits=self.config.match_logits)} if matching else losses

    def state_dict(self) -> dict[str, Any]:
        return {
            "discriminators": self.discriminators.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lengths": dict(self.balancer.lengths),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.discriminators.load_state_dict(state["discriminators"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.balancer.lengths = dict(state.get("lengths", {}))  # states of earlier versions have none


def _float(maps: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[m.float() for m in discriminator] for discriminator in maps]
