"""Counts the frames of an MPEG audio file (ISO 11172-3, 13818-3), because its header is often only an estimate."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

VERSIONS = {0: 2.5, 2: 2, 3: 1}  # bits of a frame's header -> MPEG version
RATES = {1: (44100, 48000, 32000), 2: (22050, 24000, 16000), 2.5: (11025, 12000, 8000)}
KBPS = {  # kbit/s by (version is 1, layer); the first entry is for index 1
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
INFO = (b"Xing", b"Info")
SURE = 3  # consecutive frames that are required, so that noise is not taken for a frame


@dataclass(frozen=True)
class Frame:
    """The four-byte header of a frame; ``samples`` per channel, ``length`` in bytes."""

    version: float
    layer: int
    sample_rate: int
    channels: int
    samples: int
    length: int

    @property
    def kind(self) -> tuple[float, int, int, int]:
        """The properties that all frames of a stream have in common."""
        return self.version, self.layer, self.sample_rate, self.channels

    @property
    def info_place(self) -> int:
        """Offset of the word Xing or Info in a layer III frame that describes the stream."""
        return 4 + {(True, 2): 32, (True, 1): 17, (False, 2): 17, (False, 1): 9}[self.version == 1, self.channels]


@dataclass
class MpegPart:
    """A stream in a file: bytes ``start`` to ``end``, its ``frames`` with sound, and the number that it announces.

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

    A new part begins at a frame that describes a stream, after a tag, and where the kind of the frames changes.
    """
    parts: list[MpegPart] = []
    cut = False
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        end = len(data) if end is None else min(end, len(data))
        for position, head, after_tag in _frames(data, start, end):
            if position + head.length > end:
                cut = True
                break
            info = _info_word(data, position, head)
            if info or after_tag or parts[-1].head.kind != head.kind:
                parts.append(MpegPart(position, position, head, data[position : position + 4]))
            part = parts[-1]
            part.end = position + head.length
            if info:
                part.announced, part.count_place = _announced(data, info)
            else:
                part.frames += 1
    return MpegParts(tuple(part for part in parts if part.frames), cut)


def silent_frame(part: MpegPart) -> bytes:
    """A silent frame of the lowest bit rate, to be put before a part.

    A decoder that estimates the length from the bit rate of the first frame then overestimates it and reads everything.
    """
    head = bytearray(part.first)
    head[1] |= 1  # no checksum
    head[2] = head[2] & 0x0D | 0x10
    frame = parse(bytes(head))
    assert frame is not None  # the header of a frame that was parsed before
    return bytes(head).ljust(frame.length, b"\0")


def parse(head: bytes) -> Frame | None:
    """Parse the four-byte header of a frame; None if it is not one, or if its bit rate is free."""
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


def _frames(data: mmap, position: int, end: int) -> Iterator[tuple[int, Frame, bool]]:
    """Frames with their positions, and whether one is the first or follows a tag; noise between them is skipped."""
    after_tag, synchronized = True, False
    while position + 4 <= end:
        if (length := _tag(data, position)) > 0:
            position, after_tag, synchronized = position + length, True, False
            continue
        head = parse(data[position : position + 4])
        if head and (synchronized or _is_confirmed(data, position, head, end)):
            yield position, head, after_tag
            position, after_tag, synchronized = position + head.length, False, True
        else:
            position, synchronized = data.find(b"\xff", position + 1, end), False
            if position < 0:
                return


def _is_confirmed(data: mmap, position: int, head: Frame, end: int) -> bool:
    """Whether a frame is followed by frames of the same kind, a tag or the end."""
    for _ in range(SURE):
        position += head.length
        if position + 4 > end or _tag(data, position):
            return True
        next_head = parse(data[position : position + 4])
        if next_head is None or next_head.kind[:3] != head.kind[:3]:
            return False
        head = next_head
    return True


def _tag(data: mmap, position: int) -> int:
    """Length in bytes of a tag (ID3v2, ID3v1, APEv2) that begins at ``position``; 0 if there is none."""
    word = data[position : position + 3]
    if word == b"ID3":
        size = data[position + 6 : position + 10]
        return 10 + sum((byte & 127) << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=False))
    if word == b"TAG":
        return 128
    if word == b"APE" and data[position : position + 8] == b"APETAGEX":
        return 32 + int.from_bytes(data[position + 12 : position + 16], "little")
    return 0


def _info_word(data: mmap, position: int, head: Frame) -> int:
    """Position of the word Xing or Info in a frame that describes the stream; 0 if it is a frame with sound."""
    if head.layer != 3:
        return 0
    at = position + head.info_place
    return at if data[at : at + 4] in INFO else 0


def _announced(data: mmap, at: int) -> tuple[int | None, int]:
    flags, frames = struct.unpack(">II", data[at + 4 : at + 12])
    return (frames, at + 8) if flags & 1 else (None, 0)
