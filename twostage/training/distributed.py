"""Several processes that train one model: torchrun's environment, and DistributedDataParallel."""

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
        # buffers stay as they are: they move alike in all processes, and a copy within a step would break its backward
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
    """Join the processes that torchrun started; a team of one if it started none. ``device``: one of ``DEVICES``."""
    kind = device_for(device)
    local = int(os.environ.get("LOCAL_RANK", 0))
    chosen = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if "WORLD_SIZE" not in os.environ:
        yield Team(chosen)
        return
    if kind == "cuda":
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Team(chosen, distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
