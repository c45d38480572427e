"""Pages of an Ogg file (RFC 3533): streams that follow each other in it, and whether its last page is all there."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAGIC = b"OggS"
FIRST, LAST = 2, 4  # flags of a page: of its stream the first, the last
LONGEST = 65307  # bytes of a page


@dataclass(frozen=True)
class OggParts:
    """Where streams begin that follow each other, where the last page ends, and what is wrong with the end.

    ``cut``: the last page is not all there; ``open``: it is not marked as the last one, as recorders leave it that were
    stopped in haste.
    """

    starts: tuple[int, ...]
    end: int
    cut: bool
    open: bool


def ogg_parts(path: str | Path) -> OggParts:
    """Walk the pages of an Ogg file."""
    starts: list[int] = []
    place, in_headers, cut, last = 0, False, False, 0
    end = 0
    with open(path, "rb") as file:
        while (found := _next_page(file, place)) is not None:
            start, flags, length, whole = found
            if flags & FIRST and not in_headers:
                starts.append(start)
            in_headers = bool(flags & FIRST)  # streams side by side begin together
            cut, last, place = not whole, flags, start + length
            end = place if whole else start
    return OggParts(tuple(starts), end, cut, not last & LAST)


def _next_page(file: BinaryIO, place: int) -> tuple[int, int, int, bool] | None:
    """Of the next page from ``place`` on: where it begins, its flags, its length, and whether all of it is there."""
    while True:
        file.seek(place)
        head = file.read(27 + 255)
        if not head.startswith(MAGIC):  # zeros behind the end, say
            file.seek(place)
            data = file.read(LONGEST)
            found = data.find(MAGIC)
            if found < 0 and len(data) < LONGEST:
                return None
            place += found if found >= 0 else LONGEST - len(MAGIC) + 1
            continue
        if len(head) < 27 or len(head) < 27 + head[26]:
            return place, head[5] if len(head) > 5 else 0, len(head), False
        length = 27 + head[26] + sum(head[27 : 27 + head[26]])
        return place, head[5], length, file.seek(0, 2) >= place + length
