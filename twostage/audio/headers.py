"""Headers of sound files: where the sound is stored, and how many bytes of it there should be."""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

# what programs write that cannot know yet: 2 GiB, 4 GiB, what SoX takes for AIFF and its like, each less some header
UNKNOWN = (0x7F000000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
NEAR = 1 << 16
FILES = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"caff", b".snd", b"fLaC", b"OggS")
LATER = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"cue ", b"PEAK", b"iXML", b"APPL", b"ANNO")  # chunks: may be cut
FLAC = b"fLaC\0\0\0\x22"  # and the head of the block that each FLAC file begins with
FLAC_LAST = b"fLaC\x80\0\0\x22"  # the same, where it is the only block
W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")


@dataclass(frozen=True)
class SoundData:
    """Bytes of sound in a file: from ``start``, ``promised`` by the header (None: not stated), ``there`` present.

    ``behind``: bytes after them that no header announces. ``next_file``: the start of a file that was appended.
    ``patches``: bytes by their position that state the length where the header has none that readers understand.
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
        """Bytes that the header promises and the file has not."""
        return max(0, (self.promised or 0) - self.there)


@dataclass(frozen=True)
class Promise:
    """The statement of a header; ``chunks``: the byte order of the chunks that may follow the sound, if any may."""

    start: int
    length: int | None
    big_endian: bool = False
    chunks: str = ""
    place: int = 0  # of the length, in 64 bits, where it has to be known; more of it than sound: ``extra`` bytes
    extra: int = 0


def sound_data(path: str | Path, begin: int = 0) -> SoundData | None:
    """Of a WAV, RF64, W64, AIFF, AU, CAF or NIST file that begins at ``begin`` in the file ``path``.

    None of any other, or if its header cannot be followed.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(begin)
        find = FINDERS.get(file.read(4))
        try:
            said = find(file, begin, size) if find else None
            return _compared(file, said, size) if said else None
        except (struct.error, ValueError, KeyError):
            return None


def flac_starts(path: str | Path) -> list[int]:
    """Where FLAC files begin that were joined to one."""
    starts = []
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        for head in (FLAC, FLAC_LAST):
            place = data.find(head)
            while place >= 0:
                starts.append(place)
                place = data.find(head, place + len(head))
    return sorted(starts)


def _compared(file: BinaryIO, said: Promise, size: int) -> SoundData:
    there = max(0, size - said.start)
    if said.length is None or any(abs(said.length - value) <= NEAR for value in UNKNOWN):
        length = struct.pack(">Q" if said.extra else "<Q", there + said.extra)
        patches = {said.place: length} if said.place else {}
        return SoundData(said.start, None, there, big_endian=said.big_endian, patches=patches)
    there = min(there, said.length)
    behind, next_file = _rest(file, said.start + said.length, size, said.chunks)
    return SoundData(said.start, said.length, there, behind, next_file, said.big_endian)


def _rest(file: BinaryIO, place: int, size: int, order: str) -> tuple[int, int | None]:
    """Bytes from ``place`` on that are neither chunks nor zeros, and where another file begins."""
    begin = place
    while place + 8 <= size:
        file.seek(place)
        head = file.read(9)
        name, odd = head[:4], head[1:5]
        if name in FILES:
            return 0, place
        if odd in FILES:  # behind a byte that makes the length even
            return 0, place + 1
        length = struct.unpack(f"{order}I", head[4:8])[0] if order else size
        if place == begin and begin % 2 and not head[0]:
            place += 1  # that byte itself
        elif order and _is_chunk(name) and (place + 8 + length <= size or name in LATER):
            place += 8 + length + length % 2
        else:
            file.seek(place)
            return (size - place if any(file.read(1 << 16)) else 0), None
    return 0, None


def _is_chunk(name: bytes) -> bool:
    return name.isascii() and name.decode("ascii").isprintable() and bool(name.strip())


def _riff(file: BinaryIO, begin: int, size: int) -> Promise | None:
    file.seek(begin)
    order = ">" if file.read(4) == b"RIFX" else "<"
    chunks = _chunks(file, begin + 12, size, order, b"data")
    start, length = chunks[b"data"]
    place = 0
    if b"ds64" in chunks and length == 0xFFFFFFFF:
        place = chunks[b"ds64"][0] + 8
        file.seek(place)
        (length,) = struct.unpack("<Q", file.read(8))
    return Promise(start, length or None, order == ">", order, place)


def _aiff(file: BinaryIO, begin: int, size: int) -> Promise | None:
    file.seek(begin + 8)
    if file.read(4) not in (b"AIFF", b"AIFC"):  # of Amigas
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


def _chunks(file: BinaryIO, place: int, size: int, order: str, last: bytes) -> dict[bytes, tuple[int, int]]:
    """Where what chunks hold begins, and its bytes, by name, up to the chunk ``last``."""
    chunks: dict[bytes, tuple[int, int]] = {}
    while place + 8 <= size and last not in chunks:
        file.seek(place)
        name, length = struct.unpack(f"{order}4sI", file.read(8))
        chunks[name] = place + 8, length
        place += 8 + length + length % 2
    return chunks


def _w64(file: BinaryIO, begin: int, size: int) -> Promise | None:
    place = begin + 40
    while place + 24 <= size:
        file.seek(place)
        name, length = struct.unpack("<16sQ", file.read(24))
        if name == W64_DATA:
            return Promise(place + 24, length - 24 if length >= 24 else None)
        place += max(24, -(-length // 8) * 8)
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
    (place,) = struct.unpack("<H", file.read(2))
    place += begin
    heads = {1: 2, 9: 12}  # kinds of blocks with sound, and the bytes before it
    while place + 4 <= size:
        file.seek(place)
        (head,) = struct.unpack("<I", file.read(4))
        kind, length = head & 255, head >> 8
        if kind in heads:
            return Promise(place + 4 + heads[kind], max(0, length - heads[kind]))
        place += 4 + length
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
