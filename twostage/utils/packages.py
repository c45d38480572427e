"""Checks whether PyTorch and the packages of extras are installed, without importing them."""

import sys
from importlib.util import find_spec
from typing import Any

WITHOUT_TORCH = "PyTorch is not installed (pip install twostage installs it)"


def installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ImportError:  # raised by import hooks that block a package
        return False


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a tensor of PyTorch, without importing PyTorch, which must then be imported already."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def torch_threads() -> int | None:
    """PyTorch's number of threads, if it is in use."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())
