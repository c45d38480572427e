"""Restores recordings of any rate, length and number of channels: arrays, tensors and files, always as a stream.

Everything below speech is removed as the sound is read. A first pass measures the level of each channel. A second pass
brings it to the level that models are trained at, restores it in chunks, and spools the result to a temporary file,
because its loudness and peak must be known before it is written.
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
from numpy.typing import NDArray

from twostage.audio.bandwidth import BandMeter, ChannelBand, ClipMeter, unsuited
from twostage.audio.highpass import highpassed
from twostage.audio.levels import LEVEL, LevelMeter
from twostage.audio.limiter import limited
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
from twostage.inference.arrays import check_sample_rate, taken
from twostage.inference.chunks import enhance
from twostage.inference.windows import keep_low_band
from twostage.models.protocol import Enhancer
from twostage.utils.errors import AudioError, Cancelled, ConfigError
from twostage.utils.files import check_writable, make_folder
from twostage.utils.memory import raise_memory_error
from twostage.utils.packages import is_tensor

# what two values of a coding are apart, at the least: what is quieter is silence; of others, that of 16 bits
STEPS = {"PCM_S8": 2**-7, "PCM_U8": 2**-7, "PCM_24": 2**-23, "PCM_32": 2**-31, "FLOAT": 0.0, "DOUBLE": 0.0}
STEPS |= {"ULAW": 2**-12, "ALAW": 2**-11}
STEP_16 = 2**-15
EPSILON, LEAST = 2**-24, 1e-35  # of the peak, what a float beside it can still hold; what float32 can hold at all
CREST = 14.0  # dB that speech peaks above its active level
PEAK, LOSSY_PEAK = 0.99, 0.89  # decoders of lossy formats overshoot what was encoded

logger = logging.getLogger(__name__)
A = TypeVar("A", bound=Any)
ProgressCallback = Callable[[float], None]  # takes the seconds of sound that were done since its last call
Cancel = Callable[[], bool]  # asked before every block of sound whether to stop


@dataclass(frozen=True)
class Options:
    """How to restore: ``seconds`` of a window, ``level`` "input" or "model", ``keep_low_band`` in Hz (0: nothing).

    ``sample_rate`` of the output file: "model" or "input". ``batch`` windows are processed by the model at once.
    ``salvage`` restores the readable part of a truncated or damaged file, with a warning that says what is missing.
    ``if_full_band``: how to treat a channel that is already full-band: "restore", with a warning, "copy" or "error".
    """

    seconds: float = 10.0
    level: str = "input"
    keep_low_band: float = 0.0
    sample_rate: str = "model"
    overwrite: bool = False
    batch: int = 1
    salvage: bool = False
    if_full_band: str = "restore"

    def __post_init__(self) -> None:
        for name, kinds in (("batch", int), ("seconds", int | float), ("keep_low_band", int | float)):
            value = getattr(self, name)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ConfigError(f"{name} is {value!r}, must be a {'whole ' * (kinds is int)}number")
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
class RestorationReport:
    """The result for one file. ``seconds`` are of audio, ``elapsed`` of work; their quotient is ``realtime_factor``.

    ``high_band_db``: for each channel that is an input of the model, the level of 2 to 7.5 kHz relative to 200 to 800
    Hz, or None if there is too little sound; ``copied``: the channels, counted from 1, that were left as they are.
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
class AudioSource:
    """Sound that can be streamed more than once: ``blocks()`` yields it from its start as (C, T)."""

    name: str
    sample_rate: int
    channels: int
    blocks: Callable[[], Iterator[NDArray[Any]]]
    step: float = 0.0  # what two values are apart


@dataclass(frozen=True)
class InputLevels:
    """Results of the first pass at the model's rate: samples, each channel's active level in dBFS, peak (C,), band.

    A channel is silent if it is too quiet for its source to represent (``resolution``, (C,), an amplitude).
    """

    frames: int
    levels: NDArray[np.float64]
    peaks: NDArray[np.float64]
    resolution: NDArray[np.float64]
    bands: tuple[ChannelBand, ...]

    @property
    def silent(self) -> NDArray[np.bool_]:
        return self.levels < 20 * np.log10(self.resolution)

    def spoken(self, inputs: int) -> "InputLevels":
        """The first of every ``inputs`` channels: one for each output channel."""
        chosen = slice(None, None, inputs)
        return InputLevels(
            self.frames, self.levels[chosen], self.peaks[chosen], self.resolution[chosen], self.bands[chosen]
        )

    @property
    def full_band(self) -> NDArray[np.bool_]:
        """Whether each channel (C,) is already full-band."""
        return np.array([band.full_band for band in self.bands]) & ~self.silent

    def copied(self, options: Options) -> NDArray[np.bool_]:
        """The channels (C,) that are left as they are."""
        return self.full_band & (options.if_full_band == "copy")

    def complaints(self, inputs: int, options: Options) -> list[str]:
        """Warnings about input that a model with so many ``inputs`` was not made for."""
        spoken = self.spoken(inputs)
        return [*self._silence(inputs), *unsuited(spoken.bands, spoken.silent, copied=options.if_full_band == "copy")]

    def _silence(self, inputs: int) -> list[str]:
        silent = np.flatnonzero(self.silent)
        if len(silent) == len(self.levels):
            return ["silent; restored as silence"]
        lost, idle = (
            ", ".join(str(channel + 1) for channel in silent if (channel % inputs > 0) == other)
            for other in (False, True)
        )
        return [f"channel {lost} silent; restored as silence"] * bool(lost) + [f"channel {idle} silent"] * bool(idle)


class SpoolFile:
    """Blocks (C, T) that are written to a binary file and read back."""

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
    batch: int = 1,
    progress: ProgressCallback = lambda seconds: None,
    cancel: Cancel = lambda: False,
) -> A:
    """Restore bone-conducted speech: (T,) or (C, T) -> the same at ``model.sample_rate``, each channel separately.

    A model with two inputs maps (2, T), bone and air, to (1, T); warnings about the level and the band concern bone. A
    batch is a list or tuple of such arrays, of any lengths, or one array (B, C, T). The result is then a list or (B, C,
    T'), with each item restored as it would be alone.

    ``audio`` is a numpy array or a tensor; the result has its type, dtype and device. Integers are taken at their full
    scale, unsigned ones around the middle of their range; floats may be in any unit. The length is
    ``round(T * model.sample_rate / sample_rate)``. ``seconds`` of a window limit the memory and do not change the
    result. With ``level`` "input", each channel keeps its active level; with "model", it has the level of the model's
    output. Below ``keep_low_band`` Hz the input itself is kept. Speech whose band is not missing, noise, music and
    clipping cause warnings; with ``if_full_band`` "copy", a channel that is already full-band stays as it is, with
    "error" it is refused. ``batch`` windows are processed by the model at once, which is for GPUs and may change the
    last bits.

    ``progress`` is called after each window with the seconds of sound that were done since its last call. ``cancel`` is
    called before each block of at most 65536 samples, and the work ends when it returns True.

    Everything below speech (an offset, a drift, movement) is removed first. A peak beyond full scale, or beyond that of
    floats which exceed full scale themselves, is attenuated together with its surroundings. The model runs in
    evaluation mode, even if it was left in training mode.

    Raises:
        AudioError: the shape or dtype cannot be restored, ``sample_rate`` is not one that files may have, there are no
            samples, or some are not finite; or a channel is full-band, and ``if_full_band`` is "error".
        ConfigError: ``model`` is not a model, or a setting is out of range.
        Cancelled: ``cancel`` returned True.
    """
    if not callable(model):
        raise ConfigError(f"model is {str(model)[:100]!r}, must be what twostage.load gives")
    options = Options(seconds, level, keep_low_band, batch=batch, if_full_band=if_full_band)
    if _is_batch(audio):
        return _batch(audio, [_restore(model, item, sample_rate, options, progress, cancel) for item in audio])
    return _restore(model, audio, sample_rate, options, progress, cancel)


def _is_batch(audio: Any) -> bool:
    """Whether ``audio`` is several signals: a list or tuple of arrays or tensors, or one of three dimensions."""
    if isinstance(audio, list | tuple):
        return any(isinstance(item, np.ndarray) or is_tensor(item) for item in audio)
    return (isinstance(audio, np.ndarray) or is_tensor(audio)) and audio.ndim == 3 and len(audio) > 0


def _batch(audio: Any, items: list[Any]) -> Any:
    """Items restored, in the form of the batch that they came in."""
    if isinstance(audio, list | tuple):
        return items
    if not is_tensor(audio):
        return np.stack(items)
    import torch

    return torch.stack(items)


def _restore(
    model: Enhancer, audio: Any, sample_rate: int, options: Options, progress: ProgressCallback, cancel: Cancel
) -> Any:
    rate, samples = check_sample_rate(sample_rate), taken(audio)
    rows = np.atleast_2d(samples.audio)
    blocks = np.split(rows, range(BLOCK, rows.shape[1], BLOCK), axis=1)
    source = _cancellable(AudioSource("audio", rate, len(rows), lambda: iter(blocks), samples.step), cancel)
    outputs = _outputs(model, source)
    input_levels = measure_levels(source, model.sample_rate, causal=model.causal)
    _check_band(source, input_levels.spoken(model.inputs), options)
    for complaint in input_levels.complaints(model.inputs, options):
        warnings.warn(f"the audio is {complaint}", stacklevel=3)
    spool = SpoolFile(io.BytesIO(), outputs)
    peak = PEAK if samples.step else max(PEAK, float(input_levels.peaks.max()))
    rendering = _render(model, source, input_levels, model.sample_rate, options, spool, peak, progress)
    out = np.concatenate(list(rendering.blocks(spool)), axis=1)
    return samples.give_back(out.reshape(-1) if samples.audio.ndim == 1 else out)


@raise_memory_error()
def restore_file(
    model: Enhancer,
    source: str | Path,
    target: str | Path,
    options: Options | None = None,
    *,
    progress: ProgressCallback = lambda seconds: None,
    cancel: Cancel = lambda: False,
) -> RestorationReport:
    """Restore one sound file into another, in the format of ``target``'s suffix; ``progress`` receives seconds done.

    ``target`` appears only when it is complete. Raises AudioError, one line that names the file and what is wrong, and
    Cancelled if ``cancel``, which is called before each block of sound, returns True.
    """
    options, target, started = options or Options(), Path(target), time.perf_counter()
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise AudioError("would be replaced by its own restoration", subject=source)
    check_writable(target, options.overwrite)
    with Reader(source, salvage=options.salvage) as reader:
        info = reader.info
        whole = AudioSource(str(source), info.sample_rate, info.channels, reader.blocks, step_of(info.subtype))
        sound = _cancellable(whole, cancel)
        rate = model.sample_rate if options.sample_rate == "model" else info.sample_rate
        peak = LOSSY_PEAK if coding_for(target, info.subtype)[1] in LOSSY else PEAK
        outputs = _outputs(model, sound)
        input_levels = measure_levels(sound, model.sample_rate, causal=model.causal)
        spoken = input_levels.spoken(model.inputs)
        _check_band(sound, spoken, options)
        _check_space(target, 4 * outputs * resampled_length(input_levels.frames, info.sample_rate, rate))
        with (
            Writer(target, rate, outputs, subtype=info.subtype, overwrite=options.overwrite) as writer,
            _spool_beside(target, outputs) as spool,
        ):
            rendering = _render(model, sound, input_levels, rate, options, spool, peak, progress)
            for block in rendering.blocks(spool):
                writer.write(block)
    elapsed = time.perf_counter() - started
    logger.debug("%s: %d channels at %d Hz restored in %.2f s", source, info.channels, info.sample_rate, elapsed)
    return RestorationReport(
        str(source),
        str(target),
        seconds=input_levels.frames / info.sample_rate,
        channels=info.channels,
        input_sample_rate=info.sample_rate,
        sample_rate=rate,
        elapsed=elapsed,
        realtime_factor=elapsed * info.sample_rate / input_levels.frames,
        limited_db=rendering.limited_db,
        warnings=[*reader.notes, *input_levels.complaints(model.inputs, options)],
        high_band_db=[band.high_db if band.high_db is None else round(band.high_db, 1) for band in spoken.bands],
        copied=[int(channel) + 1 for channel in np.flatnonzero(spoken.copied(options))],
    )


def step_of(subtype: str) -> float:
    """The difference between two adjacent values of a sound file's encoding, at full scale 1; 0 for floats."""
    return STEPS.get(subtype, STEP_16)


def _cancellable(source: AudioSource, cancel: Cancel) -> AudioSource:
    """The same sound, whose blocks raise Cancelled as soon as ``cancel`` returns True."""

    def blocks() -> Iterator[Audio]:
        for block in source.blocks():
            if cancel():
                raise Cancelled(f"{source.name}: cancelled")
            yield block

    return replace(source, blocks=blocks)


def _outputs(model: Enhancer, source: AudioSource) -> int:
    """The number of channels that ``model`` outputs for the source. AudioError if it does not take as many."""
    inputs = model.inputs
    if inputs > 1 and source.channels != inputs:
        has = f"{source.channels} channel" + "s" * (source.channels > 1)
        raise AudioError(f"has {has}; this model takes {inputs}, bone and air", subject=source.name)
    return source.channels // inputs


def _check_band(source: AudioSource, input_levels: InputLevels, options: Options) -> None:
    if options.if_full_band == "error" and input_levels.full_band.any():
        channels = ", ".join(str(channel + 1) for channel in np.flatnonzero(input_levels.full_band))
        raise AudioError(f"full-band already (channel {channels}); nothing is missing", subject=source.name)


def measure_levels(source: AudioSource, sample_rate: int, *, causal: bool = False) -> InputLevels:
    """Measure each channel's active level and band as they are at ``sample_rate``, for a ``causal`` model or another.

    Raises AudioError if there are no samples or some are not finite.
    """
    meter, frames, peaks = LevelMeter(source.channels, sample_rate), 0, np.zeros(source.channels)
    bands, clipping = BandMeter(source.channels, sample_rate), ClipMeter(source.channels)

    def checked() -> Iterator[NDArray[Any]]:
        nonlocal frames, peaks
        for block in source.blocks():
            bad = np.flatnonzero(~np.isfinite(block).all(axis=0))
            if bad.size:
                seconds = (frames + bad[0]) / source.sample_rate
                raise AudioError(f"NaN or infinite samples, the first at {seconds:.3f} s", subject=source.name)
            frames += block.shape[1]
            peaks = np.maximum(peaks, np.abs(block).max(axis=1, initial=0))
            if peaks.max() > np.finfo(np.float32).max:
                what = f"samples of up to {peaks.max():.0e} are more than can be restored"
                raise AudioError(what, subject=source.name)
            clipping.add(block)
            yield block

    for block in _speech(checked(), source, sample_rate, causal=causal):
        meter.add(block)
        bands.add(block)
    if frames == 0:
        raise AudioError("holds no samples", subject=source.name)
    resolution = np.maximum(np.maximum(source.step, EPSILON * peaks), LEAST)
    channels = zip(bands.bands(), clipping.shares(), strict=True)
    channel_bands = tuple(replace(band, clipped=float(share)) for band, share in channels)
    return InputLevels(frames, meter.levels(), meter.peak, resolution, channel_bands)


def _speech(blocks: Iterator[NDArray[Any]], source: AudioSource, sample_rate: int, *, causal: bool) -> Iterator[Audio]:
    """Blocks of ``source`` at ``sample_rate``, without what lies below speech: it would ring in the resampler."""
    high = highpassed(blocks, source.sample_rate, source.channels, causal=causal)
    return resampled(high, source.sample_rate, sample_rate, source.channels)


@dataclass(frozen=True)
class Rendering:
    """How a spooled restoration is written: gains (C, 1), and a limiter that keeps it below ``peak``."""

    gains: Audio
    peak: float
    sample_rate: int
    limited_db: float  # what is taken off the loudest sample, at the most

    def blocks(self, spool: SpoolFile) -> Iterator[Audio]:
        played = ((block * self.gains).astype(np.float32) for block in spool.blocks())
        yield from limited(played, self.peak, self.sample_rate)


def _render(
    model: Enhancer,
    source: AudioSource,
    input_levels: InputLevels,
    rate: int,
    options: Options,
    spool: SpoolFile,
    peak: float,
    progress: ProgressCallback,
) -> Rendering:
    """Restore ``source`` into ``spool`` at ``rate``; returns how to play it."""
    if options.keep_low_band >= model.sample_rate / 2:
        raise ConfigError(f"keep_low_band is {options.keep_low_band} Hz, must be below {model.sample_rate / 2} Hz")
    gains = np.where(input_levels.silent, 0, _amplitude(LEVEL - np.where(input_levels.silent, 0, input_levels.levels)))[
        :, None
    ]
    spoken = input_levels.spoken(model.inputs)
    copied = spoken.copied(options)
    if options.level == "input":
        gains[:: model.inputs][copied] = 1
    speech = _speech(source.blocks(), source, model.sample_rate, causal=model.causal)
    normal = (block * gains.astype(np.float32) for block in speech)
    # memory is for as much sound, however many channels share it
    seconds = options.seconds * USUAL / max(USUAL, source.channels)
    pairs = enhance(model, normal, seconds, np.flatnonzero(~spoken.silent & ~copied), options.batch)
    counted = _counted(_with_copies(pairs, copied), model.sample_rate, progress)
    restored = keep_low_band(counted, options.keep_low_band, model.sample_rate)
    outputs = len(spoken.levels)
    stream = resampled(restored, model.sample_rate, rate, outputs)
    if copied.any() and (copied | spoken.silent).all():  # what no model processes need not go through its rate
        stream = resampled(_untouched(source, gains, model.inputs, progress), source.sample_rate, rate, outputs)
    meter = LevelMeter(outputs, rate)
    # back at the input's rate, the two roundings of the length must not show
    frames = resampled_length(input_levels.frames, source.sample_rate, rate)
    for block in exactly(stream, frames, outputs):
        meter.add(block)
        spool.write(block)
    if not np.isfinite(meter.peak).all():
        raise AudioError("the model's output is not finite", subject=source.name)
    gains, limited_db = _final_gains(meter, spoken, options, peak)
    return Rendering(gains, peak, rate, limited_db)


def _with_copies(pairs: Iterator[tuple[Audio, Audio]], copied: NDArray[np.bool_]) -> Iterator[tuple[Audio, Audio]]:
    for original, restored in pairs:
        restored[copied] = original[copied]
        yield original, restored


def _untouched(source: AudioSource, gains: Audio, inputs: int, progress: ProgressCallback) -> Iterator[Audio]:
    """The first of every ``inputs`` channels as they come, with their gains (C, 1)."""
    for block in source.blocks():
        progress(block.shape[1] / source.sample_rate)
        yield (block * gains).astype(np.float32)[::inputs]


def _counted(
    pairs: Iterator[tuple[Audio, Audio]], sample_rate: int, progress: ProgressCallback
) -> Iterator[tuple[Audio, Audio]]:
    for pair in pairs:
        progress(pair[0].shape[1] / sample_rate)
        yield pair


def _final_gains(meter: LevelMeter, input_levels: InputLevels, options: Options, peak: float) -> tuple[Audio, float]:
    """Gains (C, 1) at which speech fits below ``peak``, and dB that are taken off the loudest sample in all."""
    levels = meter.levels()
    gains = np.where(input_levels.silent, 0.0, 1.0)
    if options.level == "input":
        matched = ~input_levels.silent & np.isfinite(levels) & ~input_levels.copied(options)
        gains[matched] = _amplitude(input_levels.levels[matched] - levels[matched])
    loudest = float((gains * meter.peak).max())
    # one sample does not decide the gain of an hour: what goes beyond the peaks of speech is left to the limiter
    typical = float((gains * _amplitude(levels + CREST)).max())
    over = max(1.0, min(loudest, typical) / peak)  # one gain for all channels: their balance is part of the recording
    return (gains / over).astype(np.float32)[:, None], 20 * log10(max(1.0, loudest / peak))


def _amplitude(decibels: NDArray[np.float64]) -> NDArray[np.float64]:
    return 10.0 ** (np.asarray(decibels) / 20)


def _check_space(target: Path, needed: int) -> None:
    """Raise an error now, rather than after an hour of work, if the disk has no room for ``needed`` bytes."""
    make_folder(target.parent)
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        room = f"{needed / 1e6:.1f} MB are needed while it is made, {free / 1e6:.1f} are free"
        raise AudioError(f"cannot be written (No space left on device: {room})", subject=target)


@contextmanager
def _spool_beside(target: Path, channels: int) -> Iterator[SpoolFile]:
    """A nameless temporary file on the disk of the output, which cannot be left behind."""
    try:
        with TemporaryFile(dir=target.parent, buffering=0) as file:
            yield SpoolFile(file, channels)
    except OSError as error:
        raise AudioError(
            f"cannot be written ({error.strerror or os.strerror(error.errno or 0)})", subject=target
        ) from None
