"""The private folder of a server: deleted when the server ends, or by the next server if it was killed."""

import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed, which serves as well
    fcntl = None  # type: ignore[assignment]

PREFIX = "twostage-app-"
LOCK = "lock"  # a file that the living server holds locked; the system lets it go when the process dies
YOUNG = 60.0  # seconds in which a folder without a lock may be that of a server which is just starting

logger = logging.getLogger(__name__)


@contextmanager
def private_folder(parent: str | Path | None = None) -> Iterator[Path]:
    """A new folder below ``parent`` (default: the temporary folder) for as long as the block lasts.

    Within the block Python's temporary files are made in it too. Folders of servers that were killed are removed first.
    """
    place = Path(parent or tempfile.gettempdir())
    sweep_abandoned(place)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=place, ignore_cleanup_errors=True) as name:
        home = Path(name).resolve()
        with _locked(home / LOCK), _temporary_files_in(home):
            yield home


def sweep_abandoned(place: Path) -> int:
    """Remove the folders in ``place`` whose server has ended; returns their number."""
    abandoned = [folder for folder in place.glob(f"{PREFIX}*") if _is_ours(folder) and _is_abandoned(folder)]
    for folder in abandoned:
        shutil.rmtree(folder, ignore_errors=True)
        logger.info("removed %s, which a server that was killed had left", folder)
    return len(abandoned)


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder of this user and not a link: other users can write to a shared place."""
    try:
        about = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(about.st_mode) and (not hasattr(os, "getuid") or about.st_uid == os.getuid())


def _is_abandoned(folder: Path) -> bool:
    try:
        with (folder / LOCK).open("r") as file:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not fcntl:
            (folder / LOCK).unlink()
        return True
    except FileNotFoundError:
        with suppress(OSError):
            return time.time() - folder.stat().st_mtime > YOUNG
        return False
    except OSError:
        return False
