"""Simulates a recording of a sound file and writes it to a file."""

from pathlib import Path

import numpy as np

from twostage.audio import sound_files
from twostage.audio.speech import without_drift
from twostage.data.noise import Air
from twostage.data.sensors import Sensor
from twostage.data.simulator import simulate_file
from twostage.utils.errors import AudioError
from twostage.utils.files import check_writable


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
    """Write the simulated recording of ``source`` by ``sensor``; it depends on the sound, ``seed`` and ``name`` only.

    With ``air``, the second channel is the air microphone. Raises AudioError.
    """
    check_writable(target, overwrite)
    sound_files.coding_for(target)
    clean, sample_rate = sound_files.read(source)
    if not np.isfinite(clean).all():
        raise AudioError("holds NaN or infinite samples", subject=source)
    clean = without_drift(clean, sample_rate)
    if air and len(clean) > 1:
        raise AudioError(f"has {len(clean)} channels; --air-snr makes two of a file with one", subject=source)
    simulated = simulate_file(clean, sample_rate, sensor, seed, name)
    if air:
        simulated = np.concatenate([simulated, air.of(clean[0], sample_rate, name)[None]])
    peak = float(np.abs(simulated).max())
    if peak > 0.99:  # attenuated to avoid clipping
        simulated = simulated * np.float32(0.99 / peak)
    sound_files.write(target, simulated, sample_rate, subtype=sound_files.info(source).subtype, overwrite=overwrite)
