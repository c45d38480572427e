"""Reads the sound formats of phones, browsers and videos: the only module that imports PyAV, an extra."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twostage.utils.errors import AudioError, reason_of

LENIENT = 19  # the version of av from which tags that cannot be decoded are no error
EXTRA = "pip install av"  # not the extra by name, which would add PyTorch to an installation without it
# signature at the start of a file, its offset, and the name of the format
MAGIC = (
    (b"ftyp", 4, "MP4"),
    (b"moov", 4, "MP4"),
    (b"mdat", 4, "MP4"),
    (b"\x1aE\xdf\xa3", 0, "Matroska"),
    (b"#!AMR", 0, "AMR"),
    (b"0&\xb2u\x8ef\xcf\x11", 0, "ASF"),
    (b"ADIF", 0, "AAC"),
    (b"FLV\x01", 0, "FLV"),
    (b"MAC ", 0, "Monkey's Audio"),
    (b"wvpk", 0, "WavPack"),
    (b"TTA1", 0, "TTA"),
    (b"\x0bw", 0, "AC-3"),
)
EXACT = ("mov", "matroska")  # container formats that state their length exactly; others only estimate it
SHORT = 0.1  # seconds that may be missing at the end of a container, because encoders round to their frames
SALVAGE = "(--salvage reads the rest)"


@dataclass(frozen=True)
class MediaInfo:
    """``container`` and ``codec`` are FFmpeg's names; ``frames`` are samples per channel."""

    sample_rate: int
    channels: int
    frames: int
    container: str
    codec: str


def kind(path: str | Path) -> str | None:
    """The format of a file by its first bytes, if it is one that only the extra reads; otherwise None."""
    with open(path, "rb") as file:
        head = file.read(16)
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:  # ADTS
        return "AAC"
    return next((name for magic, offset, name in MAGIC if head[offset : offset + len(magic)] == magic), None)


def installed() -> bool:
    return find_spec("av") is not None


class MediaFile:
    """The first sound stream of a file. Raises AudioError, naming the file."""

    def __init__(self, path: str | Path, *, salvage: bool = False) -> None:
        self.path, self.notes = path, list[str]()
        self._salvage = salvage
        with _named(path), closing(_opened(path)) as container:
            stream = _stream(container, path)
            context = stream.codec_context
            rate, channels = context.sample_rate, context.channels
            if not rate or not channels:  # known when the first frame is decoded
                first = next(iter(container.decode(stream)), None)
                if first is None:
                    raise AudioError("holds no samples", subject=path)
                rate, channels = first.sample_rate, len(first.layout.channels)
            family = container.format.name
        self.info = MediaInfo(rate, channels, self._counted(), family.partition(",")[0], context.name)

    def blocks(self, frames: int) -> Iterator[NDArray[np.float32]]:
        """Yield blocks (C, <= frames) of float32 from the start."""
        import av

        with closing(_opened(self.path)) as container:
            stream = _stream(container, self.path)
            fifo, resampler = av.AudioFifo(), None
            for frame in self._decoded(container, stream):
                resampler = resampler or av.AudioResampler("fltp", frame.layout, self.info.sample_rate)
                for resampled in resampler.resample(frame):
                    resampled.pts = None
                    fifo.write(resampled)
                while (block := fifo.read(frames)) is not None:
                    yield block.to_ndarray().astype(np.float32, copy=False)
            for resampled in resampler.resample(None) if resampler else ():
                resampled.pts = None
                fifo.write(resampled)
            if (remaining := fifo.read(0, True)) is not None and remaining.samples:
                yield remaining.to_ndarray().astype(np.float32, copy=False)

    def close(self) -> None:
        """Does nothing: the file is open only during reads."""

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        import av

        try:
            yield from container.decode(stream)
        except (av.error.FFmpegError, ValueError) as error:
            if not self._salvage:
                raise AudioError(f"damaged ({reason_of(error)}) {SALVAGE}", subject=self.path) from None
            self.notes.append(f"damaged ({reason_of(error)}); only the part before the damage is read")

    def _counted(self) -> int:
        """Samples of all packets, because the length that a container states is often an estimate."""
        import av

        total, stated_end, packets_end = 0.0, 0.0, 0.0
        with closing(_opened(self.path)) as container:
            stream = _stream(container, self.path)
            rate = stream.codec_context.sample_rate or 1
            try:
                for packet in container.demux():
                    if packet.duration is None or packet.time_base is None:
                        continue
                    seconds = float(packet.duration * packet.time_base)
                    packets_end = max(packets_end, float((packet.pts or 0) * packet.time_base) + seconds)
                    if packet.stream_index == stream.index:
                        total += seconds
            except av.error.FFmpegError as error:
                if not self._salvage:
                    raise AudioError(f"damaged ({reason_of(error)}) {SALVAGE}", subject=self.path) from None
            if container.duration is not None and any(name in container.format.name for name in EXACT):
                stated_end = container.duration / 1e6
        if stated_end - packets_end > SHORT:
            missing = f"{stated_end - packets_end:.2f} of {stated_end:.2f} s are missing"
            if not self._salvage:
                raise AudioError(f"truncated, {missing} {SALVAGE}", subject=self.path)
            self.notes.append(f"truncated, {missing}")
        return round(total * rate)


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Raise errors of FFmpeg as AudioError that names the file."""
    import av

    try:
        yield
    except (av.error.FFmpegError, ValueError) as error:
        raise AudioError(f"not a sound file that can be read ({reason_of(error)})", subject=path) from None


def _opened(path: str | Path) -> Any:
    import av

    av.logging.set_level(None)
    old = int(av.__version__.split(".")[0]) < LENIENT
    try:
        return av.open(str(path), **({"metadata_errors": "ignore"} if old else {}))
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise AudioError(f"not a sound file that can be read ({reason_of(error)})", subject=path) from None


def _stream(container: Any, path: str | Path) -> Any:
    if not container.streams.audio:
        raise AudioError("holds no sound", subject=path)
    stream = container.streams.audio[0]
    with suppress(AttributeError):
        stream.thread_type = "NONE"
    if stream.codec_context is None:
        raise AudioError("its sound has a coding that cannot be read", subject=path)
    return stream
