"""Reads sound files: everything that can be decoded, whatever length the header states; missing data is reported.

A file is read in blocks (C, T) of float32, full scale 1.0, and is never held in memory as a whole.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import soundfile

from twostage.audio import finding, media_files
from twostage.audio.containers import RAW, sound_parts
from twostage.audio.file_info import BLOCK, Info, block_length, check_plausible
from twostage.audio.parts import Defects, MediaPart, Part, sndfile_reason
from twostage.audio.types import Audio
from twostage.utils.errors import AudioError, reason_of

CAREFUL = 1024  # samples read at once from a file that may be damaged: an error loses at most as many


class Reader:
    """An open sound file. Raises AudioError, naming the file, for anything that prevents reading it completely.

    ``salvage`` reads the readable part of a truncated or damaged file. ``notes`` then say what is missing, and for a
    complete file what is unusual about it. They are complete once the file has been read.
    """

    def __init__(self, path: str | Path, *, salvage: bool = False) -> None:
        self.path, self._defects = path, Defects(path, salvage=salvage)
        _check_readable(Path(path))
        self._parts = self._opened()
        try:
            self.info = self._combined_info()
        except AudioError:
            self.close()
            raise

    @property
    def notes(self) -> list[str]:
        return self._defects.notes

    def blocks(self, frames: int = BLOCK) -> Iterator[Audio]:
        """Yield the file from its start in blocks (C, <= frames); an error if it is empty, truncated or damaged."""
        frames = min(frames, CAREFUL if self._defects.salvage else block_length(self.info.channels))
        total = 0
        for part in self._parts:
            for block in part.blocks(frames):
                total += block.shape[1]
                yield block
        if total == 0:
            raise AudioError("holds no samples", subject=self.path)

    def read(self, start: int, frames: int) -> Audio:
        """At most ``frames`` samples from ``start``: (C, T)."""
        blocks, end = [np.zeros((self.info.channels, 0), np.float32)], 0
        for part in self._parts:
            part_start, remaining = max(0, start - end), frames - sum(block.shape[1] for block in blocks)
            end += part.info.frames
            if start >= end or remaining <= 0:
                continue
            for block in part.blocks(max(1, min(remaining, BLOCK)), part_start):
                blocks.append(block[:, :remaining])
                remaining -= blocks[-1].shape[1]
                if remaining <= 0:
                    break
        return np.concatenate(blocks, axis=1)

    def _opened(self) -> list[Part]:
        path = self.path
        try:
            return list(sound_parts(self._defects))
        except soundfile.LibsndfileError as error:
            reason = sndfile_reason(error)
        except TypeError:  # soundfile raises TypeError for a file named .raw
            raise AudioError(RAW, subject=path) from None
        kind = media_files.kind(path)
        if kind and not media_files.installed():
            raise AudioError(f"is {kind}, which needs the extra media: {media_files.EXTRA}", subject=path)
        if media_files.installed() and (kind or Path(path).suffix.lower().lstrip(".") in finding.MEDIA):
            return [MediaPart(self._defects, media_files.MediaFile(path, salvage=self._defects.salvage))]
        raise AudioError(f"not a sound file that can be read ({reason})", subject=path)

    def _combined_info(self) -> Info:
        first = self._parts[0].info
        for number, part in enumerate(self._parts):
            check_plausible(self.path, part.info)
            if (part.info.sample_rate, part.info.channels) != (first.sample_rate, first.channels):
                self._defects.missing(
                    f"holds {len(self._parts)} recordings one after the other; number {number + 1} has "
                    f"{part.info.channels} channels at {part.info.sample_rate} Hz, the first "
                    f"{first.channels} at {first.sample_rate}, so what follows that one is not read"
                )
                self._parts = self._parts[:number]
                break
        frames = sum(part.info.frames for part in self._parts)
        return replace(first, frames=frames)

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_readable(path: Path) -> None:
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            raise AudioError("is a folder, not a sound file", subject=path)
        if not stat.S_ISREG(kind):
            raise AudioError("is not a regular file", subject=path)
        with open(path, "rb") as file:
            if not file.read(1):
                raise AudioError("is empty (0 bytes)", subject=path)
    except FileNotFoundError:
        raise AudioError("no such file", subject=path) from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise AudioError(f"cannot be read ({reason_of(error)})", subject=path) from None
