"""Audio that is kept in a temporary file between its restoration and its output."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np

from twostage.audio.sound_files import block_length
from twostage.audio.types import Audio
from twostage.utils.errors import AudioError, reason_of
from twostage.utils.files import make_folder


class SpoolFile:
    """Blocks (C, T) that are written to a binary file and read back."""

    def __init__(self, file: BinaryIO, channels: int) -> None:
        self._file, self._channels = file, channels

    def write(self, block: Audio) -> None:
        data = memoryview(np.ascontiguousarray(block.T, dtype=np.float32).tobytes())
        while data:
            data = data[self._file.write(data) :]

    def blocks(self) -> Iterator[Audio]:
        self._file.seek(0)
        while data := self._file.read(block_length(self._channels) * self._channels * 4):
            yield np.frombuffer(data, np.float32).reshape(-1, self._channels).T


def check_space(target: Path, needed: int) -> None:
    """Raise AudioError before the work begins if the disk has no room for ``needed`` bytes."""
    make_folder(target.parent)
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        details = f"{needed / 1e6:.1f} MB are needed while it is written, {free / 1e6:.1f} are free"
        raise AudioError(f"cannot be written (No space left on device: {details})", subject=target)


@contextmanager
def spool_beside(target: Path, channels: int) -> Iterator[SpoolFile]:
    """An unnamed temporary file on the disk of the output; the system removes it even after a crash."""
    try:
        with TemporaryFile(dir=target.parent, buffering=0) as file:
            yield SpoolFile(file, channels)
    except OSError as error:
        raise AudioError(f"cannot be written ({reason_of(error)})", subject=target) from None
