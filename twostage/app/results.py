"""Results of `twostage evaluate` and `twostage compare` below a root folder. Nothing outside the root is read."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twostage.evaluation.pictures import file_name
from twostage.evaluation.report import CLEAN, RAW
from twostage.evaluation.results import PICTURES, SOUNDS, TABLE
from twostage.utils.errors import ConfigError, DataError, TwoStageError, reason_of

DEPTH = 4  # maximum depth of folders below the root


@dataclass(frozen=True)
class ResultFolders:
    """The folders below ``root`` that contain a table, by relative path; without links and hidden folders.

    Names that `names` does not return, such as "..", absolute paths and links, are refused.
    """

    root: Path

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise ConfigError(f"--results {self.root}: no such folder")

    def names(self) -> list[str]:
        return sorted(folder.relative_to(self.root).as_posix() for folder in self._folders())

    def _folders(self) -> Iterator[Path]:
        for parent, below, _ in os.walk(self.root):  # does not follow links
            folder = Path(parent)
            at_limit = len(folder.relative_to(self.root).parts) >= DEPTH
            below[:] = [] if at_limit else sorted(name for name in below if not name.startswith("."))
            if self._is_inside(folder / TABLE):
                yield folder

    def unrooted(self, error: Exception) -> Exception:
        """Remove the root, which visitors must not see, from the subject of ``error``."""
        if isinstance(error, TwoStageError):
            error.subject = error.subject.removeprefix(f"{self.root}/")
        return error

    def table(self, name: str) -> str:
        """The table of a folder in Markdown."""
        path = self._folder(name) / TABLE
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = reason_of(error)
            raise DataError(f"cannot be read ({reason})", subject=f"{name}/{TABLE}") from None

    def pictures(self, name: str) -> list[Path]:
        """The images of a folder: charts first, then spectrograms."""
        folder = self._folder(name)
        return self._inside([*folder.glob("*.png"), *folder.glob(f"{PICTURES}/*.png")])

    def sounds(self, name: str) -> dict[str, dict[str, Path]]:
        """The sounds of each kept utterance by system: the raw input first, the clean speech last."""
        by_utterance: dict[str, dict[str, Path]] = {}
        files = self._inside(self._folder(name).glob(f"{SOUNDS}/*/*.flac"))
        for path in sorted(files, key=lambda path: (path.stem == CLEAN, path.stem != file_name(RAW))):
            by_utterance.setdefault(path.parent.name, {})[path.stem.replace("_", " ")] = path
        return dict(sorted(by_utterance.items()))

    def _folder(self, name: str) -> Path:
        if name not in self.names():
            raise DataError("no results with this name", subject=name)
        return self.root / name

    def _inside(self, paths: Iterator[Path] | list[Path]) -> list[Path]:
        inside = [path for path in paths if self._is_inside(path)]
        return sorted(inside, key=lambda path: (len(path.parts), path.name))

    def _is_inside(self, path: Path) -> bool:
        """Whether it is a regular file whose path contains no link."""
        return path.is_file() and path.resolve() == self.root.resolve() / path.relative_to(self.root)
