"""Views of related sounds for the page: a playable copy, a spectrogram, and levels of each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twostage.audio.plots import Panel, paint, spectrogram
from twostage.audio.sound_files import Reader, Writer
from twostage.audio.types import Audio

CENTERS = tuple(float(hertz) for hertz in 1000 * 2 ** (np.arange(-12, 9) / 3))  # third octaves, 63 Hz to 6.3 kHz
CAME_BACK = 6.0  # dB by which a band must become louder to count as regained
HANN = 0.375  # mean square of the window of the spectrograms


def view(name: str, sounds: Mapping[str, Path], folder: Path, *, top: float) -> dict[str, Any]:
    """A view of ``sounds`` of equal length, by label, from 0 to ``top`` Hz; files are written to ``folder``.

    It consists of plain values and paths: for each track ``audio`` (FLAC, which every browser plays), ``picture`` (PNG
    without axes) and ``levels`` in dB of the third octaves at ``hertz``, None for those above half its sample rate.
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
    gained_text = gained(tracks[0]["levels"], tracks[-1]["levels"]) if len(tracks) > 1 else ""
    return {"name": name, "seconds": seconds, "top": top, "hertz": CENTERS, "tracks": tracks, "gained": gained_text}


def _listen(source: Path, target: Path) -> Panel:
    """Copy at most two channels of a sound file to 16 bits, for browsers; returns the spectrogram."""
    with Reader(source) as reader:
        file_info = reader.info
        with Writer(target, file_info.sample_rate, min(2, file_info.channels), subtype="PCM_16") as writer:

            def blocks() -> Any:
                for block in reader.blocks():
                    writer.write(_clipped(block[:2]))
                    yield block

            return spectrogram(blocks(), file_info.sample_rate, file_info.frames)


def _clipped(block: Audio) -> Audio:
    return np.clip(block, -1, 1)


def third_octaves(panel: Panel) -> list[float | None]:
    """Mean level of each third octave in dBFS; white noise increases by 1 dB per band."""
    power = (10 ** (panel.decibels / 10)).mean(axis=1) * 2 / HANN
    width = panel.top / (len(power) - 1)
    edges = (np.arange(len(power) + 1) - 0.5) * width
    cumulative = np.concatenate([[0.0], np.cumsum(power)])
    levels: list[float | None] = []
    for center in CENTERS:
        low, high = center * 2 ** (-1 / 6), center * 2 ** (1 / 6)
        band_power = np.interp(high, edges, cumulative) - np.interp(low, edges, cumulative)
        levels.append(round(float(10 * np.log10(band_power + 1e-12)), 1) if high <= panel.top else None)
    return levels


def gained(before: Sequence[float | None], after: Sequence[float | None]) -> str:
    """A sentence about the regained bands, which are louder by CAME_BACK dB.

    >>> gained([-40.0] * 21, [-40.0] * 15 + [-30.0] * 6)
    'Louder by 6 dB or more from 1.8 to 7.1 kHz.'
    """
    louder_bands = [
        band
        for band, (first, last) in enumerate(zip(before, after, strict=True))
        if last is not None and last - (-120.0 if first is None else first) >= CAME_BACK
    ]
    if not louder_bands:
        return f"No third octave is louder by {CAME_BACK:.0f} dB or more."
    ranges: list[list[int]] = []
    for band in louder_bands:
        if ranges and ranges[-1][1] == band - 1:
            ranges[-1][1] = band
        else:
            ranges.append([band, band])
    ranges_text = [f"{_kilohertz(low, -1)} to {_kilohertz(high, 1)} kHz" for low, high in ranges]
    return f"Louder by {CAME_BACK:.0f} dB or more from {', '.join(ranges_text)}."


def _kilohertz(band: int, side: int) -> str:
    return f"{CENTERS[band] * 2 ** (side / 6) / 1000:.2g}"
