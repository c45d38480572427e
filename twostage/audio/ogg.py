"""Pages of an Ogg file (RFC 3533): streams that follow each other in it, and whether its last page is complete."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAGIC = b"OggS"
FIRST, LAST = 2, 4  # flags of the first and the last page of a stream
POLYNOMIAL = 0x104C11DB7
LONGEST = 65307  # bytes of the longest page


@dataclass(frozen=True)
class OggParts:
    """Starts of consecutive streams, start and end of the ``last`` complete page, and defects.

    ``cut``: the last page is incomplete; ``open``: it is not marked as the last one, because the recorder was
    interrupted.
    """

    starts: tuple[int, ...]
    last: int
    end: int
    cut: bool
    open: bool


def ogg_parts(path: str | Path) -> OggParts:
    """Walk the pages of an Ogg file."""
    starts: list[int] = []
    position, in_headers, cut, flags = 0, False, False, 0
    last = end = 0
    with open(path, "rb") as file:
        while (page := _next_page(file, position)) is not None:
            start, flags, length, complete = page
            if flags & FIRST and not in_headers:
                starts.append(start)
            in_headers = bool(flags & FIRST)  # multiplexed streams begin together
            cut, position = not complete, start + length
            last, end = (start, position) if complete else (last, end)
    return OggParts(tuple(starts), last, end, cut, not flags & LAST)


def marked_last(page: bytes) -> bytes:
    """Mark a complete page as the last of its stream, because some decoders reject a stream without such a page."""
    out = bytearray(page)
    out[5] |= LAST
    out[22:26] = bytes(4)
    out[22:26] = checksum(out).to_bytes(4, "little")
    return bytes(out)


def checksum(page: bytes | bytearray) -> int:
    """CRC-32 of polynomial 04C11DB7, neither reflected nor inverted: RFC 3533, section 6."""
    register = 0
    for byte in page:
        register = (register << 8 & 0xFFFFFFFF) ^ REMAINDERS[register >> 24 ^ byte]
    return register


def _remainder(byte: int) -> int:
    register = byte << 24
    for _ in range(8):
        register = register << 1 ^ (POLYNOMIAL if register & 0x80000000 else 0)
    return register & 0xFFFFFFFF


REMAINDERS = [_remainder(byte) for byte in range(256)]


def _next_page(file: BinaryIO, position: int) -> tuple[int, int, int, bool] | None:
    """The next page from ``position`` on: its start, its flags, its length, and whether it is complete."""
    while True:
        file.seek(position)
        head = file.read(27 + 255)
        if not head.startswith(MAGIC):  # for example zeros after the end
            file.seek(position)
            data = file.read(LONGEST)
            offset = data.find(MAGIC)
            if offset < 0 and len(data) < LONGEST:
                return None
            position += offset if offset >= 0 else LONGEST - len(MAGIC) + 1
            continue
        if len(head) < 27 or len(head) < 27 + head[26]:
            return position, head[5] if len(head) > 5 else 0, len(head), False
        length = 27 + head[26] + sum(head[27 : 27 + head[26]])
        return position, head[5], length, file.seek(0, 2) >= position + length
