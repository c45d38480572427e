"""Counts the frames of an MPEG audio file (ISO 11172-3, 13818-3), because its header is often only an estimate."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

VERSIONS = {0: 2.5, 2: 2, 3: 1}  # bits of a frame's header -> MPEG version
RATES = {1: (44100, 48000, 32000), 2: (22050, 24000, 16000), 2.5: (11025, 12000, 8000)}
KBPS = {  # by (version is 1, layer), from index 1 on
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
INFO = (b"Xing", b"Info")
SURE = 3  # frames that must follow each other for noise not to be taken for sound


@dataclass(frozen=True)
class Frame:
    """The four-byte header of a frame; ``samples`` for each channel, ``length`` in bytes."""

    version: float
    layer: int
    sample_rate: int
    channels: int
    samples: int
    length: int

    @property
    def kind(self) -> tuple[float, int, int, int]:
        """What is the same in all frames of a stream."""
        return self.version, self.layer, self.sample_rate, self.channels

    @property
    def info_place(self) -> int:
        """Where the word Xing or Info stands in a frame of layer III that tells of the others."""
        return 4 + {(True, 2): 32, (True, 1): 17, (False, 2): 17, (False, 1): 9}[self.version == 1, self.channels]


@dataclass
class MpegPart:
    """A stream in a file: bytes ``start`` to ``end``, its frames with sound, and the number that it announces itself.

    ``count_place`` is the position of the announced number of frames in the file (32 bits, big-endian), 0 if there is
    none.
    """

    start: int
    end: int
    head: Frame
    first: bytes
    frames: int = 0
    announced: int | None = None
    count_place: int = 0

    @property
    def samples(self) -> int:
        return self.frames * self.head.samples


@dataclass(frozen=True)
class MpegParts:
    """The streams of a file, and whether its last frame is truncated."""

    parts: tuple[MpegPart, ...]
    cut: bool


def mpeg_parts(path: str | Path, start: int = 0, end: int | None = None) -> MpegParts:
    """Walk the frames of a file, or of its bytes ``start`` to ``end``.

    A new part begins where a stream tells of itself anew, behind a tag, or where it sounds of another kind.
    """
    parts: list[MpegPart] = []
    cut = False
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        end = len(data) if end is None else min(end, len(data))
        for place, head, fresh in _frames(data, start, end):
            if place + head.length > end:
                cut = True
                break
            info = _info_word(data, place, head)
            if info or fresh or parts[-1].head.kind != head.kind:
                parts.append(MpegPart(place, place, head, data[place : place + 4]))
            part = parts[-1]
            part.end = place + head.length
            if info:
                part.announced, part.count_place = _announced(data, info)
            else:
                part.frames += 1
    return MpegParts(tuple(part for part in parts if part.frames), cut)


def silent_frame(part: MpegPart) -> bytes:
    """A frame of silence that goes before a part, of the lowest bit rate.

    A decoder that guesses the length from the first frame's bit rate then guesses too much, never too little.
    """
    head = bytearray(part.first)
    head[1] |= 1  # no checksum
    head[2] = head[2] & 0x0D | 0x10
    frame = parse(bytes(head))
    assert frame is not None  # the head of a frame that was parsed before
    return bytes(head).ljust(frame.length, b"\0")


def parse(head: bytes) -> Frame | None:
    """The four bytes at the head of a frame; None if they are none, or of a free bit rate."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = VERSIONS.get(head[1] >> 3 & 3), 4 - (head[1] >> 1 & 3)
    kbps, rate = head[2] >> 4, head[2] >> 2 & 3
    if version is None or layer == 4 or kbps in (0, 15) or rate == 3:
        return None
    bits, sample_rate = 1000 * KBPS[version == 1, layer][kbps - 1], RATES[version][rate]
    padding, channels = head[2] >> 1 & 1, 1 if head[3] >> 6 == 3 else 2
    if layer == 1:
        return Frame(version, layer, sample_rate, channels, 384, (12 * bits // sample_rate + padding) * 4)
    samples = 1152 if version == 1 or layer == 2 else 576
    return Frame(version, layer, sample_rate, channels, samples, samples // 8 * bits // sample_rate + padding)


def _frames(data: mmap, place: int, end: int) -> Iterator[tuple[int, Frame, bool]]:
    """Frames with their places, and whether a tag or nothing stands before them; noise between them is passed over."""
    fresh, followed = True, False
    while place + 4 <= end:
        if (length := _tag(data, place)) > 0:
            place, fresh, followed = place + length, True, False
            continue
        head = parse(data[place : place + 4])
        if head and (followed or _leads(data, place, head, end)):
            yield place, head, fresh
            place, fresh, followed = place + head.length, False, True
        else:
            place, followed = data.find(b"\xff", place + 1, end), False
            if place < 0:
                return


def _leads(data: mmap, place: int, head: Frame, end: int) -> bool:
    """Whether frames of its kind follow a frame, or the end."""
    for _ in range(SURE):
        place += head.length
        if place + 4 > end or _tag(data, place):
            return True
        following = parse(data[place : place + 4])
        if following is None or following.kind[:3] != head.kind[:3]:
            return False
        head = following
    return True


def _tag(data: mmap, place: int) -> int:
    """Bytes of a tag that begins at ``place``: ID3v2, ID3v1, APEv2; 0 if none does."""
    word = data[place : place + 3]
    if word == b"ID3":
        size = data[place + 6 : place + 10]
        return 10 + sum((byte & 127) << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=False))
    if word == b"TAG":
        return 128
    if word == b"APE" and data[place : place + 8] == b"APETAGEX":
        return 32 + int.from_bytes(data[place + 12 : place + 16], "little")
    return 0


def _info_word(data: mmap, place: int, head: Frame) -> int:
    """Where the word of a frame stands that tells of the others; 0 if it is a frame of sound."""
    if head.layer != 3:
        return 0
    at = place + head.info_place
    return at if data[at : at + 4] in INFO else 0


def _announced(data: mmap, at: int) -> tuple[int | None, int]:
    flags, frames = struct.unpack(">II", data[at + 4 : at + 12])
    return (frames, at + 8) if flags & 1 else (None, 0)
