"""Limits on the requests of visitors and programs."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from twostage.audio.sound_files import info
from twostage.utils.errors import AudioError, ConfigError


class TooMuch(AudioError):
    """More files or sound than one request may contain."""


@dataclass(frozen=True)
class Limits:
    """``mb`` per upload; ``seconds`` of sound per request, summed over files and channels; ``files`` per request.

    At most ``queue`` requests wait while ``jobs`` run. Uploads and results are deleted after ``keep`` seconds and
    take at most ``total_mb`` on the disk at any time, summed over all users.
    """

    mb: int = 100
    seconds: int = 600
    files: int = 20
    queue: int = 20
    jobs: int = 1
    keep: int = 3600
    total_mb: int = 4000

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ConfigError(f"limit {field.name} is {getattr(self, field.name)}, must be at least 1")

    def check_count(self, files: Sequence[Path]) -> None:
        if not files:
            raise AudioError("Nothing to restore: add a file, record something, or use the sample.")
        if len(files) > self.files:
            raise TooMuch(f"{len(files)} files at once are too many; the limit is {self.files}")

    def check_length(self, path: Path, before: float = 0.0) -> float:
        """Seconds of sound in a file, summed over channels. Raises TooMuch if the sum with ``before`` is too long."""
        file_info = info(path)
        seconds = file_info.seconds * file_info.channels
        self.check_seconds(path, before + seconds)
        return seconds

    def check_seconds(self, path: Path, seconds: float) -> None:
        """Raise TooMuch if ``seconds``, those of all files up to and including ``path``, exceed the limit."""
        if seconds > self.seconds:
            raise TooMuch(
                f"too long, the channels so far have {seconds:.0f} s of sound together; "
                f"the limit is {self.seconds} s; the command `twostage restore` accepts any length",
                subject=path,
            )
