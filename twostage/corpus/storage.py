"""Folders and files that may be remote: local paths and the URLs that fsspec supports, such as s3:// and gs://.

Written files appear under their name only when they are complete: locally and on file servers by renaming, and in
object stores because an upload is all or nothing.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from twostage.utils.errors import AudioError, ConfigError, OutputError, reason_of
from twostage.utils.files import make_folder, publish, replacing

SCRATCH = ".twostage"  # folder for incomplete files within a local folder, on the same disk
# protocols whose uploads are atomic, and whose renames are copies
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "memory"}


class Store:
    """A folder, local or at a URL; names in it are relative and use "/"."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError if no installed package can open ``url``."""
        self.url = url
        self._files, root = _opened(url)
        self._root = root.rstrip("/")
        self._atomic_uploads = bool(OBJECT_STORES & set(_protocols(self._files)))

    @property
    def local(self) -> Path | None:
        """The folder, if it is in a file system of this machine."""
        return Path(self._root or "/") if "file" in _protocols(self._files) else None

    def path(self, name: str) -> str:
        """The name of a file in messages."""
        return str(self.local / name) if self.local is not None else f"{self.url.rstrip('/')}/{name}"

    def holds(self, source: str) -> bool:
        """Whether the file ``source``, a path or URL, is in the folder."""
        files, path = _opened(source)
        if self.local is not None:
            return "file" in _protocols(files) and Path(path).resolve().is_relative_to(self.local.resolve())
        return set(_protocols(files)) == set(_protocols(self._files)) and path.startswith(f"{self._root}/")

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders directly in ``folder``, sorted; none if there is no such folder."""
        self._files.invalidate_cache()
        try:
            paths = self._files.ls(self._at(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        prefix = f"{folder}/" if folder else ""
        return sorted(prefix + PurePosixPath(path).name for path in paths)

    def read(self, names: Sequence[str]) -> list[bytes]:
        """Contents of files, fetched together. Raises OutputError."""
        if not names:
            return []
        try:
            contents = self._files.cat([self._at(name) for name in names])
        except Exception as error:  # every kind of store has its own exceptions
            raise OutputError(f"cannot be read ({reason_of(error)})", subject=self.url) from None
        return [contents[self._at(name)] for name in names]

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, replacing one that exists."""
        with self._writing(name) as target:
            self._files.pipe_file(target, content)

    def deliver(self, file: Path, name: str) -> None:
        """Move a local file from ``scratch()`` to ``name``, replacing an existing one."""
        if self.local is None:
            with self._writing(name) as target_path:
                self._files.put_file(str(file), target_path)
            return
        target = self.local / name
        if not target.parent.resolve().is_relative_to(self.local.resolve()):
            raise OutputError(f"leads out of {self.url} by a symbolic link", subject=target)
        make_folder(target.parent)
        try:
            publish(file, target)  # flushed to disk, so that the table never lists a file that a crash loses
        except OSError as error:
            raise OutputError(f"cannot be written ({reason_of(error)})", subject=target) from None

    def remove(self, names: Sequence[str]) -> None:
        """Delete files; a file that does not exist is not an error."""
        for name in names:
            try:
                self._files.rm_file(self._at(name))
            except FileNotFoundError:
                continue

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A local folder for one incomplete file; ``sweep`` removes those of killed processes."""
        parent = None
        if self.local is not None:
            parent = self.local / SCRATCH
            make_folder(parent)
        with tempfile.TemporaryDirectory(dir=parent, prefix="twostage-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def sweep(self) -> None:
        if self.local is not None:
            shutil.rmtree(self.local / SCRATCH, ignore_errors=True)

    @contextmanager
    def _writing(self, name: str) -> Iterator[str]:
        """The path to which the content of ``name`` is to be written."""
        if self.local is not None:
            with replacing(self.local / name) as hidden:
                yield str(hidden)
            return
        try:
            if self._atomic_uploads:
                yield self._at(name)
                return
            target = PurePosixPath(self._at(name))
            partial = str(target.with_name(f".{target.name[-100:]}.{uuid4().hex}.part"))
            self._files.makedirs(str(target.parent), exist_ok=True)
            yield partial
            self._files.mv(partial, str(target))
        except Exception as error:  # as in read
            raise OutputError(f"cannot be written ({reason_of(error)})", subject=self.path(name)) from None

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def fetch(source: str, folder: Path) -> Path:
    """The file ``source``, a path or URL, as a local file: itself, or a copy in ``folder``. Raises AudioError."""
    files, path = _opened(source)
    if "file" in _protocols(files):
        return Path(path)
    copy = folder / f"given{PurePosixPath(path).suffix}"
    try:
        files.get_file(path, str(copy))
    except FileNotFoundError:
        raise AudioError("no such file", subject=source) from None
    except Exception as error:  # as in Store.read
        raise AudioError(f"cannot be read ({reason_of(error)})", subject=source) from None
    if not copy.is_file():
        raise AudioError("is a folder, not a sound file", subject=source)
    return copy


def read_text(source: str) -> str:
    """The text of a file, a path or URL. Raises ConfigError."""
    files, path = _opened(source)
    try:
        return str(files.cat_file(path).decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigError("not a text file", subject=source) from None
    except FileNotFoundError:
        raise ConfigError("no such file", subject=source) from None
    except Exception as error:  # as in Store.read
        raise ConfigError(f"cannot be read ({reason_of(error)})", subject=source) from None


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path in it."""
    require("fsspec")
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{reason_of(error)}", subject=url) from None
    return files, path


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)


def require(*packages: str) -> None:
    """Raises ConfigError if one of the extra's packages is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise ConfigError(f"a corpus needs {package}: pip install 'twostage[cluster]'")
