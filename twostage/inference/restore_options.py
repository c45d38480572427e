"""The settings of a restoration, checked."""

from dataclasses import dataclass
from math import isfinite

from twostage.utils.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """How to restore: ``seconds`` of a window, ``level`` "input" or "model", ``keep_low_band`` in Hz (0: nothing).

    ``sample_rate`` of the output file: "model" or "input". ``batch`` windows are processed by the model at once.
    ``salvage`` restores the readable part of a truncated or damaged file, with a warning that says what is missing.
    ``if_full_band``: how to treat a channel that is already full-band: "restore", with a warning, "copy" or "error".
    """

    seconds: float = 10.0
    level: str = "input"
    keep_low_band: float = 0.0
    sample_rate: str = "model"
    overwrite: bool = False
    batch: int = 1
    salvage: bool = False
    if_full_band: str = "restore"

    def __post_init__(self) -> None:
        for name, types in (("batch", int), ("seconds", int | float), ("keep_low_band", int | float)):
            value = getattr(self, name)
            if not isinstance(value, types) or isinstance(value, bool):
                raise ConfigError(f"{name} is {value!r}, must be a {'whole ' * (types is int)}number")
        if self.batch < 1:
            raise ConfigError(f"batch is {self.batch}, must be at least 1")
        if not self.seconds > 0:
            raise ConfigError(f"seconds is {self.seconds}, must be positive")
        if self.level not in ("input", "model"):
            raise ConfigError(f"level is {self.level!r}, must be 'input' or 'model'")
        if self.sample_rate not in ("input", "model"):
            raise ConfigError(f"sample_rate is {self.sample_rate!r}, must be 'input' or 'model'")
        if self.if_full_band not in ("restore", "copy", "error"):
            raise ConfigError(f"if_full_band is {self.if_full_band!r}, must be 'restore', 'copy' or 'error'")
        if not (self.keep_low_band >= 0 and isfinite(self.keep_low_band)):
            raise ConfigError(f"keep_low_band is {self.keep_low_band}, must be 0 Hz or more")
