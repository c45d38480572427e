"""Distributed training: the environment of torchrun, and DistributedDataParallel."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from twostage.utils.devices import device_for


@dataclass(frozen=True)
class Team:
    """This process among ``world`` processes; the one with ``rank`` 0 writes files."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def wrap(self, module: nn.Module) -> nn.Module:
        """``module`` with its gradients averaged over the processes."""
        if self.world == 1:
            return module
        # no broadcast of buffers, as a copy within a step would break its backward. They are equal in all processes but
        # for statistics of batches, of which each process keeps those of its own
        return DistributedDataParallel(module, broadcast_buffers=False)

    def gather(self, value: Any) -> list[Any]:
        """The values that all processes pass to this call, by rank."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        distributed.all_gather_object(values, value)
        return values


@contextmanager
def team(device: str) -> Iterator[Team]:
    """Join the processes that torchrun started; without torchrun, a team of one. ``device``: one of ``DEVICES``."""
    kind = device_for(device)
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    torch_device = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
    if "WORLD_SIZE" not in os.environ:
        yield Team(torch_device)
        return
    if kind == "cuda":
        torch.cuda.set_device(torch_device)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Team(torch_device, distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
