"""Balances losses: each is divided by the norm of its gradient at the last layer, averaged over steps.

Source: Defossez et al., "High Fidelity Neural Audio Compression" (EnCodec), 2022, section 3.4, in the form used by the
authors of EBEN: gradients at the last layer's weights, a momentum of 0.9, and an average that starts from the first
norm.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

MOMENTUM = 0.9
LEAST, MOST = 1e-4, 1e4  # lower limit of a gradient norm, upper limit of a factor


class LossBalancer:
    """Keeps the averaged gradient norms (``lengths``) by name of loss, which are part of the state of a training."""

    def __init__(self) -> None:
        self.lengths: dict[str, Tensor] = {}

    def factors(self, losses: Mapping[str, Tensor], last_layer: Tensor) -> dict[str, Tensor]:
        """The factors of ``losses``, in (0, MOST], without gradient; updates the averages by one step."""
        gradients = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in losses.values()]
        lengths = mean_of_processes(torch.stack([gradient.norm() for gradient in gradients]).detach())
        for name, length in zip(losses, lengths.unbind(), strict=True):
            average = self.lengths.get(name, length).to(length.device)
            self.lengths[name] = MOMENTUM * average + (1 - MOMENTUM) * length
        return {name: (1 / (self.lengths[name] + LEAST)).clamp(max=MOST) for name in losses}


def mean_of_processes(value: Tensor) -> Tensor:
    """The mean over the processes of a distributed training; ``value`` itself without one."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.SUM)
        value = value / torch.distributed.get_world_size()
    return value
