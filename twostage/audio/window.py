"""A part of a file as a file object, with a prefix or with some bytes replaced."""

import io
import os
from collections.abc import Mapping
from pathlib import Path


class Window(io.RawIOBase):
    """Bytes ``start`` to ``end`` of the file ``path``, after ``prefix``; read-only.

    ``patches`` are bytes that replace the file's own, by their position in the file.
    """

    def __init__(
        self,
        path: str | Path,
        start: int = 0,
        end: int | None = None,
        *,
        prefix: bytes = b"",
        patches: Mapping[int, bytes] | None = None,
    ) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed by ``close``
        size = os.fstat(self._file.fileno()).st_size
        self._start, self._end = start, size if end is None else min(end, size)
        self._prefix, self._patches = prefix, dict(patches or {})
        self._position = 0

    def __len__(self) -> int:
        return len(self._prefix) + max(0, self._end - self._start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self)}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), max(0, len(self) - self._position))
        data = self._prefix[self._position : self._position + size]
        if len(data) < size:
            position = self._start + self._position + len(data) - len(self._prefix)
            self._file.seek(position)
            data += self._patched(position, self._file.read(size - len(data)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _patched(self, position: int, data: bytes) -> bytes:
        for at, patch in self._patches.items():
            first, last = max(at, position), min(at + len(patch), position + len(data))
            if first < last:
                data = data[: first - position] + patch[first - at : last - at] + data[last - position :]
        return data

    def close(self) -> None:
        self._file.close()
        super().close()
