"""Files that take their names when they are complete, and the folders that they lie in."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twostage.errors import OutputError


def check_writable(path: Path, overwrite: bool) -> None:
    """An error if ``path`` exists already and may not be replaced."""
    if path.is_dir():
        raise OutputError(f"{path}: is a folder")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already (--overwrite replaces it)")


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot make this folder ({error.strerror})") from None


def partial_name(path: Path) -> Path:
    """A hidden name beside ``path`` for what is not complete yet."""
    return path.with_name(f".{path.name[-100:]}.{os.getpid()}.part")


@contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """A hidden name to write to, which becomes ``path`` when the block ends well; nothing is left when it does not.

    Raises OutputError if ``path`` cannot be written, or exists and may not be replaced.
    """
    path = Path(path)
    check_writable(path, overwrite)
    make_folder(path.parent)
    partial = partial_name(path)
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        partial.unlink(missing_ok=True)
