"""Views of related sounds for the page: for each one a copy to listen to, a spectrogram, and levels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twostage.audio.plots import Panel, paint, spectrogram
from twostage.audio.sound_files import Reader, Writer
from twostage.audio.types import Audio

CENTERS = tuple(float(hertz) for hertz in 1000 * 2 ** (np.arange(-12, 9) / 3))  # third octaves, 63 Hz to 6.3 kHz
CAME_BACK = 6.0  # dB that a band has to gain to be counted as back
HANN = 0.375  # mean square of the window that spectrograms are taken with


def view(name: str, sounds: Mapping[str, Path], folder: Path, *, top: float) -> dict[str, Any]:
    """Show ``sounds`` by label, of equal length, from 0 to ``top`` Hz; files are written to ``folder``.

    Plain values and paths: of each track ``audio`` (FLAC, which every browser plays), ``picture`` (PNG without axes)
    and ``levels`` in dB of the third octaves at ``hertz``, None where its sample rate has no room for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tracks: list[dict[str, Any]] = []
    seconds = 0.0
    for number, (label, path) in enumerate(sounds.items()):
        copy, picture = folder / f"{number}.flac", folder / f"{number}.png"
        panel = _listen(path, copy)
        paint(picture, panel, top=top)
        seconds = max(seconds, panel.seconds)
        tracks.append({"label": label, "audio": copy, "picture": picture, "levels": third_octaves(panel)})
    said = gained(tracks[0]["levels"], tracks[-1]["levels"]) if len(tracks) > 1 else ""
    return {"name": name, "seconds": seconds, "top": top, "hertz": CENTERS, "tracks": tracks, "gained": said}


def _listen(source: Path, target: Path) -> Panel:
    """Copy at most two channels of a sound file into 16 bits, for browsers; its spectrogram."""
    with Reader(source) as reader:
        about = reader.info
        with Writer(target, about.sample_rate, min(2, about.channels), subtype="PCM_16") as writer:

            def blocks() -> Any:
                for block in reader.blocks():
                    writer.write(_clipped(block[:2]))
                    yield block

            return spectrogram(blocks(), about.sample_rate, about.frames)


def _clipped(block: Audio) -> Audio:
    return np.clip(block, -1, 1)


def third_octaves(panel: Panel) -> list[float | None]:
    """Mean level of each third octave, dB of full scale; white noise rises by 1 dB a band."""
    power = (10 ** (panel.decibels / 10)).mean(axis=1) * 2 / HANN
    width = panel.top / (len(power) - 1)
    edges = (np.arange(len(power) + 1) - 0.5) * width
    below = np.concatenate([[0.0], np.cumsum(power)])
    levels: list[float | None] = []
    for center in CENTERS:
        low, high = center * 2 ** (-1 / 6), center * 2 ** (1 / 6)
        inside = np.interp(high, edges, below) - np.interp(low, edges, below)
        levels.append(round(float(10 * np.log10(inside + 1e-12)), 1) if high <= panel.top else None)
    return levels


def gained(before: Sequence[float | None], after: Sequence[float | None]) -> str:
    """A sentence on where the band came back: the bands that are louder by CAME_BACK dB.

    >>> gained([-40.0] * 21, [-40.0] * 15 + [-30.0] * 6)
    'Louder by 6 dB or more from 1.8 to 7.1 kHz.'
    """
    back = [
        place
        for place, (first, last) in enumerate(zip(before, after, strict=True))
        if last is not None and last - (-120.0 if first is None else first) >= CAME_BACK
    ]
    if not back:
        return f"No third octave is louder by {CAME_BACK:.0f} dB or more."
    ranges: list[list[int]] = []
    for place in back:
        if ranges and ranges[-1][1] == place - 1:
            ranges[-1][1] = place
        else:
            ranges.append([place, place])
    words = [f"{_kilohertz(low, -1)} to {_kilohertz(high, 1)} kHz" for low, high in ranges]
    return f"Louder by {CAME_BACK:.0f} dB or more from {', '.join(words)}."


def _kilohertz(place: int, side: int) -> str:
    return f"{CENTERS[place] * 2 ** (side / 6) / 1000:.2g}"
