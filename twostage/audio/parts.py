"""The consecutive streams of a sound file, decoded by libsndfile or by the extra ``media``."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import soundfile

from twostage.audio import media_files
from twostage.audio.file_info import Info, block_length
from twostage.audio.types import Audio
from twostage.utils.errors import AudioError

UNKNOWN = 1 << 48  # samples: a stated length of at least this means that it is unknown
SALVAGE = media_files.SALVAGE
SLACK = 2304  # samples by which encoders and decoders of MPEG audio differ in length


class Defects:
    """Unusual properties (``notes``) and missing parts of a file; the latter are errors unless it is to be salvaged."""

    def __init__(self, path: str | Path, *, salvage: bool = False) -> None:
        self.path, self.salvage, self.notes = path, salvage, list[str]()

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def missing(self, text: str) -> None:
        """Raise AudioError for missing sound, or add a note if the rest is to be salvaged."""
        if not self.salvage:
            raise AudioError(f"{text} {SALVAGE}", subject=self.path)
        self.note(text)


class Part(Protocol):
    """One of the consecutive streams of a file."""

    info: Info

    def blocks(self, frames: int, start: int = 0) -> Iterator[Audio]:
        """Yield (C, <= frames) from sample ``start`` to the end."""

    def close(self) -> None: ...


class SndPart:
    """A stream that libsndfile reads.

    ``open`` opens it at its start. The first ``skip`` samples are not part of it. It has ``frames`` samples (None: as
    many as libsndfile reports); if ``exact``, fewer are an error.
    """

    def __init__(
        self,
        defects: Defects,
        open: Callable[[], soundfile.SoundFile],
        *,
        skip: int = 0,
        frames: int | None = None,
        exact: bool = False,
    ) -> None:
        self._defects, self._open, self._skip, self._exact = defects, open, skip, exact
        self._file = file = self._opened()
        self._at_start = True
        frames_stated = file.frames if frames is None else frames
        self.info = Info(file.samplerate, file.channels, frames_stated, file.format, file.subtype)
        if frames_stated >= UNKNOWN:  # for example a file that was written to a pipe
            self._exact = False
            counted = sum(block.shape[1] for block in self.blocks(block_length(file.channels)))
            self.info = replace(self.info, frames=counted)

    def blocks(self, frames: int, start: int = 0) -> Iterator[Audio]:
        skip = self._rewound(self._skip + start)
        total = start
        while (block := self._read(frames)).shape[1]:
            kept = block[:, skip:]
            skip -= block.shape[1] - kept.shape[1]
            total += kept.shape[1]
            if kept.shape[1]:
                yield kept
        # in damaged MPEG audio, libmpg123 stops as if the file ended; a difference of a frame or two is normal
        slack = SLACK if self.info.subtype.startswith("MPEG") else 0
        if (self._exact or slack) and total < self.info.frames - slack:
            self._defects.missing(f"truncated, {total} of {self.info.frames} samples can be read")

    def close(self) -> None:
        self._file.close()

    def _opened(self) -> soundfile.SoundFile:
        with quiet_mpeg():
            file = self._open()
        # soundfile seeks after every read of a seekable file, which resets decoders and changes their output
        file.seekable = lambda: False
        return file

    def _rewound(self, position: int) -> int:
        """Seek to a sample, or to the start if that is impossible; returns how many samples must be dropped."""
        if self._at_start and position == 0:
            self._at_start = False
            return 0
        self._at_start = False
        try:
            with quiet_mpeg():
                if soundfile.SoundFile.seekable(self._file) and self._file.frames < UNKNOWN:
                    self._file.seek(min(position, self._file.frames))
                    return 0
            self._file.close()
            self._file = self._opened()
            return position
        except soundfile.LibsndfileError as error:
            self._report_damage(error)
        return 0

    def _read(self, frames: int) -> Audio:
        try:
            with quiet_mpeg(self.info.subtype):
                return self._file.read(frames, dtype="float32", always_2d=True).T
        except soundfile.LibsndfileError as error:
            self._report_damage(error)
        return np.zeros((self.info.channels, 0), np.float32)

    def _report_damage(self, error: soundfile.LibsndfileError) -> None:
        self._defects.missing(f"damaged ({sndfile_reason(error)})")


class MediaPart:
    """A stream that the extra ``media`` reads."""

    def __init__(self, defects: Defects, file: media_files.MediaFile) -> None:
        self._defects, self._file, info = defects, file, file.info
        self.info = Info(info.sample_rate, info.channels, info.frames, info.container.upper(), info.codec.upper())

    def blocks(self, frames: int, start: int = 0) -> Iterator[Audio]:
        for block in self._file.blocks(frames):
            kept = block[:, start:]
            start -= block.shape[1] - kept.shape[1]
            if kept.shape[1]:
                yield kept
        for note in self._file.notes:
            self._defects.note(note)

    def close(self) -> None:
        self._file.close()


_STDERR = Lock()


@contextmanager
def quiet_mpeg(subtype: str = "MPEG") -> Iterator[None]:
    """Keep libmpg123 from writing to the terminal; libsndfile has no option for this."""
    if not subtype.startswith("MPEG"):
        yield
        return
    with _STDERR:
        try:
            stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        except OSError:  # there is no standard error
            yield
            return
        try:
            os.dup2(null, 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.close(null)


def sndfile_reason(error: soundfile.LibsndfileError) -> str:
    text = str(error.error_string).removeprefix("Error : ").rstrip(".")
    # libsndfile's message for MPEG audio that it cannot recognize
    return "Format not recognised" if "possibly a pipe" in text else text
