"""Streams a sound file hop by hop, as a sound device would, and measures the gain that it needs."""

from contextlib import ExitStack
from pathlib import Path

from twostage.audio.levels import LEVEL
from twostage.audio.sound_files import Reader, Writer
from twostage.inference.input_levels import AudioSource, measure_levels, step_of, without_rumble
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
        source = _source(reader, model.inputs)
        needs_resampling = source.sample_rate != rate
        stream = stack.enter_context(Stream(model, seconds=seconds, gain_db=gain_db, highpassed=needs_resampling))
        blocks = source.blocks()
        if needs_resampling:  # what lies below speech is removed before, because it would ring in the resampler
            blocks = without_rumble(blocks, source, rate, causal=model.causal)
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
        measured = measure_levels(_source(reader, model.inputs), model.sample_rate, causal=model.causal)
    gains = (0.0 if silent else LEVEL - level for level, silent in zip(measured.levels, measured.silent, strict=True))
    return [float(min(max(gain, -LOUDEST), LOUDEST)) for gain in gains]


def _source(reader: Reader, inputs: int) -> AudioSource:
    """The first ``inputs`` channels of a file. Raises AudioError if it has fewer."""
    info = reader.info
    if info.channels < inputs:
        raise AudioError(f"has {info.channels} channel; this model takes {inputs}, bone and air", subject=reader.path)
    blocks = lambda: (block[:inputs] for block in reader.blocks())  # noqa: E731
    return AudioSource(str(reader.path), info.sample_rate, inputs, blocks, step_of(info.subtype))
