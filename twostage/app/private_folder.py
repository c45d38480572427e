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
except ImportError:  # on Windows, open files cannot be removed, which has the same effect
    fcntl = None  # type: ignore[assignment]

PREFIX = "twostage-app-"
LOCK = "lock"  # a file that a running server locks; the system releases the lock when the process ends
YOUNG = 60.0  # seconds during which a folder without a lock may belong to a server that is starting

logger = logging.getLogger(__name__)


@contextmanager
def private_folder(parent: str | Path | None = None) -> Iterator[Path]:
    """A new folder in ``parent`` (default: the temporary folder) within the block.

    Python's temporary files are created in it, too. Folders of killed servers are removed first.
    """
    parent_folder = Path(parent or tempfile.gettempdir())
    sweep_abandoned(parent_folder)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent_folder, ignore_cleanup_errors=True) as name:
        home = Path(name).resolve()
        with _locked(home / LOCK), _temporary_files_in(home):
            yield home


def sweep_abandoned(parent: Path) -> int:
    """Remove the folders in ``place`` whose server has ended; returns their number."""
    abandoned = [folder for folder in parent.glob(f"{PREFIX}*") if _is_ours(folder) and _is_abandoned(folder)]
    for folder in abandoned:
        shutil.rmtree(folder, ignore_errors=True)
        logger.info("removed %s, the folder of a server that was killed", folder)
    return len(abandoned)


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    previous, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = previous


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder of this user and not a link, because other users can write to a shared folder."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and (not hasattr(os, "getuid") or status.st_uid == os.getuid())


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
