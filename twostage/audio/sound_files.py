"""Sound files and sample rates: the only place that touches soundfile and soxr.

Everything streams: a file is read and written in blocks (C, T) of float32, full scale 1.0, and never held whole unless
asked to (``read``). Written files appear under their name only when they are complete.
"""

import os
import stat
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from twostage.utils.errors import AudioError
from twostage.utils.files import check_writable, make_folder, partial_name, publish

Audio = NDArray[np.float32]

BLOCK = 1 << 16  # samples read at once, of each channel
USUAL = 16  # channels; of more, fewer samples are taken at once, so that they need no more memory

# suffix -> libsndfile's container, and the coding that it has unless told otherwise
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "oga": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aif": ("AIFF", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
}
RAW = "not a sound file that can be read (it has no header that tells rate and coding)"
LOSSY = ("VORBIS", "OPUS", "MPEG_LAYER_III")
LINEAR = ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")
FOREIGN = ("m4a", "aac", "wma", "amr")  # sound that libsndfile cannot read: named in an error rather than passed over
SLOWEST, FASTEST = 1000, 1_000_000  # Hz: outside, a header that lies, which would make hours or nothing of a file
MOST_CHANNELS = {"OGG": 255}  # of containers whose encoder crashes with more, where others say so
OPEN_ENDED = 0x7FFF0000  # lengths from here on are what recorders write when they do not know yet


@dataclass(frozen=True)
class Info:
    """What a sound file says about itself; ``frames`` are samples a channel."""

    sample_rate: int
    channels: int
    frames: int
    format: str
    subtype: str

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


class Reader:
    """An open sound file. Raises AudioError, naming the file, for whatever keeps it from being read whole."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        _check_readable(Path(path))
        try:
            self._file = soundfile.SoundFile(os.fsencode(path))
        except soundfile.LibsndfileError as error:
            raise AudioError(f"not a sound file that can be read ({_reason(error)})", subject=path) from None
        except TypeError:  # soundfile's word for a file named .raw
            raise AudioError(RAW, subject=path) from None
        file = self._file
        self.info = Info(file.samplerate, file.channels, file.frames, file.format, file.subtype)
        try:
            _check_plausible(path, self.info)
        except AudioError:
            file.close()
            raise

    def blocks(self, frames: int = BLOCK) -> Iterator[Audio]:
        """Yield the file from its start as (C, <= frames); an error if it is empty, cut off or damaged."""
        frames = min(frames, block_length(self.info.channels))
        self._check_length()
        self.seek(0)
        total = 0
        while (block := self._read(frames)).shape[1]:
            total += block.shape[1]
            yield block
        # MP3 encoders and decoders disagree by a frame or two about what counts
        if total < self.info.frames - (2304 if self.info.format == "MP3" else 0):
            raise AudioError(f"truncated, {total} of {self.info.frames} samples can be read", subject=self.path)

    def _read(self, frames: int) -> Audio:
        try:
            return self._file.read(frames, dtype="float32", always_2d=True).T
        except soundfile.LibsndfileError as error:
            raise AudioError(f"damaged ({_reason(error)})", subject=self.path) from None

    def _check_length(self) -> None:
        lengths = _announced(self._file.extra_info)
        if any(there < said < OPEN_ENDED for said, there in lengths) or _lacks_ogg_end(self.path, self.info):
            raise AudioError("truncated, the file ends before its sound does", subject=self.path)
        if self.info.frames == 0:
            raise AudioError("holds no samples", subject=self.path)

    def seek(self, frame: int) -> None:
        try:
            self._file.seek(min(frame, self.info.frames))
        except soundfile.LibsndfileError as error:
            raise AudioError(f"damaged ({_reason(error)})", subject=self.path) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


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
        raise AudioError(f"cannot be read ({getattr(error, 'strerror', error)})", subject=path) from None


def _check_plausible(path: str | Path, info: Info) -> None:
    # libsndfile takes anything that is named .au, .snd or .vox for the sound of old telephones
    if info.format == "RAW":
        raise AudioError(RAW, subject=path)
    if not SLOWEST <= info.sample_rate <= FASTEST:
        raise AudioError(f"its sample rate is {info.sample_rate} Hz, must be {SLOWEST} to {FASTEST}", subject=path)


def _reason(error: soundfile.LibsndfileError) -> str:
    return str(error.error_string).removeprefix("Error : ").rstrip(".")


def _announced(log: str) -> Iterator[tuple[int, int]]:
    """Pairs of (length that a header announces, length that is there) from libsndfile's log of an opened file."""
    for line in log.splitlines():
        before, found, after = line.partition("(should be ")
        words = before.split()
        if found and words[-1].isdigit() and after.rstrip(") ").isdigit():
            yield int(words[-1]), int(after.rstrip(") "))


def _lacks_ogg_end(path: str | Path, info: Info) -> bool:
    """Whether an Ogg file's last page is cut or not marked as the last: libsndfile takes what is there for all."""
    if info.format != "OGG":
        return False
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 131072))  # a page has at most 65307 bytes
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]  # RFC 3533, section 6: flags at 5, segments at 26, their sizes after
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return not segments or not page[5] & 4 or len(page) < 27 + page[26] + sum(segments)


class Writer:
    """A sound file being written: blocks (C, T) go to a hidden file beside ``path``, which takes its name at the end.

    Used in a ``with`` block; leaving it by an exception, KeyboardInterrupt included, removes what was written.
    """

    def __init__(
        self, path: str | Path, sample_rate: int, channels: int, *, subtype: str | None = None, overwrite: bool = False
    ) -> None:
        self.path, self.frames = Path(path), 0
        self._overwrite = overwrite
        container, coding = coding_for(self.path, subtype)
        check_writable(self.path, overwrite)
        make_folder(self.path.parent)
        if channels > MOST_CHANNELS.get(container, channels):
            raise AudioError(f"cannot write {channels} channels as {container}", subject=self.path)
        self._partial = partial_name(self.path)
        # Ctrl-C may come between any two lines, this one and the `with` block's first among them
        weakref.finalize(self, self._partial.unlink, missing_ok=True)
        try:
            self._file = soundfile.SoundFile(
                os.fsencode(self._partial), "w", sample_rate, channels, coding, format=container
            )
        except (soundfile.LibsndfileError, OSError, ValueError) as error:
            message = self._failure(error, f"{channels} channel(s) at {sample_rate} Hz as {container} {coding}")
            self._partial.unlink(missing_ok=True)
            raise message from None

    def write(self, block: Audio) -> None:
        """Append (C, T) samples."""
        try:
            self._file.write(np.ascontiguousarray(block.T))
        except (soundfile.LibsndfileError, OSError) as error:
            raise self._failure(error, "the sound") from None
        self.frames += block.shape[1]

    def _failure(self, error: Exception, what: str) -> AudioError:
        # libsndfile says "System error" where the system said why: ask it again
        try:
            with open(self._partial, "ab") as file:
                file.write(bytes(1 << 16))
        except OSError as cause:
            return AudioError(f"cannot be written ({cause.strerror})", subject=self.path)
        reason = _reason(error) if isinstance(error, soundfile.LibsndfileError) else str(error)
        return AudioError(f"cannot write {what} ({reason})", subject=self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close(quietly=kind is not None)
            if kind is None:
                self._publish()
        finally:
            self._partial.unlink(missing_ok=True)

    def _close(self, quietly: bool) -> None:
        try:
            self._file.close()
        except (soundfile.LibsndfileError, OSError) as error:
            if not quietly:  # what went wrong before matters more
                raise self._failure(error, "the sound") from None

    def _publish(self) -> None:
        # some encoders flush at the end and tell nobody when that fails
        if info(self._partial).frames < self.frames and self._file.format != "MP3":
            raise self._failure(OSError("the disk did not take all of it"), "the sound")
        check_writable(self.path, self._overwrite)  # it may have come into being meanwhile
        try:
            publish(self._partial, self.path)
        except OSError as error:
            raise AudioError(f"cannot be written ({error.strerror})", subject=self.path) from None


def block_length(channels: int) -> int:
    """Samples of so many channels to take at once.

    >>> block_length(2), block_length(1024)
    (65536, 1024)
    """
    return BLOCK * USUAL // max(USUAL, channels)


def coding_for(path: str | Path, subtype: str | None = None) -> tuple[str, str]:
    """libsndfile's container and coding for a file name; ``subtype`` (that of the input, say) is kept where it fits."""
    suffix = Path(path).suffix.lower().lstrip(".")
    if suffix not in FORMATS:
        raise AudioError(f"cannot write .{suffix} files; the formats are {', '.join(FORMATS)}", subject=path)
    container, default = FORMATS[suffix]
    if default in LOSSY or subtype not in LINEAR:
        return container, default
    return container, subtype if soundfile.check_format(container, subtype) else "PCM_24"


def info(path: str | Path) -> Info:
    """What the header of a sound file says."""
    with Reader(path) as reader:
        return reader.info


def read(path: str | Path, *, start: int = 0, frames: int | None = None) -> tuple[Audio, int]:
    """Read a sound file, or ``frames`` samples of it from ``start``: (C, T) float32 and its sample rate."""
    with Reader(path) as reader:
        if start == 0 and frames is None:
            return np.concatenate(list(reader.blocks()), axis=1), reader.info.sample_rate
        reader.seek(start)
        return reader._read(-1 if frames is None else frames), reader.info.sample_rate


def write(
    path: str | Path, audio: Audio, sample_rate: int, *, subtype: str | None = None, overwrite: bool = False
) -> None:
    """Write (C, T) or (T,) samples, format by the suffix; the file appears only when it is complete."""
    audio = np.atleast_2d(np.asarray(audio, dtype=np.float32))
    with Writer(path, sample_rate, audio.shape[0], subtype=subtype, overwrite=overwrite) as writer:
        writer.write(audio)


def resampled(blocks: Iterable[Audio], from_rate: int, to_rate: int, channels: int) -> Iterator[Audio]:
    """Resample a stream of blocks (C, T) to exactly ``resampled_length`` of what goes in."""
    if from_rate == to_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_rate, to_rate, channels)
    taken = given = 0
    first = np.zeros((channels, 0), np.float32)
    for block in blocks:
        first = block[:, :1].copy() if taken == 0 else first
        out = stream.resample_chunk(np.ascontiguousarray(block.T, dtype=np.float32)).T
        taken, given = taken + block.shape[1], given + out.shape[1]
        yield out
    rest = stream.resample_chunk(np.zeros((0, channels), np.float32), last=True).T
    if given + rest.shape[1] == 0:
        rest = first  # too short for a sample at the new rate: its first one stands for it
    yield match_length(rest, max(0, resampled_length(taken, from_rate, to_rate) - given))


def exactly(blocks: Iterable[Audio], frames: int, channels: int) -> Iterator[Audio]:
    """The first ``frames`` samples of a stream of (C, T) blocks, with zeros behind it if it is shorter."""
    left = frames
    for block in blocks:
        yield block[:, :left]
        left = max(0, left - block.shape[1])
    yield np.zeros((channels, left), np.float32)


def resampled_length(frames: int, from_rate: int, to_rate: int) -> int:
    """Samples at ``to_rate`` that last as long as ``frames`` at ``from_rate``; at least one of at least one."""
    return max(min(frames, 1), round(frames * to_rate / from_rate))


def resample(audio: Audio, from_rate: int, to_rate: int) -> Audio:
    """Resample (..., T) along its last axis."""
    rows = np.asarray(audio, np.float32).reshape(-1, audio.shape[-1])
    out = np.concatenate(list(resampled([rows], from_rate, to_rate, len(rows))), axis=1)
    return out.reshape(*audio.shape[:-1], -1)


def match_length(audio: Audio, frames: int) -> Audio:
    """Cut (..., T) to ``frames``, or add zeros at its end."""
    missing = max(0, frames - audio.shape[-1])
    return np.pad(audio[..., :frames], [(0, 0)] * (audio.ndim - 1) + [(0, missing)]) if missing else audio[..., :frames]


def find(paths: Iterable[str | Path], suffixes: Iterable[str] = (*FORMATS, *FOREIGN)) -> list[tuple[Path, Path]]:
    """Sound files under files, folders (recursively) and glob patterns, as (file, its path below what was named).

    A file that is named stands for itself, whatever its suffix; hidden files in folders are passed over.

    Raises:
        AudioError: a folder or pattern without a sound file. Whether a named file exists is seen when it is read.
    """
    wanted = {"." + suffix.lower().lstrip(".") for suffix in suffixes}
    return [pair for path in paths for pair in _find_one(str(path), wanted)]


def _find_one(name: str, suffixes: set[str]) -> list[tuple[Path, Path]]:
    path = Path(name)
    if path.is_dir():
        found = [(file, file.relative_to(path)) for file in _below(path, suffixes)]
    elif path.exists() or not any(c in name for c in "*?["):
        found = [(path, Path(path.name))]
    else:
        found = _glob(path, suffixes)
    if not found:
        raise AudioError("no sound files there", subject=name)
    return found


def _below(folder: Path, suffixes: set[str]) -> list[Path]:
    files = (Path(parent) / name for parent, _, names in os.walk(folder) for name in names)
    kept = (f for f in files if f.suffix.lower() in suffixes)
    return sorted(f for f in kept if not any(part.startswith(".") for part in f.relative_to(folder).parts))


def _glob(pattern: Path, suffixes: set[str]) -> list[tuple[Path, Path]]:
    fixed = next(i for i, part in enumerate(pattern.parts) if any(c in part for c in "*?["))
    base, rest = Path(*pattern.parts[:fixed]), str(Path(*pattern.parts[fixed:]))
    found = set()
    for match in base.glob(rest):
        if match.is_dir():
            found.update(_below(match, suffixes))
        elif match.suffix.lower() in suffixes or pattern.suffix:
            found.add(match)  # "*.raw" means what it says, "*" means sound
    shown = ((file, file.relative_to(base)) for file in sorted(found))
    return [(file, below) for file, below in shown if not any(part.startswith(".") for part in below.parts)]
