"""The properties in the header of a sound file, and the block sizes in which it is read."""

from dataclasses import dataclass
from pathlib import Path

from twostage.utils.errors import AudioError

BLOCK = 1 << 16  # samples per channel that are read at once
USUAL = 16  # channels; with more, blocks are shorter, so that they do not need more memory
SLOWEST, FASTEST = 1000, 1_000_000  # Hz: a header with a sample rate outside this range is wrong


@dataclass(frozen=True)
class Info:
    """The properties in the header of a sound file; ``frames`` are samples per channel."""

    sample_rate: int
    channels: int
    frames: int
    format: str
    subtype: str

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def check_plausible(path: str | Path, info: Info) -> None:
    if not SLOWEST <= info.sample_rate <= FASTEST:
        raise AudioError(f"its sample rate is {info.sample_rate} Hz, must be {SLOWEST} to {FASTEST}", subject=path)


def block_length(channels: int) -> int:
    """Samples per channel to read at once from a file with so many channels.

    >>> block_length(2), block_length(1024)
    (65536, 1024)
    """
    return BLOCK * USUAL // max(USUAL, channels)
