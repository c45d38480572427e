"""Plots a fitted sensor: the measured statistics and those of its simulation."""

import os
from pathlib import Path

import numpy as np

from twostage.audio.plots import no_backend
from twostage.data.sensor_fit import FittedSensor, SensorStatistics
from twostage.utils.files import check_writable, replacing


def draw_sensor(path: str | os.PathLike[str], fitted: FittedSensor, *, overwrite: bool = False) -> None:
    """Write a PNG of response, slopes, coherence, scatter and noise by band."""
    with no_backend():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    path = Path(path)
    check_writable(path, overwrite)
    figure = Figure(figsize=(11, 7), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel()
    titles = (
        ("response_db", "magnitude response, with its spread", "dB"),
        ("coherence", "coherence", ""),
        ("noise_db", "noise in pauses, relative to speech", "dB a Hz"),
        ("slope", "dB for a dB in the band", ""),
        ("voice_slope", "dB for a dB of voice", ""),
        ("gain_spread_db", "deviation of frames", "dB"),
    )
    for axis, (name, title, unit) in zip(axes, titles, strict=True):
        for label, statistics, style in (("pairs", fitted.measured, "o-"), ("simulated", fitted.simulated, "x--")):
            _line(axis, statistics, name, style, label)
        axis.set(title=title, ylabel=unit, xlabel="Hz", xscale="log")
        if fitted.measured.band_limit:
            axis.axvline(fitted.measured.band_limit, color="gray", linestyle=":")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(f"{fitted.measured.recordings} recordings, {fitted.measured.seconds:.0f} s")
    with replacing(path, overwrite=overwrite) as partial:
        canvas.print_png(str(partial))


def _line(axis: object, statistics: SensorStatistics, name: str, style: str, label: str) -> None:
    values = np.asarray(getattr(statistics, name))
    (line,) = axis.plot(statistics.frequencies, values, style, label=label, markersize=3)  # type: ignore[attr-defined]
    if name == "response_db":
        low, high = values - statistics.response_spread_db, values + statistics.response_spread_db
        axis.fill_between(statistics.frequencies, low, high, color=line.get_color(), alpha=0.2)  # type: ignore[attr-defined]
