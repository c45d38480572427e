"""Spectrograms and sound files of selected utterances of an evaluation."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from twostage.audio import plots, sound_files
from twostage.audio.types import Audio
from twostage.data.manifest import Entry
from twostage.evaluation.metrics import SAMPLE_RATE
from twostage.evaluation.pairs import PairSource
from twostage.evaluation.report import CLEAN
from twostage.evaluation.results import PICTURES, SOUNDS, EvaluationResults
from twostage.evaluation.systems import System, estimates


def show(
    folder: Path, entries: Sequence[Entry], source: PairSource, systems: Sequence[System], keep_low_band: float = 0.0
) -> None:
    """Write spectrograms and sounds of input, estimates and clean speech to two folders below ``folder``.

    For each entry, there is a PNG with the spectrograms in a column, and a folder of FLAC files at 16 kHz. Files
    that cannot be used are skipped: ``evaluate`` reports them.
    """
    for entry in entries:
        name = source.name(entry)
        with EvaluationResults().collecting(name, entry.name):
            degraded, clean = source.read(entry)
            sounds = {**dict(estimates(degraded, clean, systems, keep_low_band)), CLEAN: clean}
            draw(folder / PICTURES / f"{file_name(name)}.png", sounds)
            for title, sound in sounds.items():
                target = folder / SOUNDS / file_name(name) / f"{file_name(title)}.flac"
                sound_files.write(target, sound.clip(-1, 1)[None], SAMPLE_RATE, overwrite=True)


def draw(path: Path, sounds: Mapping[str, Audio]) -> None:
    """Draw the spectrograms of sounds (T,) at 16 kHz, by title, in a column."""
    panels = [plots.spectrogram([sound[None]], SAMPLE_RATE, len(sound), title) for title, sound in sounds.items()]
    plots.draw(path, panels, overwrite=True)


def file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)
