"""Which device computes. Imports torch only where it is asked for more than a CPU."""

from twostage.utils.errors import ConfigError
from twostage.utils.packages import WITHOUT_TORCH, installed

DEVICES = ("auto", "cpu", "cuda", "mps")
DEVICE_HELP = "auto is cuda where there is one, else cpu; mps is that of Apple's processors (default: auto)"


def available_devices() -> list[str]:
    """Those that torch can use here, "cpu" first."""
    if not installed("torch"):
        return ["cpu"]
    import torch

    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return ["cpu", *(name for name, there in usable.items() if there)]


def device_for(name: str, setting: str = "device") -> str:
    """The device that a setting of one of ``DEVICES`` means: "cpu", "cuda" or "mps".

    "auto" is never "mps": which of torch's operations work there changes from version to version, so it has to be
    asked for. Raises ConfigError, which begins with ``setting``, for a device that is not there.
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
