"""Headers of sound files: where the sound is stored, and how many bytes of it there should be."""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

# lengths that programs write before they know the length: 2 GiB, 4 GiB, or SoX's for AIFF, each less some header
UNKNOWN = (0x7F000000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
NEAR = 1 << 16
FILES = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"caff", b".snd", b"fLaC", b"OggS")
LATER = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"cue ", b"PEAK", b"iXML", b"APPL", b"ANNO")  # metadata: may be truncated
FLAC = b"fLaC\0\0\0\x22"  # with the head of the first metadata block, STREAMINFO
FLAC_LAST = b"fLaC\x80\0\0\x22"  # the same if it is the only metadata block
W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")


@dataclass(frozen=True)
class SoundData:
    """The sound in a file: ``start``, the bytes ``promised`` by the header (None: not stated) and those ``there``.

    ``behind``: bytes after the sound that no header announces. ``next_file``: the start of an appended file.
    ``patches``: bytes by position that state the length, for headers whose length other readers do not understand.
    """

    start: int
    promised: int | None
    there: int
    behind: int = 0
    next_file: int | None = None
    big_endian: bool = False
    patches: dict[int, bytes] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """Bytes that the header promises and that the file does not contain."""
        return max(0, (self.promised or 0) - self.there)


@dataclass(frozen=True)
class Promise:
    """The statement of a header; ``chunks``: the byte order of the chunks that may follow the sound, if any may."""

    start: int
    length: int | None
    big_endian: bool = False
    chunks: str = ""
    place: int = 0  # position of the 64-bit length if it has to be patched; that length includes ``extra`` bytes
    extra: int = 0


def sound_data(path: str | Path, begin: int = 0) -> SoundData | None:
    """Locate the sound of a WAV, RF64, W64, AIFF, AU, CAF, NIST or VOC file that begins at byte ``begin`` of ``path``.

    None for other formats, or if the header cannot be parsed.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(begin)
        find = FINDERS.get(file.read(4))
        try:
            promise = find(file, begin, size) if find else None
            return _compared(file, promise, size) if promise else None
        except (struct.error, ValueError, KeyError):
            return None


def flac_starts(path: str | Path) -> list[int]:
    """Positions of the FLAC files in a file; more than one if files were joined."""
    starts = []
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        for head in (FLAC, FLAC_LAST):
            position = data.find(head)
            while position >= 0:
                starts.append(position)
                position = data.find(head, position + len(head))
    return sorted(starts)


def _compared(file: BinaryIO, promise: Promise, size: int) -> SoundData:
    available = max(0, size - promise.start)
    if promise.length is None or any(abs(promise.length - value) <= NEAR for value in UNKNOWN):
        length = struct.pack(">Q" if promise.extra else "<Q", available + promise.extra)
        patches = {promise.place: length} if promise.place else {}
        return SoundData(promise.start, None, available, big_endian=promise.big_endian, patches=patches)
    available = min(available, promise.length)
    behind, next_file = _rest(file, promise.start + promise.length, size, promise.chunks)
    return SoundData(promise.start, promise.length, available, behind, next_file, promise.big_endian)


def _rest(file: BinaryIO, position: int, size: int, order: str) -> tuple[int, int | None]:
    """Count the bytes from ``position`` on that are neither chunks nor zeros; find the start of an appended file."""
    begin = position
    while position + 8 <= size:
        file.seek(position)
        head = file.read(9)
        name, head_after_padding = head[:4], head[1:5]
        if name in FILES:
            return 0, position
        if head_after_padding in FILES:  # after a padding byte, which makes the length even
            return 0, position + 1
        length = struct.unpack(f"{order}I", head[4:8])[0] if order else size
        if position == begin and begin % 2 and not head[0]:
            position += 1  # the padding byte
        elif order and _is_chunk(name) and (position + 8 + length <= size or name in LATER):
            position += 8 + length + length % 2
        else:
            file.seek(position)
            return (size - position if any(file.read(1 << 16)) else 0), None
    return 0, None


def _is_chunk(name: bytes) -> bool:
    return name.isascii() and name.decode("ascii").isprintable() and bool(name.strip())


def _riff(file: BinaryIO, begin: int, size: int) -> Promise | None:
    file.seek(begin)
    order = ">" if file.read(4) == b"RIFX" else "<"
    chunks = _chunks(file, begin + 12, size, order, b"data")
    start, length = chunks[b"data"]
    length_position = 0
    if b"ds64" in chunks and length == 0xFFFFFFFF:
        length_position = chunks[b"ds64"][0] + 8
        file.seek(length_position)
        (length,) = struct.unpack("<Q", file.read(8))
    return Promise(start, length or None, order == ">", order, length_position)


def _aiff(file: BinaryIO, begin: int, size: int) -> Promise | None:
    file.seek(begin + 8)
    if file.read(4) not in (b"AIFF", b"AIFC"):  # IFF 8SVX, the format of the Amiga
        start, length = _chunks(file, begin + 12, size, ">", b"BODY")[b"BODY"]
        return Promise(start, length, True, ">")
    chunks = _chunks(file, begin + 12, size, ">", b"SSND")
    start, length = chunks[b"SSND"]
    file.seek(chunks[b"COMM"][0] + 18)
    little = file.read(4) in (b"sowt", b"42ni", b"23ni") and chunks[b"COMM"][1] >= 22
    file.seek(start)
    (offset,) = struct.unpack(">I", file.read(4))
    known = length >= 8 + offset
    return Promise(start + 8 + offset, length - 8 - offset if known else None, not little, ">")


def _chunks(file: BinaryIO, position: int, size: int, order: str, last: bytes) -> dict[bytes, tuple[int, int]]:
    """Start and length of the content of each chunk, by name, up to and including the chunk ``last``."""
    chunks: dict[bytes, tuple[int, int]] = {}
    while position + 8 <= size and last not in chunks:
        file.seek(position)
        name, length = struct.unpack(f"{order}4sI", file.read(8))
        chunks[name] = position + 8, length
        position += 8 + length + length % 2
    return chunks


def _w64(file: BinaryIO, begin: int, size: int) -> Promise | None:
    position = begin + 40
    while position + 24 <= size:
        file.seek(position)
        name, length = struct.unpack("<16sQ", file.read(24))
        if name == W64_DATA:
            return Promise(position + 24, length - 24 if length >= 24 else None)
        position += max(24, -(-length // 8) * 8)
    return None


def _au(file: BinaryIO, begin: int, size: int) -> Promise | None:
    file.seek(begin)
    big = file.read(4) == b".snd"
    start, length = struct.unpack(">II" if big else "<II", file.read(8))
    return Promise(begin + start, length, big)


def _caf(file: BinaryIO, begin: int, size: int) -> Promise | None:
    place, little = begin + 8, False
    while place + 12 <= size:
        file.seek(place)
        name, length = struct.unpack(">4sq", file.read(12))
        if name == b"desc":
            file.seek(place + 12 + 12)
            little = bool(struct.unpack(">I", file.read(4))[0] & 2)
        if name == b"data":
            return Promise(place + 16, length - 4 if length > 4 else None, not little, place=place + 4, extra=4)
        if length < 0:
            return None
        place += 12 + length
    return None


def _nist(file: BinaryIO, begin: int, size: int) -> Promise | None:
    file.seek(begin + 8)
    header = int(file.read(8))
    file.seek(begin)
    lines = (line.split(None, 2) for line in file.read(header).split(b"\n"))
    fields = {words[0]: words[2] for words in lines if len(words) == 3}
    if b"shorten" in fields.get(b"sample_coding", b""):
        return None
    length = int(fields[b"sample_count"]) * int(fields[b"channel_count"]) * int(fields[b"sample_n_bytes"])
    return Promise(begin + header, length, fields.get(b"sample_byte_format") == b"10")


def _voc(file: BinaryIO, begin: int, size: int) -> Promise | None:
    file.seek(begin + 20)
    (position,) = struct.unpack("<H", file.read(2))
    position += begin
    header_lengths = {1: 2, 9: 12}  # by type of sound block, the bytes before its samples
    while position + 4 <= size:
        file.seek(position)
        (head,) = struct.unpack("<I", file.read(4))
        kind, length = head & 255, head >> 8
        if kind in header_lengths:
            return Promise(position + 4 + header_lengths[kind], max(0, length - header_lengths[kind]))
        position += 4 + length
    return None


FINDERS: dict[bytes, Callable[[BinaryIO, int, int], Promise | None]] = {
    b"RIFF": _riff,
    b"RIFX": _riff,
    b"RF64": _riff,
    b"FORM": _aiff,
    b"riff": _w64,
    b".snd": _au,
    b"dns.": _au,
    b"caff": _caf,
    b"NIST": _nist,
    b"Crea": _voc,
}
