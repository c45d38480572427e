"""Restores recordings of any rate, length and number of channels: arrays, tensors and files, always as a stream.

Everything below speech is removed while the sound is read. A first pass measures the level of each channel. The second
pass scales it to the level at which models are trained, restores it in chunks, and spools it to a temporary file,
because its loudness and peak must be known before it is written.
"""

import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from twostage.audio.sound_files import (
    BLOCK,
    LOSSY,
    Reader,
    Writer,
    coding_for,
    resampled_length,
)
from twostage.audio.types import Audio
from twostage.inference.arrays import check_sample_rate, to_samples
from twostage.inference.input_levels import AudioSource, InputLevels, measure_levels, step_of
from twostage.inference.rendering import ProgressCallback, render
from twostage.inference.restore_options import Options
from twostage.inference.spool import SpoolFile, check_space, spool_beside
from twostage.models.protocol import Enhancer
from twostage.utils.errors import AudioError, Cancelled, ConfigError
from twostage.utils.files import check_writable
from twostage.utils.memory import raise_memory_error
from twostage.utils.packages import is_tensor

PEAK, LOSSY_PEAK = 0.99, 0.89  # decoders of lossy formats overshoot the encoded signal

logger = logging.getLogger(__name__)
A = TypeVar("A", bound=Any)
Cancel = Callable[[], bool]  # called before every block of sound; True stops the work


@dataclass
class RestorationReport:
    """The result for one file; ``elapsed`` seconds of work for ``seconds`` of audio give ``realtime_factor``.

    ``high_band_db``: for each channel that is an input of the model, the level of 2 to 7.5 kHz relative to 200 to 800
    Hz, or None if there is too little sound; ``copied``: the channels, counted from 1, that were not changed.
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
        raise ConfigError(f"model is {str(model)[:100]!r}, must be a model that twostage.load returns")
    options = Options(seconds, level, keep_low_band, batch=batch, if_full_band=if_full_band)
    if _is_batch(audio):
        return _as_batch(audio, [_restore(model, item, sample_rate, options, progress, cancel) for item in audio])
    return _restore(model, audio, sample_rate, options, progress, cancel)


def _is_batch(audio: Any) -> bool:
    """Whether ``audio`` is several signals: a list or tuple of arrays or tensors, or one of three dimensions."""
    if isinstance(audio, list | tuple):
        return any(isinstance(item, np.ndarray) or is_tensor(item) for item in audio)
    return (isinstance(audio, np.ndarray) or is_tensor(audio)) and audio.ndim == 3 and len(audio) > 0


def _as_batch(audio: Any, items: list[Any]) -> Any:
    """Restored items in the container type of the input batch."""
    if isinstance(audio, list | tuple):
        return items
    if not is_tensor(audio):
        return np.stack(items)
    import torch

    return torch.stack(items)


def _restore(
    model: Enhancer, audio: Any, sample_rate: int, options: Options, progress: ProgressCallback, cancel: Cancel
) -> Any:
    rate, samples = check_sample_rate(sample_rate), to_samples(audio)
    rows = np.atleast_2d(samples.audio)
    blocks = np.split(rows, range(BLOCK, rows.shape[1], BLOCK), axis=1)
    source = _cancellable(AudioSource("audio", rate, len(rows), lambda: iter(blocks), samples.step), cancel)
    outputs = _outputs(model, source)
    input_levels = measure_levels(source, model.sample_rate, causal=model.causal)
    _check_band(source, input_levels.bone(model.inputs), options)
    for warning in input_levels.warnings(model.inputs, options):
        warnings.warn(f"the audio is {warning}", stacklevel=3)
    spool = SpoolFile(io.BytesIO(), outputs)
    peak = PEAK if samples.step else max(PEAK, float(input_levels.peaks.max()))
    rendering = render(model, source, input_levels, model.sample_rate, options, spool, peak, progress)
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
    """Restore one sound file into another, in the format of ``target``'s suffix; ``progress`` is as in ``restore``.

    ``target`` appears only when it is complete. Raises AudioError, one line that names the file and what is wrong, and
    Cancelled if ``cancel``, which is called before each block of sound, returns True.
    """
    options, target, started = options or Options(), Path(target), time.perf_counter()
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise AudioError("would be replaced by its own restoration", subject=source)
    check_writable(target, options.overwrite)
    with Reader(source, salvage=options.salvage) as reader:
        info = reader.info
        file_source = AudioSource(str(source), info.sample_rate, info.channels, reader.blocks, step_of(info.subtype))
        cancellable = _cancellable(file_source, cancel)
        rate = model.sample_rate if options.sample_rate == "model" else info.sample_rate
        peak = LOSSY_PEAK if coding_for(target, info.subtype)[1] in LOSSY else PEAK
        outputs = _outputs(model, cancellable)
        input_levels = measure_levels(cancellable, model.sample_rate, causal=model.causal)
        bone = input_levels.bone(model.inputs)
        _check_band(cancellable, bone, options)
        check_space(target, 4 * outputs * resampled_length(input_levels.frames, info.sample_rate, rate))
        with (
            Writer(target, rate, outputs, subtype=info.subtype, overwrite=options.overwrite) as writer,
            spool_beside(target, outputs) as spool,
        ):
            rendering = render(model, cancellable, input_levels, rate, options, spool, peak, progress)
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
        warnings=[*reader.notes, *input_levels.warnings(model.inputs, options)],
        high_band_db=[band.high_db if band.high_db is None else round(band.high_db, 1) for band in bone.bands],
        copied=[int(channel) + 1 for channel in np.flatnonzero(bone.copied(options))],
    )


def _cancellable(source: AudioSource, cancel: Cancel) -> AudioSource:
    """The same source, whose blocks raise Cancelled as soon as ``cancel`` returns True."""

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
        count = f"{source.channels} channel" + "s" * (source.channels > 1)
        raise AudioError(f"has {count}; this model takes {inputs}, bone and air", subject=source.name)
    return source.channels // inputs


def _check_band(source: AudioSource, input_levels: InputLevels, options: Options) -> None:
    if options.if_full_band == "error" and input_levels.full_band.any():
        channels = ", ".join(str(channel + 1) for channel in np.flatnonzero(input_levels.full_band))
        raise AudioError(f"full-band already (channel {channels}); nothing is missing", subject=source.name)
