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
    """``mb`` of one upload; ``seconds`` of sound in one request, over its files and channels; ``files`` of one request.

    ``queue`` requests wait while ``jobs`` are processed. Uploads and results are deleted after ``keep`` seconds and
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
            raise AudioError("Nothing to work on: drop a file, record something, or take the sample.")
        if len(files) > self.files:
            raise TooMuch(f"{len(files)} files at once are too many; at most {self.files} are taken here")

    def check_length(self, path: Path, before: float = 0.0) -> float:
        """Seconds of work in a sound file, its channels added up. Raises TooMuch if ``before`` leaves too few."""
        about = info(path)
        seconds = about.seconds * about.channels
        self.check_seconds(path, before + seconds)
        return seconds

    def check_seconds(self, path: Path, seconds: float) -> None:
        """``seconds`` are of all sound up to and with that of ``path``."""
        if seconds > self.seconds:
            raise TooMuch(
                f"too long, the channels so far have {seconds:.0f} s of sound together; "
                f"at most {self.seconds} s are taken here, the command `twostage restore` takes any length",
                subject=path,
            )
