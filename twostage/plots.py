"""Pictures: spectrograms before and after, and curves. Files are read as streams: hours cost no more memory."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twostage.audio import Audio, Reader
from twostage.errors import AudioError
from twostage.files import check_writable, replacing

WINDOW = 0.032  # seconds
COLUMNS = 1200  # of a picture: longer sounds are averaged in power
RANGE = 80.0  # dB between black and white
COLOURS, MARKS = [f"C{number}" for number in range(10)], "os^Dv<>"  # of charts; together, 70 names differ


@dataclass(frozen=True)
class Panel:
    """A spectrogram (F, L) in dB, from 0 to ``top`` Hz and from 0 to ``seconds``."""

    title: str
    decibels: NDArray[np.float32]
    seconds: float
    top: float


def spectrogram(blocks: Iterable[Audio], sample_rate: int, frames: int, title: str = "") -> Panel:
    """Spectrogram of a stream of (C, T) blocks of about ``frames`` samples: power averaged over channels."""
    n_fft = max(16, 2 ** round(np.log2(WINDOW * sample_rate)))
    hop = n_fft // 4
    together = max(1, -(-(frames // hop + 1) // COLUMNS))  # spectra that make one column
    columns, total = [], 0
    pending: Audio | None = None
    for block in blocks:
        total += block.shape[1]
        pending = np.pad(block, [(0, 0), (n_fft // 2, 0)]) if pending is None else np.hstack([pending, block])
        whole = max(0, (pending.shape[1] - n_fft) // hop + 1) // together * together
        if whole:
            columns.append(_columns(pending[:, : (whole - 1) * hop + n_fft], n_fft, hop, together))
            pending = pending[:, whole * hop :]
    if pending is None:
        raise AudioError(f"{title or 'audio'}: holds no samples")
    rest = np.pad(pending, [(0, 0), (0, n_fft)])
    columns.append(_columns(rest, n_fft, hop, (rest.shape[1] - n_fft) // hop + 1))
    decibels = 10 * np.log10(np.concatenate(columns, axis=1) + 1e-12)
    return Panel(title, decibels.astype(np.float32), total / sample_rate, sample_rate / 2)


def _columns(audio: Audio, n_fft: int, hop: int, together: int) -> NDArray[np.float64]:
    """Mean power (F, L) of each run of ``together`` spectra of (C, T) audio."""
    framed = np.lib.stride_tricks.sliding_window_view(audio, n_fft, axis=1)[:, ::hop]
    power = np.square(np.abs(np.fft.rfft(framed * np.hanning(n_fft), axis=2)) / n_fft).mean(axis=0)
    return power.reshape(-1, together, power.shape[1]).mean(axis=1).T


def draw(path: str | Path, panels: Sequence[Panel], *, top: float | None = None, overwrite: bool = False) -> None:
    """Write panels below each other into a PNG; same frequencies, each from its own loudest 80 dB down."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    check_writable(path, overwrite)
    top = top or min(panel.top for panel in panels)
    figure = Figure(figsize=(10, 1 + 2.4 * len(panels)), layout="constrained")
    canvas = FigureCanvasAgg(figure)  # no pyplot: no display, no global state
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        high = float(panel.decibels.max())
        extent = (0, max(panel.seconds, 1e-3), 0, panel.top / 1000)
        image = axis.imshow(
            panel.decibels, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=high - RANGE, vmax=high
        )
        axis.set(title=panel.title, ylabel="kHz", ylim=(0, top / 1000))
        figure.colorbar(image, ax=axis, label="dB", pad=0.01)
    axes[-1].set_xlabel("seconds")
    with replacing(path, overwrite=overwrite) as partial:
        canvas.print_png(str(partial))


def paint(path: str | Path, panel: Panel, *, top: float) -> None:
    """Write a panel alone as a PNG, up to ``top`` Hz whether it reaches that or not: a point a band and column."""
    from matplotlib.image import imsave

    rows = round(top / panel.top * (len(panel.decibels) - 1)) + 1
    high = float(panel.decibels.max())
    wanted = np.pad(panel.decibels[:rows], [(0, max(0, rows - len(panel.decibels))), (0, 0)], constant_values=-np.inf)
    with replacing(path, overwrite=False) as partial:
        imsave(partial, wanted, vmin=high - RANGE, vmax=high, cmap="magma", origin="lower", format="png")


def before_after(
    path: str | Path, before: str | Path, after: str | Path, *, top: float | None = None, overwrite: bool = False
) -> None:
    """Draw the spectrograms of two sound files up to ``top`` Hz (default: what both of them reach)."""
    draw(path, [_of_file(before, "before"), _of_file(after, "after")], top=top, overwrite=overwrite)


def _of_file(path: str | Path, title: str) -> Panel:
    with Reader(path) as reader:
        return spectrogram(reader.blocks(), reader.info.sample_rate, reader.info.frames, f"{title}: {Path(path).name}")


@dataclass(frozen=True)
class Chart:
    """Lines by name, each a list of (x, y); ``across`` is logarithmic, ``up`` begins at zero, unless told otherwise."""

    across: str
    up: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    logarithmic: bool = True
    from_zero: bool = True


def draw_charts(path: str | Path, charts: Sequence[Chart], *, overwrite: bool = False) -> None:
    """Write charts beside each other into a PNG; a line has one colour in all of them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    path = Path(path)
    check_writable(path, overwrite)
    figure = Figure(figsize=(2 + 4.6 * len(charts), 3.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    names = list(dict.fromkeys(name for chart in charts for name in chart.lines))
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], marker=MARKS[i % len(MARKS)]) for i, _ in enumerate(names)
    ]
    for axis, chart in zip(figure.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
        for name, points in chart.lines.items():
            like = handles[names.index(name)]
            axis.plot(*zip(*points, strict=True), color=like.get_color(), marker=like.get_marker())
        axis.set(xscale="log" if chart.logarithmic else "linear", xlabel=chart.across, ylabel=chart.up)
        axis.grid(alpha=0.3)
        if chart.from_zero:
            axis.set_ylim(bottom=0)
    figure.legend(handles, names, loc="outside right upper")
    with replacing(path, overwrite=overwrite) as partial:
        canvas.print_png(str(partial))
