"""Finds the streams of a file by its container; handles joined files, unusual headers and wrong lengths."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import soundfile

from twostage.audio.headers import SoundData, flac_starts, sound_data
from twostage.audio.mpeg import MpegPart, mpeg_parts, silent_frame
from twostage.audio.ogg import marked_last, ogg_parts
from twostage.audio.parts import Defects, SndPart, quiet_mpeg
from twostage.audio.rubbish import is_loud_noise
from twostage.audio.window import Window
from twostage.utils.errors import AudioError

RAW = "not a sound file that can be read (it has no header with sample rate and coding)"
# bytes per sample of the codings that code each sample by itself
WIDTHS = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "PCM_S8": 1, "PCM_U8": 1, "ULAW": 1}
WIDTHS |= {"ALAW": 1}
PROBED = 4096  # samples inspected before and after the end stated in a header, to tell sound from other data


def sound_parts(defects: Defects) -> Iterator[SndPart]:
    """The streams of a file, each in its own window if there is more than one or if its header is wrong."""
    path = defects.path
    data = sound_data(path)
    with quiet_mpeg():
        plain = _window(path, 0, data.next_file, patches=data.patches)() if _is_odd(data) else _plain(path)()
    with plain:
        kind, subtype = plain.format, plain.subtype
    if kind == "RAW":
        # libsndfile decodes any file named .au, .snd or .vox as headerless telephone audio
        raise AudioError(RAW, subject=path)
    if kind == "MP3" or subtype.startswith("MPEG_LAYER"):
        yield from _mpeg(defects, data if kind != "MP3" else None)
    elif kind == "OGG":
        yield from _ogg(defects)
    elif kind == "FLAC":
        starts = flac_starts(path)[1:]
        ends = [*starts, None]
        for start, end in zip([0, *starts], ends, strict=True):
            yield SndPart(defects, _window(path, start, end), exact=True)
    elif data is None:
        yield SndPart(defects, lambda: soundfile.SoundFile(os.fsencode(path)), exact=subtype in (*WIDTHS, "ALAC_16"))
    else:
        yield from _chunked(defects, data)


def _is_odd(data: SoundData | None) -> TypeGuard[SoundData]:
    """Whether libsndfile cannot open the file unchanged."""
    return data is not None and bool(data.next_file or data.patches)


def _chunked(defects: Defects, data: SoundData | None) -> Iterator[SndPart]:
    """The streams of a file whose header states the number of bytes of sound; joined files have several."""
    path, begin = defects.path, 0
    while data is not None:
        if data.missing:
            size = data.missing + data.there
            defects.missing(f"truncated, {data.missing} of {size} bytes of sound are missing")
        yield _one_chunked(defects, data, begin)
        if data.next_file is None:
            return
        begin = data.next_file
        data = sound_data(path, begin)
        if data is None:
            defects.missing(f"the data from byte {begin} of {os.path.getsize(path)} on cannot be read")


def _one_chunked(defects: Defects, data: SoundData, begin: int) -> SndPart:
    path = defects.path
    part = SndPart(defects, _window(path, begin, data.next_file, patches=data.patches))
    width = part.info.channels * WIDTHS.get(part.info.subtype, 0)
    available = data.there + data.behind
    if not width or part.info.frames >= available // width:
        if data.behind and not width:
            defects.note(f"{data.behind} bytes after the end stated in its header are not read")
        return part
    # data continues after the stated length: the recorder was interrupted, or the file is larger than 4 GB
    stated = part.info
    endian = "BIG" if data.big_endian else "LITTLE"

    def raw() -> soundfile.SoundFile:
        window = Window(path, data.start, data.start + available)
        return soundfile.SoundFile(
            window, "r", stated.sample_rate, stated.channels, stated.subtype, endian, "RAW", closefd=True
        )

    longer = SndPart(defects, raw)
    longer.info = replace(longer.info, format=stated.format)
    if _is_rubbish(longer, data.there // width):
        longer.close()
        defects.note(f"{data.behind} bytes after the end stated in its header are not sound and are not read")
        return part
    part.close()
    return longer


def _is_rubbish(part: SndPart, end: int) -> bool:
    """Whether the bytes after the sample ``end`` are not sound."""
    begin = max(0, end - PROBED)
    before, after = (next(part.blocks(PROBED, start), None) for start in (begin, end))
    if before is None or after is None:
        return False
    return is_loud_noise(after) and not is_loud_noise(before[:, : end - begin])


def _mpeg(defects: Defects, data: SoundData | None) -> Iterator[SndPart]:
    path = defects.path
    mpeg = mpeg_parts(path, data.start, data.start + data.there) if data else mpeg_parts(path)
    if data and data.missing:
        defects.missing(f"truncated, {data.missing} of {data.missing + data.there} bytes of sound are missing")
    if not mpeg.parts:
        raise AudioError("not a sound file that can be read (it has no frames of MPEG audio)", subject=path)
    if mpeg.cut and mpeg.parts[-1].announced is None:
        defects.note("its last frame is cut")
    for part in mpeg.parts:
        if part.announced is not None and part.frames + 1 < part.announced:
            present, announced = part.samples, part.announced * part.head.samples
            defects.missing(f"truncated, {announced - present} of {announced} samples are missing")
        yield _mpeg_part(defects, part, "WAV" if data else "MP3")


def _mpeg_part(defects: Defects, part: MpegPart, kind: str) -> SndPart:
    path = defects.path
    if part.announced is not None:
        patches = {part.count_place: part.frames.to_bytes(4, "big")}
        if abs(part.announced - part.frames) <= 1:
            patches = {}
        decoded = SndPart(defects, _window(path, part.start, part.end, patches=patches))
    else:
        silence = silent_frame(part)
        open_window = _window(path, part.start, part.end, prefix=silence)
        decoded = SndPart(defects, open_window, skip=part.head.samples, frames=part.samples)
    decoded.info = replace(decoded.info, format=kind)
    return decoded


def _ogg(defects: Defects) -> Iterator[SndPart]:
    path = defects.path
    ogg = ogg_parts(path)
    if ogg.cut:
        defects.missing("truncated, the file ends within a page of sound")
    elif ogg.open:
        defects.note("its last page is not marked as the last: the end of the recording may be missing")
    if len(ogg.starts) < 2 and not (ogg.cut or ogg.open):
        yield SndPart(defects, _plain(path))
        return
    with Window(path, ogg.last, ogg.end) as last:
        patches = {ogg.last: marked_last(last.read())}
    for start, end in zip(ogg.starts, (*ogg.starts[1:], ogg.end), strict=True):
        yield SndPart(defects, _window(path, start, end, patches=patches))


def _plain(path: str | Path) -> Callable[[], soundfile.SoundFile]:
    return lambda: soundfile.SoundFile(os.fsencode(path))


def _window(path: str | Path, start: int, end: int | None, **options: Any) -> Callable[[], soundfile.SoundFile]:
    return lambda: soundfile.SoundFile(Window(path, start, end, **options), closefd=True)
