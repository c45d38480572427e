"""Plots: spectrograms before and after, and charts. Files are read as streams, in constant memory."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import log10
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twostage.audio.sound_files import Reader
from twostage.audio.types import Audio
from twostage.utils.errors import AudioError, TwoStageError, one_line
from twostage.utils.files import check_writable, replacing

WINDOW = 0.032  # seconds
COLUMNS = 1200  # maximum width of a spectrogram: the power of longer sounds is averaged
RANGE = 80.0  # dB between black and white
# markers of charts; with twenty colors, 140 lines can be distinguished
MARKS = "os^Dv<>"
LEVEL: dict[str, Any] = {"color": "0.4", "linestyle": "--"}
WIDE = 4  # maximum number of panels in one column; more are arranged in several


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
    spectra_per_column = max(1, -(-(frames // hop + 1) // COLUMNS))  # spectra that make one column
    columns, total = [], 0
    pending: Audio | None = None
    for block in blocks:
        total += block.shape[1]
        pending = np.pad(block, [(0, 0), (n_fft // 2, 0)]) if pending is None else np.hstack([pending, block])
        complete = max(0, (pending.shape[1] - n_fft) // hop + 1) // spectra_per_column * spectra_per_column
        if complete:
            columns.append(_columns(pending[:, : (complete - 1) * hop + n_fft], n_fft, hop, spectra_per_column))
            pending = pending[:, complete * hop :]
    if pending is None:
        raise AudioError("holds no samples", subject=title or "audio")
    remaining = np.pad(pending, [(0, 0), (0, n_fft)])
    columns.append(_columns(remaining, n_fft, hop, (remaining.shape[1] - n_fft) // hop + 1))
    decibels = 10 * np.log10(np.concatenate(columns, axis=1) + 1e-12)
    return Panel(title, decibels.astype(np.float32), total / sample_rate, sample_rate / 2)


def _columns(audio: Audio, n_fft: int, hop: int, spectra_per_column: int) -> NDArray[np.float64]:
    """Mean power (F, L) of each ``spectra_per_column`` consecutive spectra of (C, T) audio."""
    framed = np.lib.stride_tricks.sliding_window_view(audio, n_fft, axis=1)[:, ::hop]
    power = np.square(np.abs(np.fft.rfft(framed * np.hanning(n_fft), axis=2)) / n_fft).mean(axis=0)
    return power.reshape(-1, spectra_per_column, power.shape[1]).mean(axis=1).T


@contextmanager
def no_backend() -> Iterator[None]:
    """Unset MPLBACKEND while importing matplotlib, which fails if the backend of a notebook is not installed."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


@contextmanager
def optional(path: str | Path, warn: Callable[[str], object]) -> Iterator[None]:
    """Draw ``path`` in this block, or report why that failed: a plot must not stop a command."""
    try:
        yield
    except TwoStageError as error:
        warn(f"not drawn: {error}")
    except Exception as error:  # matplotlib, its settings and its fonts can raise anything
        warn(f"{path}: not drawn ({one_line(error)})")


def draw(path: str | Path, panels: Sequence[Panel], *, top: float | None = None, overwrite: bool = False) -> None:
    """Write panels into a PNG with a common frequency axis; the colors of each span 80 dB below its maximum."""
    with no_backend():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    path = Path(path)
    check_writable(path, overwrite)
    top = top or min(panel.top for panel in panels)
    columns = 1 if len(panels) <= WIDE else 2 if len(panels) <= 2 * WIDE else 3
    rows = -(-len(panels) // columns)
    size = (10, 1 + 2.4 * rows) if columns == 1 else (5 * columns, 0.5 + 1.9 * rows)
    figure = Figure(figsize=size, layout="constrained")
    canvas = FigureCanvasAgg(figure)  # no pyplot: no display, no global state
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, panel in zip(axes, panels, strict=False):
        high = float(panel.decibels.max())
        extent = (0, max(panel.seconds, 1e-3), 0, panel.top / 1000)
        image = axis.imshow(
            panel.decibels, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=high - RANGE, vmax=high
        )
        axis.set(title=_plain(panel.title), ylim=(0, top / 1000))
        if columns == 1:
            figure.colorbar(image, ax=axis, label="dB", pad=0.01)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis in axes[::columns]:
        axis.set_ylabel("kHz")
    for axis in axes[len(panels) - columns : len(panels)]:
        axis.set_xlabel("seconds")
    _print(canvas, path, overwrite)


def paint(path: str | Path, panel: Panel, *, top: float) -> None:
    """Write the image of a panel as a PNG, padded or cut to ``top`` Hz: one pixel for each band and frame."""
    with no_backend():
        from matplotlib.image import imsave

    rows = round(top / panel.top * (len(panel.decibels) - 1)) + 1
    high = float(panel.decibels.max())
    image = np.pad(panel.decibels[:rows], [(0, max(0, rows - len(panel.decibels))), (0, 0)], constant_values=-np.inf)
    with replacing(path, overwrite=False) as partial:
        imsave(partial, image, vmin=high - RANGE, vmax=high, cmap="magma", origin="lower", format="png")


def before_after(
    path: str | Path,
    before: str | Path,
    after: str | Path,
    *,
    top: float | None = None,
    overwrite: bool = False,
    salvage: bool = False,
) -> None:
    """Draw the spectrograms of two sound files up to ``top`` Hz (default: the lower Nyquist frequency).

    ``salvage``: draw the readable part if the first file is truncated or damaged.
    """
    draw(path, [_of_file(before, "before", salvage), _of_file(after, "after")], top=top, overwrite=overwrite)


def _of_file(path: str | Path, title: str, salvage: bool = False) -> Panel:
    with Reader(path, salvage=salvage) as reader:
        return spectrogram(reader.blocks(), reader.info.sample_rate, reader.info.frames, f"{title}: {Path(path).name}")


@dataclass(frozen=True)
class Chart:
    """Lines by name, each a list of (x, y), and the labels ``across`` and ``up`` of the horizontal and vertical axis.

    ``levels``: horizontal lines, y by name.
    """

    across: str
    up: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    logarithmic: bool = True
    from_zero: bool = True
    levels: Mapping[str, float] = field(default_factory=dict)


def draw_charts(
    path: str | Path, charts: Sequence[Chart], *, names: Sequence[str] = (), overwrite: bool = False
) -> None:
    """Write charts into a PNG, two in a row; a line has the same color in all charts, and they share a legend.

    ``names``: plots with the same names use the same colors; names without a line are allowed.
    """
    with no_backend():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D

    path = Path(path)
    check_writable(path, overwrite)
    columns = min(2, len(charts))
    rows = -(-len(charts) // columns)
    figure = Figure(figsize=(3 + (7.5 if columns == 1 else 4.6 * columns), 0.8 + 3.4 * rows), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    drawn_names = {name for chart in charts for name in chart.lines}
    names = list(dict.fromkeys([*names, *(name for chart in charts for name in chart.lines)]))
    styles = {name: style for name, style in zip(names, _line_styles(len(names)), strict=True) if name in drawn_names}
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, chart in zip(axes, charts, strict=False):
        for name, points in chart.lines.items():
            axis.plot(*zip(*points, strict=True), **styles[name], label=name)
        for level in chart.levels.values():
            axis.axhline(level, **LEVEL)
        axis.set(xscale="log" if chart.logarithmic else "linear", xlabel=chart.across, ylabel=_plain(chart.up))
        if chart.logarithmic:
            _set_log_ticks(axis, [x for points in chart.lines.values() for x, _ in points])
        axis.grid(alpha=0.3)
        if chart.from_zero:
            axis.set_ylim(bottom=0)
    for axis in axes[len(charts) :]:
        axis.set_axis_off()
    handles = {name: Line2D([], [], **style) for name, style in styles.items()}
    handles |= {name: Line2D([], [], **LEVEL) for chart in charts for name in chart.levels}
    figure.legend(list(handles.values()), [_plain(name) for name in handles], loc="outside right upper")
    _print(canvas, path, overwrite)


def _print(canvas: Any, path: Path, overwrite: bool) -> None:
    with replacing(path, overwrite=overwrite) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # missing letters of the font are drawn as boxes
        canvas.print_png(str(partial))


def _plain(text: str) -> str:
    """Escape a name: matplotlib would interpret text between dollars as a formula."""
    return one_line(text).replace("$", r"\$")


def _line_styles(count: int) -> list[dict[str, Any]]:
    """Color and marker of each of ``count`` lines."""
    with no_backend():
        from matplotlib import colormaps

    shades = colormaps["tab20"].colors  # type: ignore[attr-defined]
    return [{"color": shades[2 * (i % 10) + i // 10 % 2], "marker": MARKS[i % len(MARKS)]} for i in range(count)]


def _set_log_ticks(axis: Any, values: Sequence[float]) -> None:
    """Label the ticks of a logarithmic axis with plain numbers; a narrow range has more ticks."""
    with no_backend():
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    decades = log10(max(values) / min(values))
    steps = (1,) if decades > 3 else (1, 2, 5) if decades > 1 else (1, 2, 3, 5, 7)
    axis.xaxis.set_major_locator(LogLocator(subs=steps) if decades > 0.5 else MaxNLocator(5))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
