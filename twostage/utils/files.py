"""Files that appear under their names when they are complete, and the folders that contain them."""

import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from twostage.utils.errors import OutputError, reason_of

# seconds before each further try to rename a file; elsewhere, another process that reads a file does not prevent it
RETRIES = (0.05, 0.1, 0.2, 0.4, 0.8) if sys.platform == "win32" else ()
PARTIAL = ".part"  # suffix of incomplete files
LATER_BYTES = bytes(range(0x80, 0xC0))  # continuation bytes of UTF-8, at the start of a cut name


def check_writable(path: Path, overwrite: bool) -> None:
    """Raise an error if ``path`` exists already and may not be replaced."""
    try:
        if path.is_dir():
            raise OutputError("is a folder", subject=path)
        if path.exists() and not overwrite:
            raise OutputError("exists already (--overwrite replaces it)", subject=path)
    except OSError as error:
        raise OutputError(f"cannot be written ({reason_of(error)})", subject=path) from None


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make this folder ({reason_of(error)})", subject=path) from None


def partial_name(path: Path) -> Path:
    """A hidden name beside ``path`` for an incomplete file, unique and no longer than file systems allow.

    It ends with the process ID, which can be the same on machines that share a disk, hence the random part.
    """
    stem = os.fsdecode(os.fsencode(path.name)[-100:].lstrip(LATER_BYTES))
    return path.with_name(f".{stem}.{secrets.token_hex(4)}.{os.getpid()}{PARTIAL}")


def sweep(folder: Path) -> None:
    """Remove incomplete files of killed processes in ``folder``; no other process may be writing to it."""
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """A hidden name to write to, which is renamed to ``path`` if the block succeeds; otherwise it is removed.

    Raises OutputError if ``path`` cannot be written, or exists and may not be replaced.
    """
    path = Path(path)
    check_writable(path, overwrite)
    make_folder(path.parent)
    partial = partial_name(path)
    try:
        yield partial
        check_writable(path, overwrite)  # it may have been created in the meantime
        publish(partial, path)
    except OSError as error:
        raise OutputError(f"cannot be written ({reason_of(error)})", subject=path) from None
    finally:
        partial.unlink(missing_ok=True)


def publish(partial: Path, path: Path) -> None:
    """Rename ``partial``, complete and on the same disk, to ``path``; all files of the package are published this way.

    A reader of ``path``, even after a kill or a crash of the machine, finds either the complete old or the complete new
    file: the content is flushed to disk before it is renamed, and the name before this returns. Raises OSError.
    """
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    _rename(partial, path)
    _flush_folder(path.parent)


def _rename(partial: Path, path: Path) -> None:
    """Rename; Windows refuses it while a virus scanner or another reader has one of the files open."""
    for pause in RETRIES:
        try:
            return os.replace(partial, path)
        except PermissionError:
            time.sleep(pause)
    os.replace(partial, path)


def _flush_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to the disk, if the system allows folders to be opened and flushed."""
    with suppress(OSError):  # PermissionError on Windows; EINVAL on some file systems
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
