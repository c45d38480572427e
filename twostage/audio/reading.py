"""Reads sound files: everything that can be decoded is read, whatever length a header states; missing data is reported.

A file is read in blocks (C, T) of float32, full scale 1.0, and is never held in memory as a whole.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, Self, TypeGuard

import numpy as np
import soundfile

from twostage.audio import finding, media_files
from twostage.audio.headers import SoundData, flac_starts, sound_data
from twostage.audio.mpeg import MpegPart, mpeg_parts, silent_frame
from twostage.audio.ogg import marked_last, ogg_parts
from twostage.audio.rubbish import is_loud_noise
from twostage.audio.types import Audio
from twostage.audio.window import Window
from twostage.utils.errors import AudioError, reason_of

BLOCK = 1 << 16  # samples read at once, of each channel
USUAL = 16  # channels; of more, fewer samples are taken at once, so that they need no more memory
RAW = "not a sound file that can be read (it has no header that tells rate and coding)"
# bytes a sample, where each sample is coded by itself
WIDTHS = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "PCM_S8": 1, "PCM_U8": 1, "ULAW": 1}
WIDTHS |= {"ALAW": 1}
SLOWEST, FASTEST = 1000, 1_000_000  # Hz: outside, a header that lies, which would make hours or nothing of a file
UNKNOWN = 1 << 48  # samples: from here on a length is none
SALVAGE = media_files.SALVAGE
PROBED = 4096  # samples on either side of a header's end by which sound is told from rubbish
SLACK = 2304  # samples of MPEG about which encoders and decoders disagree
CAREFUL = 1024  # samples read at once where a file may be damaged: what is lost with an error


@dataclass(frozen=True)
class Info:
    """The properties that a sound file states; ``frames`` are samples for each channel."""

    sample_rate: int
    channels: int
    frames: int
    format: str
    subtype: str

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


class Part(Protocol):
    """One of the consecutive streams of a file."""

    info: Info

    def blocks(self, frames: int, start: int = 0) -> Iterator[Audio]:
        """Yield (C, <= frames) from sample ``start`` to the end."""

    def close(self) -> None: ...


class Reader:
    """An open sound file. Raises AudioError, naming the file, for everything that prevents reading the whole of it.

    ``salvage`` reads the readable part of a truncated or damaged file. ``notes`` then say what is missing, and for a
    complete file what is unusual about it. They are complete once the file has been read.
    """

    def __init__(self, path: str | Path, *, salvage: bool = False) -> None:
        self.path, self.notes, self._salvage = path, list[str](), salvage
        _check_readable(Path(path))
        self._parts = self._opened()
        try:
            self.info = self._described()
        except AudioError:
            self.close()
            raise

    def blocks(self, frames: int = BLOCK) -> Iterator[Audio]:
        """Yield the file from its start as (C, <= frames); an error if it is empty, cut off or damaged."""
        frames = min(frames, CAREFUL if self._salvage else block_length(self.info.channels))
        total = 0
        for part in self._parts:
            for block in part.blocks(frames):
                total += block.shape[1]
                yield block
        if total == 0:
            raise AudioError("holds no samples", subject=self.path)

    def read(self, start: int, frames: int) -> Audio:
        """At most ``frames`` samples from ``start``: (C, T)."""
        blocks, place = [np.zeros((self.info.channels, 0), np.float32)], 0
        for part in self._parts:
            first, wanted = max(0, start - place), frames - sum(block.shape[1] for block in blocks)
            place += part.info.frames
            if start >= place or wanted <= 0:
                continue
            for block in part.blocks(max(1, min(wanted, BLOCK)), first):
                blocks.append(block[:, :wanted])
                wanted -= blocks[-1].shape[1]
                if wanted <= 0:
                    break
        return np.concatenate(blocks, axis=1)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def lacking(self, text: str) -> None:
        """Raise an error for missing sound, or add a note if the rest is to be salvaged."""
        if not self._salvage:
            raise AudioError(f"{text} {SALVAGE}", subject=self.path)
        self.note(text)

    def _opened(self) -> list[Part]:
        path = self.path
        try:
            return list(_parts(self))
        except soundfile.LibsndfileError as error:
            reason = sndfile_reason(error)
        except TypeError:  # soundfile's word for a file named .raw
            raise AudioError(RAW, subject=path) from None
        kind = media_files.kind(path)
        if kind and not media_files.installed():
            raise AudioError(f"is {kind}, which needs the extra media: {media_files.EXTRA}", subject=path)
        if media_files.installed() and (kind or Path(path).suffix.lower().lstrip(".") in finding.MEDIA):
            return [_MediaPart(self, media_files.MediaFile(path, salvage=self._salvage))]
        raise AudioError(f"not a sound file that can be read ({reason})", subject=path)

    def _described(self) -> Info:
        first = self._parts[0].info
        for number, part in enumerate(self._parts):
            check_plausible(self.path, part.info)
            if (part.info.sample_rate, part.info.channels) != (first.sample_rate, first.channels):
                self.lacking(
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


class _SndPart:
    """A stream that libsndfile reads.

    ``open`` returns it from its start. The first ``skip`` samples are not part of it, and it has ``frames`` (None: as
    many as libsndfile reports). ``exact``: fewer are an error.
    """

    def __init__(
        self,
        reader: Reader,
        open: Callable[[], soundfile.SoundFile],
        *,
        skip: int = 0,
        frames: int | None = None,
        exact: bool = False,
    ) -> None:
        self._reader, self._open, self._skip, self._exact = reader, open, skip, exact
        self._file = file = self._begun()
        self._fresh = True
        said = file.frames if frames is None else frames
        self.info = Info(file.samplerate, file.channels, said, file.format, file.subtype)
        if said >= UNKNOWN:  # what was written to a pipe, say
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
        # where MPEG is damaged, libmpg123 ends as if the file did; that it differs by a frame or two means nothing
        slack = SLACK if self.info.subtype.startswith("MPEG") else 0
        if (self._exact or slack) and total < self.info.frames - slack:
            self._reader.lacking(f"truncated, {total} of {self.info.frames} samples can be read")

    def close(self) -> None:
        self._file.close()

    def _begun(self) -> soundfile.SoundFile:
        with _quiet():
            file = self._open()
        # soundfile seeks to where it is after every read of what it can seek in: decoders then begin anew, and differ
        file.seekable = lambda: False
        return file

    def _rewound(self, place: int) -> int:
        """Go to sample ``place``, or to the start where that cannot be done; how many samples are to be dropped."""
        if self._fresh and place == 0:
            self._fresh = False
            return 0
        self._fresh = False
        try:
            with _quiet():
                if soundfile.SoundFile.seekable(self._file) and self._file.frames < UNKNOWN:
                    self._file.seek(min(place, self._file.frames))
                    return 0
            self._file.close()
            self._file = self._begun()
            return place
        except soundfile.LibsndfileError as error:
            self._damaged(error)
        return 0

    def _read(self, frames: int) -> Audio:
        try:
            with _quiet(self.info.subtype):
                return self._file.read(frames, dtype="float32", always_2d=True).T
        except soundfile.LibsndfileError as error:
            self._damaged(error)
        return np.zeros((self.info.channels, 0), np.float32)

    def _damaged(self, error: soundfile.LibsndfileError) -> None:
        self._reader.lacking(f"damaged ({sndfile_reason(error)})")


class _MediaPart:
    """A stream that the extra ``media`` reads."""

    def __init__(self, reader: Reader, file: media_files.MediaFile) -> None:
        self._reader, self._file, info = reader, file, file.info
        self.info = Info(info.sample_rate, info.channels, info.frames, info.container.upper(), info.codec.upper())

    def blocks(self, frames: int, start: int = 0) -> Iterator[Audio]:
        for block in self._file.blocks(frames):
            kept = block[:, start:]
            start -= block.shape[1] - kept.shape[1]
            if kept.shape[1]:
                yield kept
        for note in self._file.notes:
            self._reader.note(note)

    def close(self) -> None:
        self._file.close()


def _parts(reader: Reader) -> Iterator[_SndPart]:
    """The streams of a file, each in a window of its own where there is more than one, or its header is not right."""
    path = reader.path
    data = sound_data(path)
    with _quiet():
        plain = _window(path, 0, data.next_file, patches=data.patches)() if _is_odd(data) else _plain(path)()
    with plain:
        kind, subtype = plain.format, plain.subtype
    if kind == "RAW":
        # libsndfile takes anything that is named .au, .snd or .vox for the sound of old telephones
        raise AudioError(RAW, subject=path)
    if kind == "MP3" or subtype.startswith("MPEG_LAYER"):
        yield from _mpeg(reader, data if kind != "MP3" else None)
    elif kind == "OGG":
        yield from _ogg(reader)
    elif kind == "FLAC":
        starts = flac_starts(path)[1:]
        ends = [*starts, None]
        for start, end in zip([0, *starts], ends, strict=True):
            yield _SndPart(reader, _window(path, start, end), exact=True)
    elif data is None:
        yield _SndPart(reader, lambda: soundfile.SoundFile(os.fsencode(path)), exact=subtype in (*WIDTHS, "ALAC_16"))
    else:
        yield from _chunked(reader, data)


def _is_odd(data: SoundData | None) -> TypeGuard[SoundData]:
    """Whether libsndfile cannot open a file as it is."""
    return data is not None and bool(data.next_file or data.patches)


def _chunked(reader: Reader, data: SoundData | None) -> Iterator[_SndPart]:
    """Files whose header says how many bytes of sound there are, joined ones among them."""
    path, begin = reader.path, 0
    while data is not None:
        if data.missing:
            size = data.missing + data.there
            reader.lacking(f"truncated, {data.missing} of {size} bytes of sound are missing")
        yield _one_chunked(reader, data, begin)
        if data.next_file is None:
            return
        begin = data.next_file
        data = sound_data(path, begin)
        if data is None:
            reader.lacking(f"what begins at byte {begin} of {os.path.getsize(path)} cannot be read")


def _one_chunked(reader: Reader, data: SoundData, begin: int) -> _SndPart:
    path = reader.path
    part = _SndPart(reader, _window(path, begin, data.next_file, patches=data.patches))
    width = part.info.channels * WIDTHS.get(part.info.subtype, 0)
    whole = data.there + data.behind
    if not width or part.info.frames >= whole // width:
        if data.behind and not width:
            reader.note(f"{data.behind} bytes behind the end that its header tells are not read")
        return part
    # it goes on behind the length that the header tells: of a recorder that was stopped in haste, or of over 4 GB
    about = part.info
    endian = "BIG" if data.big_endian else "LITTLE"

    def raw() -> soundfile.SoundFile:
        window = Window(path, data.start, data.start + whole)
        return soundfile.SoundFile(
            window, "r", about.sample_rate, about.channels, about.subtype, endian, "RAW", closefd=True
        )

    longer = _SndPart(reader, raw)
    longer.info = replace(longer.info, format=about.format)
    if _is_rubbish(longer, data.there // width):
        longer.close()
        reader.note(f"{data.behind} bytes behind the end that its header tells are no sound, and not read")
        return part
    part.close()
    return longer


def _is_rubbish(part: _SndPart, end: int) -> bool:
    """Whether the bytes after the sample ``end`` are not sound."""
    begin = max(0, end - PROBED)
    before, after = (next(part.blocks(PROBED, place), None) for place in (begin, end))
    if before is None or after is None:
        return False
    return is_loud_noise(after) and not is_loud_noise(before[:, : end - begin])


def _mpeg(reader: Reader, data: SoundData | None) -> Iterator[_SndPart]:
    path = reader.path
    mpeg = mpeg_parts(path, data.start, data.start + data.there) if data else mpeg_parts(path)
    if data and data.missing:
        reader.lacking(f"truncated, {data.missing} of {data.missing + data.there} bytes of sound are missing")
    if not mpeg.parts:
        raise AudioError("not a sound file that can be read (it has no frames of MPEG audio)", subject=path)
    if mpeg.cut and mpeg.parts[-1].announced is None:
        reader.note("its last frame is cut")
    for part in mpeg.parts:
        if part.announced is not None and part.frames + 1 < part.announced:
            seconds, whole = part.samples, part.announced * part.head.samples
            reader.lacking(f"truncated, {whole - seconds} of {whole} samples are missing")
        yield _mpeg_part(reader, part, "WAV" if data else "MP3")


def _mpeg_part(reader: Reader, part: MpegPart, kind: str) -> _SndPart:
    path = reader.path
    if part.announced is not None:
        patches = {part.count_place: part.frames.to_bytes(4, "big")}
        if abs(part.announced - part.frames) <= 1:
            patches = {}
        decoded = _SndPart(reader, _window(path, part.start, part.end, patches=patches))
    else:
        silence = silent_frame(part)
        opened = _window(path, part.start, part.end, prefix=silence)
        decoded = _SndPart(reader, opened, skip=part.head.samples, frames=part.samples)
    decoded.info = replace(decoded.info, format=kind)
    return decoded


def _ogg(reader: Reader) -> Iterator[_SndPart]:
    path = reader.path
    ogg = ogg_parts(path)
    if ogg.cut:
        reader.lacking("truncated, the file ends within a page of sound")
    elif ogg.open:
        reader.note("its last page is not marked as the last: more may have been recorded than is in the file")
    if len(ogg.starts) < 2 and not (ogg.cut or ogg.open):
        yield _SndPart(reader, _plain(path))
        return
    with Window(path, ogg.last, ogg.end) as last:
        patches = {ogg.last: marked_last(last.read())}
    for start, end in zip(ogg.starts, (*ogg.starts[1:], ogg.end), strict=True):
        yield _SndPart(reader, _window(path, start, end, patches=patches))


def _plain(path: str | Path) -> Callable[[], soundfile.SoundFile]:
    return lambda: soundfile.SoundFile(os.fsencode(path))


def _window(path: str | Path, start: int, end: int | None, **more: Any) -> Callable[[], soundfile.SoundFile]:
    return lambda: soundfile.SoundFile(Window(path, start, end, **more), closefd=True)


_STDERR = Lock()


@contextmanager
def _quiet(subtype: str = "MPEG") -> Iterator[None]:
    """Keep libmpg123, which cannot be told otherwise through libsndfile, from writing to the terminal by itself."""
    if not subtype.startswith("MPEG"):
        yield
        return
    with _STDERR:
        try:
            kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        except OSError:  # there is no standard error
            yield
            return
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


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


def check_plausible(path: str | Path, info: Info) -> None:
    if not SLOWEST <= info.sample_rate <= FASTEST:
        raise AudioError(f"its sample rate is {info.sample_rate} Hz, must be {SLOWEST} to {FASTEST}", subject=path)


def sndfile_reason(error: soundfile.LibsndfileError) -> str:
    text = str(error.error_string).removeprefix("Error : ").rstrip(".")
    # what it says of sound of MPEG's that it cannot make out
    return "Format not recognised" if "possibly a pipe" in text else text


def block_length(channels: int) -> int:
    """Samples of so many channels to take at once.

    >>> block_length(2), block_length(1024)
    (65536, 1024)
    """
    return BLOCK * USUAL // max(USUAL, channels)
