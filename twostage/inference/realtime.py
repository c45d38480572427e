"""Sources of a stream: raw PCM from pipes, a file in real time hop by hop, a microphone."""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, BinaryIO

import numpy as np

from twostage.audio.signatures import container_of, undecided
from twostage.audio.types import Audio
from twostage.inference.meter import Meter
from twostage.inference.stream import Stream
from twostage.utils.errors import AudioError, ConfigError, first_line

FORMATS: dict[str, np.dtype[Any]] = {"s16": np.dtype("<i2"), "f32": np.dtype("<f4")}  # little-endian
FULL = 32768  # full scale of s16
CHUNK = 65536  # maximum number of bytes per read; a pipe returns what has arrived
SPOKEN_WITH_A_VOWEL = ("AAC", "AIFF", "AMR", "APE", "AU", "MP3", "MP4", "Ogg", "RF64")
WARM = 20  # hops before timing starts
STATUS = 0.1  # seconds between two looks at the state of a live stream


@dataclass(frozen=True)
class Timing:
    """Timing of a stream: milliseconds of work for a ``hop`` of ``hop_ms``, and of waiting (``latency_ms``)."""

    hops: int
    hop_ms: float
    latency_ms: float
    median_ms: float
    p99_ms: float
    worst_ms: float
    late: int  # hops whose work took longer than the hop lasts
    seconds: float
    real_time_factor: float

    @classmethod
    def of(cls, work: list[float], hop: float, latency: float, seconds: float) -> "Timing":
        """The timing from the ``work`` of each hop; all in seconds."""
        times = np.array(work or [0.0]) * 1000
        median, p99 = np.percentile(times, [50, 99])
        return cls(
            hops=len(work),
            hop_ms=hop * 1000,
            latency_ms=latency * 1000,
            median_ms=float(median),
            p99_ms=float(p99),
            worst_ms=float(times.max()),
            late=int((times > hop * 1000).sum()),
            seconds=seconds,
            real_time_factor=float(times.sum() / 1000 / seconds) if seconds else 0.0,
        )

    def lines(self) -> list[str]:
        share = self.p99_ms / self.hop_ms
        return [
            f"latency {self.latency_ms:.0f} ms, in hops of {self.hop_ms:.0f} ms",
            f"work for a hop: median {self.median_ms:.2f} ms, 99 % within {self.p99_ms:.2f} ms ({share:.2f} of the "
            f"hop), worst {self.worst_ms:.2f} ms; {self.late} of {self.hops} took longer than they last",
            f"real-time factor {self.real_time_factor:.3f} over {self.seconds:.1f} s",
        ]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Pcm:
    """Converts bytes, cut anywhere, from and to samples: ``channels`` interleaved at the input, one at the output."""

    def __init__(self, name: str, channels: int = 1) -> None:
        self._type, self._channels, self._pending, self.clipped = FORMATS[name], channels, b"", 0

    def decode(self, data: bytes) -> Audio:
        """Samples (T,), or of several channels (C, T)."""
        data, frame = self._pending + data, self._type.itemsize * self._channels
        complete = len(data) // frame * frame
        self._pending = data[complete:]
        samples = np.frombuffer(data[:complete], self._type).astype(np.float32)
        samples = samples / np.float32(FULL) if self._type.kind == "i" else samples
        return samples if self._channels == 1 else samples.reshape(-1, self._channels).T

    def encode(self, samples: Audio) -> bytes:
        if self._type.kind == "i":
            samples = np.round(samples * FULL)
            self.clipped += int(((samples < -FULL) | (samples > FULL - 1)).sum())
            samples = samples.clip(-FULL, FULL - 1)
        return samples.astype(self._type).tobytes()


def pipe(stream: Stream, source: BinaryIO, sink: BinaryIO, pcm: Pcm) -> None:
    """Stream raw PCM from ``source`` to ``sink`` until its end, each chunk as soon as it is available."""
    for data in _raw(source):
        sink.write(pcm.encode(stream.push(pcm.decode(data))))
        sink.flush()
    sink.write(pcm.encode(stream.flush()))
    sink.flush()


def _raw(source: BinaryIO) -> Iterator[bytes]:
    """The bytes of a pipe as they arrive. Raises AudioError for a sound file, which would be played as noise."""
    head = b""
    while undecided(head) and (data := os.read(source.fileno(), CHUNK)):
        head += data
    if kind := container_of(head):
        hint = " (with arecord: -t raw)" if kind == "WAV" else ""
        article = "an" if kind in SPOKEN_WITH_A_VOWEL else "a"
        raise AudioError(f"standard input: {article} {kind} file, wanted raw PCM{hint}; --file plays sound files")
    if head:
        yield head
    while data := os.read(source.fileno(), CHUNK):
        yield data


def warm_up(stream: Stream, hop: int) -> None:
    """Push silence, so that one-time work of the first pushes, such as imports, does not delay sound."""
    for _ in range(WARM):
        stream.push(np.zeros(hop if stream.inputs == 1 else (stream.inputs, hop), np.float32))
    stream.reset()


def run_realtime(stream: Stream, blocks: Iterable[Audio], hop: int, work: list[float]) -> Iterator[Audio]:
    """Push blocks (T,), or (C, T), hop by hop; yield the output, and append the seconds of each hop to ``work``."""
    warm_up(stream, hop)
    for block in rechunk(blocks, hop):
        started = time.perf_counter()
        out = stream.push(block)
        work.append(time.perf_counter() - started)
        yield out
    yield stream.flush()


def rechunk(blocks: Iterable[Audio], hop: int) -> Iterator[Audio]:
    """Divide samples (..., T) into blocks of ``hop`` samples; the last one may be shorter."""
    pending: Audio | None = None
    for block in blocks:
        pending = block if pending is None else np.concatenate([pending, block], axis=-1)
        complete = pending.shape[-1] // hop * hop
        yield from np.split(pending[..., :complete], complete // hop, axis=-1) if complete else ()
        pending = pending[..., complete:]
    if pending is not None and pending.size:
        yield pending


def device_list() -> str:
    """The available sound devices with their numbers, one in each line. Raises ConfigError without sounddevice."""
    return str(_sounddevice().query_devices())


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise ConfigError("sound devices need the package sounddevice: pip install sounddevice") from None
    except OSError:
        raise ConfigError(
            "sound devices need the PortAudio library (Debian, Ubuntu: apt install libportaudio2)"
        ) from None
    return sounddevice


def run_duplex(
    stream: Stream,
    hop: int,
    devices: tuple[str | int | None, str | int | None],
    seconds: float,
    meter: Meter | None = None,
) -> int:
    """Microphone to loudspeaker for ``seconds`` (0: until interrupted); returns how often sound was lost.

    It continues when sound is lost and when a device provides samples that are not finite; ``meter`` receives every
    hop. Raises ConfigError if sounddevice is missing, AudioError if there is no such device, if a device cannot be
    opened at the stream's rate, or if it stops.
    """
    sounddevice = _sounddevice()
    meter = meter or Meter(hop / stream.sample_rate, 0.0, print, pace=0.0)
    ready = np.zeros(0, np.float32)
    warm_up(stream, hop)

    def on_hop(recorded: Audio, played: Audio, _frames: int, _time: object, status: object) -> None:
        nonlocal ready
        if status:
            meter.xrun()
        started = time.perf_counter()
        try:
            restored = stream.push(recorded[:, 0] if stream.inputs == 1 else recorded.T)
        except AudioError:  # NaN or far beyond full scale, while a device is being plugged in
            stream.reset()
            restored = np.zeros(len(recorded), np.float32)
        meter.hop(recorded[:, 0], time.perf_counter() - started, len(ready) / stream.sample_rate)
        ready = np.concatenate([ready, restored])
        count = min(len(ready), len(played))
        # silence until the first restored sample is ready
        played[:] = 0
        played[len(played) - count :, 0] = ready[:count]
        ready = ready[count:]

    options = {"samplerate": stream.sample_rate, "blocksize": hop, "device": devices, "dtype": "float32"}
    options["channels"] = (stream.inputs, 1)
    stopped = threading.Event()
    deadline = time.monotonic() + seconds if seconds else inf
    try:
        with sounddevice.Stream(callback=on_hop, finished_callback=stopped.set, latency="low", **options) as device:
            meter.latency = stream.latency / stream.sample_rate + sum(device.latency)
            while (remaining := deadline - time.monotonic()) > 0:
                if stopped.wait(min(remaining, STATUS)):
                    raise AudioError("the sound device stopped; was it unplugged?")
                meter.report()
    except ValueError as error:  # no such device, or several
        raise AudioError(f"{first_line(error)}; `twostage stream --list-devices` lists their numbers") from None
    except sounddevice.PortAudioError as error:
        raise AudioError(f"sound device: {error}") from None
    return meter.xruns
