"""The arithmetic of convolutions: float32 everywhere, bfloat16 on machines that support it.

Spectrograms, log-mels, Griffin-Lim and audio are float32 in both cases: eight bits are too few for a logarithm or a
phase.
"""

from typing import TypeVar

import torch
from torch import nn

from twostage.utils.errors import ConfigError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and ARM, as torch names them
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)

M = TypeVar("M", bound=nn.Module)


def computes_bfloat16(device: str | torch.device) -> bool:
    """Whether ``device`` has instructions for bfloat16; torch emulates them elsewhere, several times slower."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.device(device).type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in INSTRUCTIONS)


def shortfall(precision: str, device: str | torch.device) -> str:
    """The reason why ``device`` gets float32 although ``precision`` is lower; empty if it gets ``precision``."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}, must be one of {', '.join(PRECISIONS)}")
    if PRECISIONS[precision] is torch.float32 or computes_bfloat16(device):
        return ""
    return f"precision {precision}: this machine's {torch.device(device).type} does not support it; float32 is used"


def convert(model: M, precision: str) -> M:
    """Store and run the convolutions of a folded ``model`` in ``precision``; returns ``model``."""
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):
            module.to(PRECISIONS[precision])
    return model
