"""What a visitor of the page may ask of this machine."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from twostage.audio.sound_files import info
from twostage.utils.errors import AudioError, ConfigError


@dataclass(frozen=True)
class Limits:
    """``mb`` of one upload; ``seconds`` of sound in one file, its channels added up; ``files`` of one request.

    ``queue`` requests wait while ``jobs`` are worked on; uploads and results are deleted after ``keep`` seconds.
    """

    mb: int = 100
    seconds: int = 600
    files: int = 20
    queue: int = 20
    jobs: int = 1
    keep: int = 3600

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ConfigError(f"limit {field.name} is {getattr(self, field.name)}, must be at least 1")

    def check_count(self, files: Sequence[Path]) -> None:
        if not files:
            raise AudioError("Nothing to work on: drop a file, record something, or take the sample.")
        if len(files) > self.files:
            raise AudioError(f"{len(files)} files at once are too many; this page takes {self.files}")

    def check_length(self, path: Path) -> float:
        """Seconds of work in a sound file, each channel by itself. Raises AudioError if they are too many."""
        about = info(path)
        self.check_seconds(path, about.seconds * about.channels)
        return about.seconds

    def check_seconds(self, path: Path, seconds: float) -> None:
        if seconds > self.seconds:
            raise AudioError(
                f"too long, its channels have {seconds:.0f} s of sound together; "
                f"this page takes {self.seconds} s, the command `twostage restore` any length",
                subject=path,
            )
