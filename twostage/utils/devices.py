"""Selects the device for computation. PyTorch is imported only if more than the CPU is requested."""

from twostage.utils.errors import ConfigError
from twostage.utils.packages import WITHOUT_TORCH, installed

DEVICES = ("auto", "cpu", "cuda", "mps")
DEVICE_HELP = "auto is cuda if available, else cpu; mps is the GPU of Apple's processors (default: auto)"


def available_devices() -> list[str]:
    """The devices that torch can use here, "cpu" first."""
    if not installed("torch"):
        return ["cpu"]
    import torch

    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return ["cpu", *(name for name, available in usable.items() if available)]


def device_for(name: str, setting: str = "device") -> str:
    """The device that a setting, one of ``DEVICES``, selects: "cpu", "cuda" or "mps".

    "auto" never selects "mps", because the operations that torch supports there change between versions. Raises
    ConfigError, which begins with ``setting``, for a device that is not available.
    """
    if name not in DEVICES:
        raise ConfigError(f"{setting} is {name!r}, must be one of {', '.join(DEVICES)}")
    if name == "cpu" or (name == "auto" and not installed("torch")):
        return "cpu"
    if not installed("torch"):
        raise ConfigError(f"{setting} {name}: {WITHOUT_TORCH}")
    usable = available_devices()
    if name == "auto":
        return "cuda" if "cuda" in usable else "cpu"
    if name not in usable:
        raise ConfigError(f"{setting} {name}: there is no {name.upper()} device that torch can use")
    return name
