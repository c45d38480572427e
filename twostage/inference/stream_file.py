"""Streams a sound file hop by hop, as a sound device would, and measures the gain that it needs."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from twostage.audio.highpass import highpassed
from twostage.audio.levels import LEVEL
from twostage.audio.sound_files import Reader, Writer, resampled
from twostage.audio.types import Audio
from twostage.inference.input_levels import AudioSource, measure_levels, step_of
from twostage.inference.realtime import Timing, run_realtime
from twostage.inference.stream import LOUDEST, Stream
from twostage.models.protocol import Enhancer
from twostage.utils.errors import AudioError


def stream_file(
    model: Enhancer,
    path: str | Path,
    out: str | Path | None,
    *,
    seconds: float,
    gain_db: list[float],
    overwrite: bool = False,
) -> Timing:
    """Stream the first ``model.inputs`` channels of a sound file, and write the output if there is an ``out``.

    ``seconds`` and ``gain_db`` are those of ``Stream``. Raises AudioError if the file cannot be read or has too few
    channels.
    """
    rate, work, samples = model.sample_rate, list[float](), 0
    with Reader(path) as reader, ExitStack() as stack:
        _check_channels(reader, model.inputs)
        needs_resampling = reader.info.sample_rate != rate
        stream = stack.enter_context(Stream(model, seconds=seconds, gain_db=gain_db, highpassed=needs_resampling))
        blocks = _at_rate(reader, model) if needs_resampling else _first_channels(reader, model.inputs)
        shaped = (block[0] if model.inputs == 1 else block for block in blocks)
        writer = stack.enter_context(Writer(out, rate, 1, overwrite=overwrite)) if out else None
        for restored in run_realtime(stream, shaped, model.stride, work):
            samples += len(restored)
            if writer:
                writer.write(restored[None])
        latency = stream.latency / rate
    return Timing.of(work, model.stride / rate, latency, samples / rate)


def measure_gain(model: Enhancer, path: str | Path) -> list[float]:
    """The gain in dB from the level of each of the first ``model.inputs`` channels of a file to that of training."""
    with Reader(path) as reader:
        _check_channels(reader, model.inputs)
        info, inputs = reader.info, model.inputs
        source = AudioSource(
            str(path), info.sample_rate, inputs, lambda: _first_channels(reader, inputs), step_of(info.subtype)
        )
        measured = measure_levels(source, model.sample_rate, causal=model.causal)
    gains = (0.0 if silent else LEVEL - level for level, silent in zip(measured.levels, measured.silent, strict=True))
    return [float(min(max(gain, -LOUDEST), LOUDEST)) for gain in gains]


def _first_channels(reader: Reader, count: int) -> Iterator[Audio]:
    return (block[:count] for block in reader.blocks())


def _at_rate(reader: Reader, model: Enhancer) -> Iterator[Audio]:
    """Blocks at the rate of the model. Sound below speech is removed first: it would ring in the resampler."""
    rate, blocks = reader.info.sample_rate, _first_channels(reader, model.inputs)
    speech = highpassed(blocks, rate, model.inputs, causal=model.causal)
    return resampled(speech, rate, model.sample_rate, model.inputs)


def _check_channels(reader: Reader, inputs: int) -> None:
    channels = reader.info.channels
    if channels < inputs:
        raise AudioError(f"has {channels} channel; this model takes {inputs}, bone and air", subject=reader.path)
