"""The second pass: restores sound into a spool file, and reads that at its final level, limited to the peak."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log10

import numpy as np
from numpy.typing import NDArray

from twostage.audio.levels import LEVEL, LevelMeter
from twostage.audio.limiter import limited
from twostage.audio.sound_files import USUAL, exactly, resampled, resampled_length
from twostage.audio.types import Audio
from twostage.inference.chunks import enhance
from twostage.inference.input_levels import AudioSource, InputLevels, without_rumble
from twostage.inference.restore_options import Options
from twostage.inference.spool import SpoolFile
from twostage.inference.windows import keep_low_band
from twostage.models.protocol import Enhancer
from twostage.utils.errors import AudioError, ConfigError

CREST = 14.0  # dB by which the peaks of speech exceed its active level
ProgressCallback = Callable[[float], None]  # receives the seconds of sound processed since its last call


@dataclass(frozen=True)
class Rendering:
    """How a spooled restoration is written: gains (C, 1), and a limiter that keeps it below ``peak``."""

    gains: Audio
    peak: float
    sample_rate: int
    limited_db: float  # by which the loudest sample is attenuated

    def blocks(self, spool: SpoolFile) -> Iterator[Audio]:
        amplified = ((block * self.gains).astype(np.float32) for block in spool.blocks())
        yield from limited(amplified, self.peak, self.sample_rate)


def render(
    model: Enhancer,
    source: AudioSource,
    input_levels: InputLevels,
    rate: int,
    options: Options,
    spool: SpoolFile,
    peak: float,
    progress: ProgressCallback,
) -> Rendering:
    """Restore ``source`` into ``spool`` at ``rate``; returns the gains and the limiter with which to write it."""
    if options.keep_low_band >= model.sample_rate / 2:
        raise ConfigError(f"keep_low_band is {options.keep_low_band} Hz, must be below {model.sample_rate / 2} Hz")
    bone, gains = input_levels.bone(model.inputs), _input_gains(input_levels, model.inputs, options)
    copied, outputs = bone.copied(options), len(bone.levels)
    if copied.any() and (copied | bone.silent).all():  # no channel needs the model: skip resampling to its rate
        stream = resampled(_copied_blocks(source, gains, model.inputs, progress), source.sample_rate, rate, outputs)
    else:
        restored = _restored_blocks(model, source, gains, options, bone, progress)
        stream = resampled(restored, model.sample_rate, rate, outputs)
    meter = LevelMeter(outputs, rate)
    # resampling to the rate of the model and back rounds the length twice
    frames = resampled_length(input_levels.frames, source.sample_rate, rate)
    for block in exactly(stream, frames, outputs):
        meter.add(block)
        spool.write(block)
    if not np.isfinite(meter.peak).all():
        raise AudioError("the model's output is not finite", subject=source.name)
    final_gains, limited_db = _final_gains(meter, bone, options, peak)
    return Rendering(final_gains, peak, rate, limited_db)


def _input_gains(input_levels: InputLevels, inputs: int, options: Options) -> NDArray[np.float64]:
    """Gains (C, 1) to the level at which models are trained; 0 for a silent channel."""
    silent = input_levels.silent
    gains = np.where(silent, 0, _amplitude(LEVEL - np.where(silent, 0, input_levels.levels)))[:, None]
    if options.level == "input":
        gains[::inputs][input_levels.bone(inputs).copied(options)] = 1
    return gains


def _restored_blocks(
    model: Enhancer,
    source: AudioSource,
    gains: NDArray[np.float64],
    options: Options,
    bone: InputLevels,
    progress: ProgressCallback,
) -> Iterator[Audio]:
    """The output of the model for ``source``, at the rate of the model, with copied channels of the input."""
    speech = without_rumble(source.blocks(), source, model.sample_rate, causal=model.causal)
    leveled = (block * gains.astype(np.float32) for block in speech)
    # the memory of a window is shared by all channels
    seconds = options.seconds * USUAL / max(USUAL, source.channels)
    copied = bone.copied(options)
    pairs = enhance(model, leveled, seconds, np.flatnonzero(~bone.silent & ~copied), options.batch)
    counted = _counted(_with_copies(pairs, copied), model.sample_rate, progress)
    yield from keep_low_band(counted, options.keep_low_band, model.sample_rate)


def _with_copies(pairs: Iterator[tuple[Audio, Audio]], copied: NDArray[np.bool_]) -> Iterator[tuple[Audio, Audio]]:
    for original, restored in pairs:
        restored[copied] = original[copied]
        yield original, restored


def _copied_blocks(
    source: AudioSource, gains: NDArray[np.float64], inputs: int, progress: ProgressCallback
) -> Iterator[Audio]:
    """The first of every ``inputs`` channels of ``source`` at its own rate, with their gains (C, 1)."""
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
    """Gains (C, 1) at which speech stays below ``peak``, and the total attenuation of the loudest sample, dB."""
    levels = meter.levels()
    gains = np.where(input_levels.silent, 0.0, 1.0)
    if options.level == "input":
        matched = ~input_levels.silent & np.isfinite(levels) & ~input_levels.copied(options)
        gains[matched] = _amplitude(input_levels.levels[matched] - levels[matched])
    loudest = float((gains * meter.peak).max())
    # a single sample must not determine the gain of an hour: the limiter handles what exceeds the peaks of speech
    typical = float((gains * _amplitude(levels + CREST)).max())
    attenuation = max(1.0, min(loudest, typical) / peak)  # one gain for all channels, to keep their balance
    return (gains / attenuation).astype(np.float32)[:, None], 20 * log10(max(1.0, loudest / peak))


def _amplitude(decibels: NDArray[np.float64]) -> NDArray[np.float64]:
    return 10.0 ** (np.asarray(decibels) / 20)
