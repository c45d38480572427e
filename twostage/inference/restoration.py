"""Restore recordings of any rate, length and number of channels: arrays, tensors and files, always as a stream.

A first pass measures each channel's level; a second brings it to the level that models are trained at, restores it
in pieces, and spills the result to a temporary file, because its loudness and peak must be known before it is written.
"""

import io
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite, log10
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from twostage.audio.levels import LEVEL, LevelMeter
from twostage.audio.sound_files import (
    BLOCK,
    LOSSY,
    USUAL,
    Audio,
    Reader,
    Writer,
    block_length,
    coding_for,
    exactly,
    resampled,
    resampled_length,
)
from twostage.inference.chunks import enhance
from twostage.inference.windows import Enhancer, inputs_of, keep_low_band
from twostage.utils.errors import AudioError, Cancelled, ConfigError
from twostage.utils.files import check_writable, make_folder
from twostage.utils.memory import honest

SILENCE = -90.0  # dBFS: the noise of 16-bit quantization; nothing to restore below it
PEAK, LOSSY_PEAK = 0.99, 0.89  # decoders of lossy formats overshoot what was encoded

logger = logging.getLogger(__name__)
A = TypeVar("A", bound=Any)
Progress = Callable[[float], None]  # hears of the seconds of sound that were done since it heard last
Cancel = Callable[[], bool]  # asked before every block of sound whether to stop


@dataclass(frozen=True)
class Options:
    """How to restore: ``seconds`` of a window, ``level`` "input" or "model", ``keep_low_band`` in Hz (0: nothing).

    ``sample_rate`` of the output file: "model" or "input". ``batch`` windows go through the model at once.
    """

    seconds: float = 10.0
    level: str = "input"
    keep_low_band: float = 0.0
    sample_rate: str = "model"
    overwrite: bool = False
    batch: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"batch is {self.batch}, must be at least 1")
        if not self.seconds > 0:
            raise ConfigError(f"seconds is {self.seconds}, must be positive")
        if self.level not in ("input", "model"):
            raise ConfigError(f"level is {self.level!r}, must be 'input' or 'model'")
        if self.sample_rate not in ("input", "model"):
            raise ConfigError(f"sample_rate is {self.sample_rate!r}, must be 'input' or 'model'")
        if not (self.keep_low_band >= 0 and isfinite(self.keep_low_band)):
            raise ConfigError(f"keep_low_band is {self.keep_low_band}, must be 0 Hz or more")


@dataclass
class Report:
    """What became of one file. ``seconds`` are of audio, ``elapsed`` of work; their quotient is ``realtime_factor``."""

    source: str
    target: str
    status: str = "restored"
    seconds: float = 0.0
    channels: int = 0
    input_sample_rate: int = 0
    sample_rate: int = 0
    elapsed: float = 0.0
    realtime_factor: float = 0.0
    limited_db: float = 0.0
    plot: str | None = None
    error: str | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """Sound that can be streamed more than once: ``blocks()`` yields it from its start as (C, T)."""

    name: str
    sample_rate: int
    channels: int
    blocks: Callable[[], Iterator[Audio]]


@dataclass(frozen=True)
class Survey:
    """What the first pass finds: samples, and each channel's active level (C,) in dBFS at the model's rate."""

    frames: int
    levels: NDArray[np.float64]

    @property
    def silent(self) -> NDArray[np.bool_]:
        return self.levels < SILENCE

    def spoken(self, inputs: int) -> "Survey":
        """Of the first of every ``inputs`` channels: one for each that comes out."""
        return Survey(self.frames, self.levels[::inputs])

    def complaints(self, inputs: int) -> list[str]:
        """About silence, for a model of so many ``inputs``."""
        silent = np.flatnonzero(self.silent)
        if len(silent) == len(self.levels):
            return ["silent; restored as silence"]
        lost, idle = (
            ", ".join(str(channel + 1) for channel in silent if (channel % inputs > 0) == other)
            for other in (False, True)
        )
        return [f"channel {lost} silent; restored as silence"] * bool(lost) + [f"channel {idle} silent"] * bool(idle)


class Spill:
    """Blocks (C, T) put aside in a binary file and read back."""

    def __init__(self, file: BinaryIO, channels: int) -> None:
        self._file, self._channels = file, channels

    def write(self, block: Audio) -> None:
        data = memoryview(np.ascontiguousarray(block.T, dtype=np.float32).tobytes())
        while data:
            data = data[self._file.write(data) :]

    def blocks(self) -> Iterator[Audio]:
        self._file.seek(0)
        while data := self._file.read(block_length(self._channels) * self._channels * 4):
            yield np.frombuffer(data, np.float32).reshape(-1, self._channels).T


def restore(
    model: Enhancer,
    audio: A,
    sample_rate: int,
    *,
    seconds: float = 10.0,
    level: str = "input",
    keep_low_band: float = 0.0,
    batch: int = 1,
    progress: Progress = lambda seconds: None,
    cancel: Cancel = lambda: False,
) -> A:
    """Restore bone-conducted speech: (T,) or (C, T) -> the same at ``model.sample_rate``, each channel by itself.

    A model of two inputs makes (1, T) of (2, T), bone and air; what is said of the input's level and band is of bone.
    A batch is a list or tuple of such arrays, of any lengths, or one array (B, C, T); what comes out is a list or
    (B, C, T'), each item restored as it would be alone.

    ``audio`` is a numpy array or a tensor; the result is of its type, dtype and device. Integers are taken at their
    full scale. The length is ``round(T * model.sample_rate / sample_rate)``. ``seconds`` of a window bound the memory,
    they do not change the result; ``level`` "input" gives each channel the active level that it came with, "model"
    leaves the model's; below ``keep_low_band`` Hz the input itself is kept. ``batch`` windows go through the model at
    once, which is for GPUs, and may change the last bits.

    ``progress`` is called after each window with the seconds of sound that were done since its last call;
    ``cancel`` is asked before each block of at most 65536 samples, and the work ends when it returns True.

    Raises:
        AudioError: the shape is not what the model takes, there are no samples, or some are not finite.
        Cancelled: ``cancel`` returned True.
    """
    options = Options(seconds, level, keep_low_band, batch=batch)
    if _is_batch(audio):
        return _batch(audio, [_restore(model, item, sample_rate, options, progress, cancel) for item in audio])
    return _restore(model, audio, sample_rate, options, progress, cancel)


def _is_batch(audio: Any) -> bool:
    """Whether ``audio`` is several signals: a list or tuple of arrays or tensors, or one of three dimensions."""
    if isinstance(audio, list | tuple):
        return any(isinstance(item, np.ndarray | torch.Tensor) for item in audio)
    return isinstance(audio, np.ndarray | torch.Tensor) and audio.ndim == 3 and len(audio) > 0


def _batch(audio: Any, items: list[Any]) -> Any:
    """Items restored, in the form of the batch that they came in."""
    if isinstance(audio, list | tuple):
        return items
    return torch.stack(items) if isinstance(audio, torch.Tensor) else np.stack(items)


def _restore(
    model: Enhancer, audio: Any, sample_rate: int, options: Options, progress: Progress, cancel: Cancel
) -> Any:
    samples, give_back = _as_float(audio, sample_rate)
    rows = np.atleast_2d(samples)
    blocks = np.split(rows, range(BLOCK, rows.shape[1], BLOCK), axis=1)
    source = _cancellable(Source("audio", int(sample_rate), len(rows), lambda: iter(blocks)), cancel)
    outputs = _outputs(model, source)
    survey = measure(source, model.sample_rate)
    for complaint in survey.complaints(inputs_of(model)):
        warnings.warn(f"the audio is {complaint}", stacklevel=3)
    spill = Spill(io.BytesIO(), outputs)
    gains, _ = _render(model, source, survey, model.sample_rate, options, spill, PEAK, progress)
    out = np.concatenate([block * gains for block in spill.blocks()], axis=1)
    return give_back(out.reshape(-1) if samples.ndim == 1 else out)


@honest()
def restore_file(
    model: Enhancer,
    source: str | Path,
    target: str | Path,
    options: Options | None = None,
    *,
    progress: Progress = lambda seconds: None,
    cancel: Cancel = lambda: False,
) -> Report:
    """Restore one sound file into another, format by the suffix of ``target``; ``progress`` hears of seconds done.

    ``target`` appears only when it is complete. Raises AudioError, one line that names the file and what is wrong, and
    Cancelled when ``cancel``, which is asked before each block of sound, returns True.
    """
    options, target, started = options or Options(), Path(target), time.perf_counter()
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise AudioError("would be replaced by its own restoration", subject=source)
    check_writable(target, options.overwrite)
    with Reader(source) as reader:
        given = reader.info
        sound = _cancellable(Source(str(source), given.sample_rate, given.channels, reader.blocks), cancel)
        rate = model.sample_rate if options.sample_rate == "model" else given.sample_rate
        peak = LOSSY_PEAK if coding_for(target, given.subtype)[1] in LOSSY else PEAK
        outputs = _outputs(model, sound)
        survey = measure(sound, model.sample_rate)
        _check_space(target, 4 * outputs * resampled_length(survey.frames, given.sample_rate, rate))
        with (
            Writer(target, rate, outputs, subtype=given.subtype, overwrite=options.overwrite) as writer,
            _spill_beside(target, outputs) as spill,
        ):
            gains, limited = _render(model, sound, survey, rate, options, spill, peak, progress)
            for block in spill.blocks():
                writer.write((block * gains).astype(np.float32))
    elapsed = time.perf_counter() - started
    logger.debug("%s: %d channels at %d Hz restored in %.2f s", source, given.channels, given.sample_rate, elapsed)
    return Report(
        str(source),
        str(target),
        seconds=survey.frames / given.sample_rate,
        channels=given.channels,
        input_sample_rate=given.sample_rate,
        sample_rate=rate,
        elapsed=elapsed,
        realtime_factor=elapsed * given.sample_rate / survey.frames,
        limited_db=limited,
        warnings=survey.complaints(inputs_of(model)),
    )


def _cancellable(source: Source, cancel: Cancel) -> Source:
    """The same sound, whose blocks end with Cancelled as soon as ``cancel`` returns True."""

    def blocks() -> Iterator[Audio]:
        for block in source.blocks():
            if cancel():
                raise Cancelled(f"{source.name}: cancelled")
            yield block

    return replace(source, blocks=blocks)


def _outputs(model: Enhancer, source: Source) -> int:
    """Channels that ``model`` makes of the source's. AudioError if it does not take as many."""
    inputs = inputs_of(model)
    if inputs > 1 and source.channels != inputs:
        has = f"{source.channels} channel" + "s" * (source.channels > 1)
        raise AudioError(f"has {has}; this model hears {inputs}, bone and air", subject=source.name)
    return source.channels // inputs


def measure(source: Source, sample_rate: int) -> Survey:
    """Measure each channel's active level as it is at ``sample_rate``.

    Raises AudioError if there are no samples or some are not finite.
    """
    meter, frames = LevelMeter(source.channels, sample_rate), 0

    def checked() -> Iterator[Audio]:
        nonlocal frames
        for block in source.blocks():
            bad = np.flatnonzero(~np.isfinite(block).all(axis=0))
            if bad.size:
                seconds = (frames + bad[0]) / source.sample_rate
                raise AudioError(f"NaN or infinite samples, the first at {seconds:.3f} s", subject=source.name)
            frames += block.shape[1]
            yield block

    for block in resampled(checked(), source.sample_rate, sample_rate, source.channels):
        meter.add(block)
    if frames == 0:
        raise AudioError("holds no samples", subject=source.name)
    return Survey(frames, meter.levels())


def _render(
    model: Enhancer,
    source: Source,
    survey: Survey,
    rate: int,
    options: Options,
    spill: Spill,
    peak: float,
    progress: Progress,
) -> tuple[Audio, float]:
    """Restore ``source`` into ``spill`` at ``rate``; return gains (C, 1) to play it with, and dB taken off."""
    if options.keep_low_band >= model.sample_rate / 2:
        raise ConfigError(f"keep_low_band is {options.keep_low_band} Hz, must be below {model.sample_rate / 2} Hz")
    gains = np.where(survey.silent, 0, _amplitude(LEVEL - np.where(survey.silent, 0, survey.levels)))[:, None]
    given = resampled(source.blocks(), source.sample_rate, model.sample_rate, source.channels)
    normal = (block * gains.astype(np.float32) for block in given)
    spoken = survey.spoken(inputs_of(model))
    # memory is for as much sound, however many channels share it
    seconds = options.seconds * USUAL / max(USUAL, source.channels)
    pairs = enhance(model, normal, seconds, np.flatnonzero(~spoken.silent), options.batch)
    restored = keep_low_band(_counted(pairs, model.sample_rate, progress), options.keep_low_band, model.sample_rate)
    outputs = len(spoken.levels)
    meter = LevelMeter(outputs, rate)
    # back at the input's rate, the two roundings of the length must not show
    frames = resampled_length(survey.frames, source.sample_rate, rate)
    for block in exactly(resampled(restored, model.sample_rate, rate, outputs), frames, outputs):
        meter.add(block)
        spill.write(block)
    if not np.isfinite(meter.peak).all():
        raise AudioError("the model's output is not finite", subject=source.name)
    return _final_gains(meter, spoken, options.level, peak)


def _counted(
    pairs: Iterator[tuple[Audio, Audio]], sample_rate: int, progress: Progress
) -> Iterator[tuple[Audio, Audio]]:
    for pair in pairs:
        progress(pair[0].shape[1] / sample_rate)
        yield pair


def _final_gains(meter: LevelMeter, survey: Survey, level: str, peak: float) -> tuple[Audio, float]:
    levels = meter.levels()
    gains = np.where(survey.silent, 0.0, 1.0)
    if level == "input":
        matched = ~survey.silent & np.isfinite(levels)
        gains[matched] = _amplitude(survey.levels[matched] - levels[matched])
    loudest = float((gains * meter.peak).max())
    over = max(1.0, loudest / peak)  # one gain for all channels: their balance is part of the recording
    return (gains / over).astype(np.float32)[:, None], 20 * log10(over)


def _amplitude(decibels: NDArray[np.float64]) -> NDArray[np.float64]:
    return 10.0 ** (np.asarray(decibels) / 20)


def _check_space(target: Path, needed: int) -> None:
    """An error now rather than after an hour of work if the disk cannot take ``needed`` bytes."""
    make_folder(target.parent)
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        room = f"{needed / 1e6:.1f} MB are needed while it is made, {free / 1e6:.1f} are free"
        raise AudioError(f"cannot be written (No space left on device: {room})", subject=target)


@contextmanager
def _spill_beside(target: Path, channels: int) -> Iterator[Spill]:
    """A nameless temporary file on the disk that the output goes to: nothing can stay behind."""
    try:
        with TemporaryFile(dir=target.parent, buffering=0) as file:
            yield Spill(file, channels)
    except OSError as error:
        raise AudioError(
            f"cannot be written ({error.strerror or os.strerror(error.errno or 0)})", subject=target
        ) from None


def _as_float(audio: Any, sample_rate: int) -> tuple[Audio, Callable[[Audio], Any]]:
    """Float32 samples of an array or tensor, and the way back to what it was."""
    if sample_rate != int(sample_rate) or sample_rate < 1:
        raise AudioError(f"sample_rate is {sample_rate}, must be a positive whole number of Hz")
    if isinstance(audio, torch.Tensor):
        kind, device = audio.dtype, audio.device
        bits = None if kind.is_floating_point else torch.iinfo(kind).bits
        samples = (audio.detach().to("cpu", torch.float64 if bits else torch.float32)).numpy()
    else:
        audio = np.asarray(audio)
        bits = np.iinfo(audio.dtype).bits if np.issubdtype(audio.dtype, np.integer) else None
        samples = audio.astype(np.float64 if bits else np.float32)
    channels = samples.shape[0] if samples.ndim == 2 else 1
    if samples.ndim not in (1, 2) or channels == 0 or channels > max(256, samples.shape[-1]):
        raise AudioError(f"audio has shape {tuple(samples.shape)}, wanted (T,) or (C, T)")
    scale = 2.0 ** (bits - 1) if bits else 1.0

    def give_back(out: Audio) -> Any:
        scaled = np.round(out * scale) if bits else out
        if isinstance(audio, torch.Tensor):
            return torch.from_numpy(scaled).to(device, kind)
        return scaled.astype(audio.dtype)

    return (samples / scale).astype(np.float32), give_back
