"""A simulated recording of a sound file, as a file."""

from pathlib import Path

import numpy as np

from twostage import audio
from twostage.data.air import Air
from twostage.data.presets import Sensor
from twostage.data.simulate import simulate_file
from twostage.errors import AudioError
from twostage.files import check_writable


def simulate_recording(
    source: Path,
    target: Path,
    sensor: Sensor,
    seed: int,
    name: str,
    *,
    air: Air | None = None,
    overwrite: bool = False,
) -> None:
    """Write what ``sensor`` would hear of ``source``, a function of the sound, ``seed`` and ``name``. AudioError.

    With ``air``, a second channel is what the microphone in the air beside it hears.
    """
    check_writable(target, overwrite)
    audio.coding_for(target)
    clean, sample_rate = audio.read(source)
    if not np.isfinite(clean).all():
        raise AudioError(f"{source}: holds NaN or infinite samples")
    if air and len(clean) > 1:
        raise AudioError(f"{source}: has {len(clean)} channels; --air-snr makes two of a file with one")
    made = simulate_file(clean, sample_rate, sensor, seed, name)
    if air:
        made = np.concatenate([made, air.of(clean[0], sample_rate, name)[None]])
    peak = float(np.abs(made).max())
    if peak > 0.99:  # quieter rather than clipped
        made = made * np.float32(0.99 / peak)
    audio.write(target, made, sample_rate, subtype=audio.info(source).subtype, overwrite=overwrite)
