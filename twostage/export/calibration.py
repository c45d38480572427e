"""Speech for calibrating the activation ranges of an int8 model."""

from collections.abc import Iterator
from pathlib import Path

from twostage.audio import sound_files
from twostage.audio.levels import leveled
from twostage.audio.speech import without_drift
from twostage.audio.types import Audio
from twostage.data.manifest import read_manifest
from twostage.data.sensors import Sensor
from twostage.data.simulator import simulate_file
from twostage.utils.errors import AudioError, ConfigError

UTTERANCES = 32  # evenly spaced in the source; with more, the ranges hardly grow
SECONDS = 10.0  # of each


def calibration_speech(source: str | Path, sensor: Sensor | None, sample_rate: int) -> Iterator[Audio]:
    """First channels (T,) at ``sample_rate`` and at the level at which models are trained.

    ``source``: a folder or a manifest of bone-conducted recordings or, with ``sensor``, of clean speech for the
    simulation.
    """
    files = _files(Path(source), clean=sensor is not None)
    count = min(UTTERANCES, len(files))
    for file in [files[index * len(files) // count] for index in range(count)]:
        samples, rate = sound_files.read(file, frames=round(SECONDS * sound_files.info(file).sample_rate))
        samples = sound_files.resample(without_drift(samples[:1], rate), rate, sample_rate)
        yield leveled(simulate_file(samples, sample_rate, sensor, 0, file) if sensor else samples, sample_rate)[0]


def _files(source: Path, *, clean: bool) -> list[str]:
    if source.suffix.lower() not in (".csv", ".jsonl"):
        files = [str(file) for file, _ in sound_files.find([source])]
    else:
        paths = ((entry.clean if clean else entry.degraded) for entry in read_manifest(source))
        files = [path for path in paths if path]
        if not files and not clean:
            raise ConfigError("contains clean speech only; --simulate degrades it by a sensor", subject=source)
    if not files:
        raise AudioError("no sound files found", subject=source)
    return files
