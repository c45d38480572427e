"""The interface for sound files: reading, writing, resampling.

Everything is streamed: a file is read and written in blocks (C, T) of float32, full scale 1.0, and is held in memory as
a whole only on request (``read``). Written files appear under their name only when they are complete. Everything that
can be decoded is read, whatever length a header states; missing data is reported.
"""

import io
import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import soundfile

from twostage.audio import finding
from twostage.audio.file_info import BLOCK as BLOCK
from twostage.audio.file_info import FASTEST as FASTEST
from twostage.audio.file_info import SLOWEST as SLOWEST
from twostage.audio.file_info import USUAL as USUAL
from twostage.audio.file_info import Info as Info
from twostage.audio.file_info import block_length as block_length
from twostage.audio.file_info import check_plausible
from twostage.audio.parts import sndfile_reason
from twostage.audio.reading import Reader as Reader
from twostage.audio.resampling import exactly as exactly
from twostage.audio.resampling import match_length as match_length
from twostage.audio.resampling import resample as resample
from twostage.audio.resampling import resampled as resampled
from twostage.audio.resampling import resampled_length as resampled_length
from twostage.audio.types import Audio
from twostage.utils.errors import AudioError, reason_of
from twostage.utils.files import check_writable, make_folder, partial_name, publish

# suffix -> libsndfile's container and its default encoding
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "oga": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aif": ("AIFF", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
}
SUFFIXES = (*FORMATS, *finding.READ, *finding.MEDIA)  # of files in a folder that count as sound files
LOSSY = ("VORBIS", "OPUS", "MPEG_LAYER_III")
LINEAR = ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")
MOST_CHANNELS = {"OGG": 255}  # for containers whose encoder crashes with more channels instead of reporting an error


class Writer:
    """Writes a sound file in blocks (C, T), first to a hidden file beside ``path``, which is renamed at the end.

    Used in a ``with`` block; an exception in it, KeyboardInterrupt included, removes the hidden file.
    """

    def __init__(
        self, path: str | Path, sample_rate: int, channels: int, *, subtype: str | None = None, overwrite: bool = False
    ) -> None:
        self.path, self.frames = Path(path), 0
        self._overwrite = overwrite
        container, coding = coding_for(self.path, subtype)
        check_writable(self.path, overwrite)
        make_folder(self.path.parent)
        if channels > MOST_CHANNELS.get(container, channels):
            raise AudioError(f"cannot write {channels} channels as {container}", subject=self.path)
        self._partial = partial_name(self.path)
        # Ctrl-C may come at any time, even before the `with` block is entered
        weakref.finalize(self, self._partial.unlink, missing_ok=True)
        try:
            self._file = soundfile.SoundFile(
                os.fsencode(self._partial), "w", sample_rate, channels, coding, format=container
            )
        except (soundfile.LibsndfileError, OSError, ValueError) as error:
            message = self._failure(error, f"{channels} channel(s) at {sample_rate} Hz as {container} {coding}")
            self._partial.unlink(missing_ok=True)
            raise message from None

    def write(self, block: Audio) -> None:
        """Append (C, T) samples."""
        try:
            self._file.write(np.ascontiguousarray(block.T))
        except (soundfile.LibsndfileError, OSError) as error:
            raise self._failure(error, "the sound") from None
        self.frames += block.shape[1]

    def _failure(self, error: Exception, content: str) -> AudioError:
        # libsndfile reports only "System error": another write yields the reason
        try:
            with open(self._partial, "ab") as file:
                file.write(bytes(1 << 16))
        except OSError as cause:
            return AudioError(f"cannot be written ({reason_of(cause)})", subject=self.path)
        reason = sndfile_reason(error) if isinstance(error, soundfile.LibsndfileError) else reason_of(error)
        return AudioError(f"cannot write {content} ({reason})", subject=self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close(quietly=kind is not None)
            if kind is None:
                self._publish()
        finally:
            self._partial.unlink(missing_ok=True)

    def _close(self, quietly: bool) -> None:
        try:
            self._file.close()
        except (soundfile.LibsndfileError, OSError) as error:
            if not quietly:  # the error that was raised before matters more
                raise self._failure(error, "the sound") from None

    def _publish(self) -> None:
        # some encoders flush at the end and do not report that it failed
        if info(self._partial).frames < self.frames and self._file.format != "MP3":
            raise self._failure(OSError("the disk did not take all of it"), "the sound")
        check_writable(self.path, self._overwrite)  # it may have been created in the meantime
        try:
            publish(self._partial, self.path)
        except OSError as error:
            raise AudioError(f"cannot be written ({reason_of(error)})", subject=self.path) from None


def coding_for(path: str | Path, subtype: str | None = None) -> tuple[str, str]:
    """libsndfile's container and encoding for a file name; ``subtype`` (as that of the input) is kept if it fits."""
    suffix = Path(path).suffix.lower().lstrip(".")
    if suffix not in FORMATS:
        raise AudioError(f"cannot write .{suffix} files; the formats are {', '.join(FORMATS)}", subject=path)
    container, default = FORMATS[suffix]
    if default in LOSSY or subtype not in LINEAR:
        return container, default
    return container, subtype if soundfile.check_format(container, subtype) else "PCM_24"


def info(path: str | Path) -> Info:
    """The properties in the header of a sound file."""
    with Reader(path) as reader:
        return reader.info


def read(path: str | Path, *, start: int = 0, frames: int | None = None) -> tuple[Audio, int]:
    """Read a sound file, or ``frames`` samples of it from ``start``: (C, T) float32 and its sample rate."""
    with Reader(path) as reader:
        if start == 0 and frames is None:
            return np.concatenate(list(reader.blocks()), axis=1), reader.info.sample_rate
        length = reader.info.frames - start if frames is None else frames
        return reader.read(start, length), reader.info.sample_rate


def decode(content: bytes, name: str) -> tuple[Audio, Info]:
    """Decode samples (C, T) of a sound file in memory; ``name`` is for messages. Raises AudioError."""
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            info = Info(file.samplerate, file.channels, file.frames, file.format, file.subtype)
            check_plausible(name, info)
            audio = file.read(dtype="float32", always_2d=True).T
    except soundfile.LibsndfileError as error:
        raise AudioError(f"not a sound file that can be read ({sndfile_reason(error)})", subject=name) from None
    return audio, info


def write(
    path: str | Path, audio: Audio, sample_rate: int, *, subtype: str | None = None, overwrite: bool = False
) -> None:
    """Write (C, T) or (T,) samples in the format of the suffix; the file appears only when it is complete."""
    audio = np.atleast_2d(np.asarray(audio, dtype=np.float32))
    with Writer(path, sample_rate, audio.shape[0], subtype=subtype, overwrite=overwrite) as writer:
        writer.write(audio)


def find(
    paths: Iterable[str | Path], suffixes: Iterable[str] = SUFFIXES, passed_over: list[Path] | None = None
) -> list[tuple[Path, Path]]:
    """Sound files in files, folders and patterns, as (file, path relative to that entry); see `finding.find`."""
    return finding.find(paths, suffixes, passed_over)
