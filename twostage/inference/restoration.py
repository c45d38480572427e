"""Restore recordings of any rate, length and number of channels: arrays, tensors and files, always as a stream.

A first pass measures each channel's level; a second brings it to the level that models are trained at, restores it
in pieces, and spills the result to a temporary file, because its loudness and peak must be known before it is written.
"""

import io
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

from twostage.audio.bandwidth import BandMeter, ChannelBand, ClipMeter
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
from twostage.inference.windows import keep_low_band
from twostage.models.enhancer import Enhancer
from twostage.utils.errors import AudioError, ConfigError
from twostage.utils.files import check_writable, make_folder
from twostage.utils.memory import honest

SILENCE = -90.0  # dBFS: the noise of 16-bit quantization; nothing to restore below it
PEAK, LOSSY_PEAK = 0.99, 0.89  # decoders of lossy formats overshoot what was encoded

A = TypeVar("A", bound=Any)
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Options:
    """How to restore: ``seconds`` of a window, ``level`` "input" or "model", ``keep_low_band`` in Hz (0: nothing).

    ``sample_rate`` of the output file: "model" or "input". ``batch`` windows go through the model at once.
    ``if_full_band``, what becomes of a channel whose band is not missing: "restore", with a warning, "copy" or "error".
    """

    seconds: float = 10.0
    level: str = "input"
    keep_low_band: float = 0.0
    sample_rate: str = "model"
    overwrite: bool = False
    batch: int = 1
    if_full_band: str = "restore"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"batch is {self.batch}, must be at least 1")
        if not self.seconds > 0:
            raise ConfigError(f"seconds is {self.seconds}, must be positive")
        if self.level not in ("input", "model"):
            raise ConfigError(f"level is {self.level!r}, must be 'input' or 'model'")
        if self.sample_rate not in ("input", "model"):
            raise ConfigError(f"sample_rate is {self.sample_rate!r}, must be 'input' or 'model'")
        if self.if_full_band not in ("restore", "copy", "error"):
            raise ConfigError(f"if_full_band is {self.if_full_band!r}, must be 'restore', 'copy' or 'error'")
        if not (self.keep_low_band >= 0 and isfinite(self.keep_low_band)):
            raise ConfigError(f"keep_low_band is {self.keep_low_band}, must be 0 Hz or more")


@dataclass
class Report:
    """What became of one file. ``seconds`` are of audio, ``elapsed`` of work; their quotient is ``realtime_factor``.

    ``high_band_db``: of each channel that is heard, how far 2 to 7.5 kHz stand above 200 to 800 Hz, None where there is
    too little sound; ``copied``: the channels, counted from 1, that were left as they are.
    """

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
    high_band_db: list[float | None] = field(default_factory=list)
    copied: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """Sound that can be streamed more than once: ``blocks()`` yields it from its start as (C, T)."""

    name: str
    sample_rate: int
    channels: int
    blocks: Callable[[], Iterator[Audio]]


@dataclass(frozen=True)
class Survey:
    """What the first pass finds: samples, and each channel's active level (C,) in dBFS at the model's rate and band."""

    frames: int
    levels: NDArray[np.float64]
    bands: tuple[ChannelBand, ...]

    @property
    def silent(self) -> NDArray[np.bool_]:
        return self.levels < SILENCE

    def spoken(self, inputs: int) -> "Survey":
        """Of the first of every ``inputs`` channels: one for each that comes out."""
        return Survey(self.frames, self.levels[::inputs], self.bands[::inputs])

    @property
    def full_band(self) -> NDArray[np.bool_]:
        return np.array([band.full_band for band in self.bands]) & ~self.silent

    def copied(self, if_full_band: str) -> NDArray[np.bool_]:
        """The channels (C,) that are left as they are."""
        return self.full_band & (if_full_band == "copy")

    def complaints(self, inputs: int, if_full_band: str) -> list[str]:
        """About what a model of so many ``inputs`` was not made for."""
        return [*self._about_silence(inputs), *self.spoken(inputs)._about_sound(if_full_band == "copy")]

    def _about_sound(self, copied: bool) -> list[str]:
        heard = np.flatnonzero(~self.silent)
        least = max((band.high_db or 0.0 for band in self.bands if band.full_band), default=0.0)
        done = "copied" if copied else "restored all the same, which can make it worse"
        found = {
            f"full-band already ({-least:.0f} dB from the low to the high band); {done}": self.full_band,
            "without pauses (noise, music or many voices?); made for one voice without noise": np.array(
                [band.unbroken for band in self.bands]
            ),
            "clipped; the distortion is taken for speech": np.array([band.is_clipped for band in self.bands]),
        }
        told = []
        for complaint, which in found.items():
            named = [str(channel + 1) for channel in heard if which[channel]]
            all_of_them = len(named) == len(self.bands)
            told += [complaint if all_of_them else f"channel {', '.join(named)} {complaint}"] * bool(named)
        return told

    def _about_silence(self, inputs: int) -> list[str]:
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
    if_full_band: str = "restore",
) -> A:
    """Restore bone-conducted speech: (T,) or (C, T) -> the same at ``model.sample_rate``, each channel by itself.

    A model of two inputs makes (1, T) of (2, T), bone and air; what is said of the input's level and band is of bone.

    ``audio`` is a numpy array or a tensor; the result is of its type, dtype and device. Integers are taken at their
    full scale. The length is ``round(T * model.sample_rate / sample_rate)``. ``seconds`` of a window bound the memory,
    they do not change the result; ``level`` "input" gives each channel the active level that it came with, "model"
    leaves the model's; below ``keep_low_band`` Hz the input itself is kept. Speech whose band is not missing, noise,
    music and clipping are warned of; ``if_full_band`` "copy" leaves a channel whose band is there as it is, "error"
    refuses it.

    Raises:
        AudioError: the shape is not what the model takes, there are no samples, or some are not finite; or the band is
            there, and ``if_full_band`` is "error".
    """
    options = Options(seconds, level, keep_low_band, if_full_band=if_full_band)
    samples, give_back = _as_float(audio, sample_rate)
    rows = np.atleast_2d(samples)
    blocks = np.split(rows, range(BLOCK, rows.shape[1], BLOCK), axis=1)
    source = Source("audio", int(sample_rate), len(rows), lambda: iter(blocks))
    outputs = _outputs(model, source)
    survey = measure(source, model.sample_rate)
    _check_band(source, survey.spoken(model.inputs), options)
    for complaint in survey.complaints(model.inputs, if_full_band):
        warnings.warn(f"the audio is {complaint}", stacklevel=2)
    spill = Spill(io.BytesIO(), outputs)
    gains, _ = _render(model, source, survey, model.sample_rate, options, spill, PEAK, lambda _: None)
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
) -> Report:
    """Restore one sound file into another, format by the suffix of ``target``; ``progress`` hears of seconds done.

    ``target`` appears only when it is complete. Raises AudioError, one line that names the file and what is wrong.
    """
    options, target, started = options or Options(), Path(target), time.perf_counter()
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise AudioError("would be replaced by its own restoration", subject=source)
    check_writable(target, options.overwrite)
    with Reader(source) as reader:
        given = reader.info
        sound = Source(str(source), given.sample_rate, given.channels, reader.blocks)
        rate = model.sample_rate if options.sample_rate == "model" else given.sample_rate
        peak = LOSSY_PEAK if coding_for(target, given.subtype)[1] in LOSSY else PEAK
        outputs = _outputs(model, sound)
        survey = measure(sound, model.sample_rate)
        spoken = survey.spoken(model.inputs)
        _check_band(sound, spoken, options)
        _check_space(target, 4 * outputs * resampled_length(survey.frames, given.sample_rate, rate))
        with (
            Writer(target, rate, outputs, subtype=given.subtype, overwrite=options.overwrite) as writer,
            _spill_beside(target, outputs) as spill,
        ):
            gains, limited = _render(model, sound, survey, rate, options, spill, peak, progress)
            for block in spill.blocks():
                writer.write((block * gains).astype(np.float32))
    elapsed = time.perf_counter() - started
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
        warnings=survey.complaints(model.inputs, options.if_full_band),
        high_band_db=[band.high_db if band.high_db is None else round(band.high_db, 1) for band in spoken.bands],
        copied=[int(channel) + 1 for channel in np.flatnonzero(spoken.copied(options.if_full_band))],
    )


def _outputs(model: Enhancer, source: Source) -> int:
    """Channels that ``model`` makes of the source's. AudioError if it does not take as many."""
    inputs = model.inputs
    if inputs > 1 and source.channels != inputs:
        has = f"{source.channels} channel" + "s" * (source.channels > 1)
        raise AudioError(f"has {has}; this model hears {inputs}, bone and air", subject=source.name)
    return source.channels // inputs


def _check_band(source: Source, survey: Survey, options: Options) -> None:
    if options.if_full_band == "error" and survey.full_band.any():
        channels = ", ".join(str(channel + 1) for channel in np.flatnonzero(survey.full_band))
        raise AudioError(f"full-band already (channel {channels}); nothing is missing", subject=source.name)


def measure(source: Source, sample_rate: int) -> Survey:
    """Measure each channel's active level and band as they are at ``sample_rate``.

    Raises AudioError if there are no samples or some are not finite.
    """
    meter, frames = LevelMeter(source.channels, sample_rate), 0
    bands, clipping = BandMeter(source.channels, sample_rate), ClipMeter(source.channels)

    def checked() -> Iterator[Audio]:
        nonlocal frames
        for block in source.blocks():
            bad = np.flatnonzero(~np.isfinite(block).all(axis=0))
            if bad.size:
                seconds = (frames + bad[0]) / source.sample_rate
                raise AudioError(f"NaN or infinite samples, the first at {seconds:.3f} s", subject=source.name)
            frames += block.shape[1]
            clipping.add(block)
            yield block

    for block in resampled(checked(), source.sample_rate, sample_rate, source.channels):
        meter.add(block)
        bands.add(block)
    if frames == 0:
        raise AudioError("holds no samples", subject=source.name)
    found = zip(bands.bands(), clipping.shares(), strict=True)
    return Survey(frames, meter.levels(), tuple(replace(band, clipped=float(share)) for band, share in found))


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
    inputs = model.inputs
    spoken = survey.spoken(inputs)
    copied = spoken.copied(options.if_full_band)
    if options.level == "input":
        gains[::inputs][copied] = 1
    given = resampled(source.blocks(), source.sample_rate, model.sample_rate, source.channels)
    normal = (block * gains.astype(np.float32) for block in given)
    # memory is for as much sound, however many channels share it
    seconds = options.seconds * USUAL / max(USUAL, source.channels)
    pairs = enhance(model, normal, seconds, np.flatnonzero(~spoken.silent & ~copied), options.batch)
    counted = _counted(_with_copies(pairs, copied), model.sample_rate, progress)
    restored = keep_low_band(counted, options.keep_low_band, model.sample_rate)
    outputs = len(spoken.levels)
    stream = resampled(restored, model.sample_rate, rate, outputs)
    if copied.any() and (copied | spoken.silent).all():  # what no model hears need not go through its rate
        stream = resampled(_untouched(source, gains, inputs, progress), source.sample_rate, rate, outputs)
    meter = LevelMeter(outputs, rate)
    # back at the input's rate, the two roundings of the length must not show
    frames = resampled_length(survey.frames, source.sample_rate, rate)
    for block in exactly(stream, frames, outputs):
        meter.add(block)
        spill.write(block)
    if not np.isfinite(meter.peak).all():
        raise AudioError("the model's output is not finite", subject=source.name)
    return _final_gains(meter, spoken, options, peak)


def _with_copies(pairs: Iterator[tuple[Audio, Audio]], copied: NDArray[np.bool_]) -> Iterator[tuple[Audio, Audio]]:
    for original, restored in pairs:
        restored[copied] = original[copied]
        yield original, restored


def _untouched(source: Source, gains: Audio, inputs: int, progress: Progress) -> Iterator[Audio]:
    """The first of every ``inputs`` channels as they come, with their gains (C, 1)."""
    for block in source.blocks():
        progress(block.shape[1] / source.sample_rate)
        yield (block * gains.astype(np.float32))[::inputs]


def _counted(
    pairs: Iterator[tuple[Audio, Audio]], sample_rate: int, progress: Progress
) -> Iterator[tuple[Audio, Audio]]:
    for pair in pairs:
        progress(pair[0].shape[1] / sample_rate)
        yield pair


def _final_gains(meter: LevelMeter, survey: Survey, options: Options, peak: float) -> tuple[Audio, float]:
    levels = meter.levels()
    gains = np.where(survey.silent, 0.0, 1.0)
    if options.level == "input":
        matched = ~survey.silent & np.isfinite(levels) & ~survey.copied(options.if_full_band)
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
