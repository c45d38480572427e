"""The test data: pairs of degraded and clean speech, recorded or simulated."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twostage.audio import sound_files
from twostage.audio.types import Audio
from twostage.data.aligned_pair import open_pair, read_mono
from twostage.data.manifest import Entry
from twostage.data.noise import Air
from twostage.data.sensors import Sensor
from twostage.data.simulator import simulate_file
from twostage.evaluation.metrics import SAMPLE_RATE
from twostage.evaluation.report import AIR, RAW
from twostage.utils.errors import DataError


@dataclass(frozen=True)
class PairSource:
    """The source of utterances: recorded pairs, or clean speech degraded as by `twostage simulate`.

    With ``air``, a noisy air microphone is simulated in addition to the body sensor.
    """

    folder: Path  # to which names are relative
    sensor: Sensor | None = None
    seed: int = 0
    air: Air | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the microphones that record every utterance."""
        return (RAW, AIR) if self.air else (RAW,)

    def name(self, entry: Entry) -> str:
        path = entry.clean if self.sensor else entry.name
        return Path(os.path.relpath(path or "", self.folder)).as_posix()

    def read(self, entry: Entry) -> tuple[Audio, Audio]:
        """Degraded and clean speech at 16 kHz, (T,) each, of any lengths; with an air channel, degraded (2, T)."""
        bone, clean = self._bone(entry)
        if not self.air:
            return bone, clean
        air = self.air.of(clean, SAMPLE_RATE, self.name(entry))
        return np.stack([bone, sound_files.match_length(air, len(bone))]), clean

    def _bone(self, entry: Entry) -> tuple[Audio, Audio]:
        if not self.sensor:
            return open_pair(entry, SAMPLE_RATE)
        clean = read_mono(entry.clean or "", SAMPLE_RATE)
        return simulate_file(clean[None], SAMPLE_RATE, self.sensor, self.seed, self.name(entry))[0], clean


def select(
    entries: Sequence[Entry], *, paired: bool, speakers: Sequence[str] = (), limit: int | None = None
) -> list[Entry]:
    """The entries to score: those of ``speakers`` (empty: all), ``limit`` of them evenly spaced. DataError if none."""
    usable = [entry for entry in entries if (entry.paired if paired else entry.clean)]
    if not usable:
        raise DataError(f"no entry has {'both a clean and a degraded file' if paired else 'a clean file'}")
    unknown = sorted(set(speakers) - {entry.speaker for entry in usable})
    if unknown:
        raise DataError(f"no speaker {', '.join(unknown)}")
    chosen = [entry for entry in usable if not speakers or entry.speaker in speakers]
    if limit is None or limit >= len(chosen):
        return chosen
    return [chosen[index * len(chosen) // limit] for index in range(limit)]
