"""Tests of spectrograms and charts."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from twostage.audio import plots, sound_files
from twostage.utils.errors import OutputError


def tone(frames: int, sample_rate: int, frequency: float) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(frames) / sample_rate).astype(np.float32)[None]


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
def test_the_spectrogram_of_a_tone_peaks_at_its_frequency(sample_rate: int) -> None:
    panel = plots.spectrogram([tone(sample_rate, sample_rate, 1000.0)], sample_rate, sample_rate)
    peak_frequency = panel.decibels[:, 5:-5].argmax(axis=0) * panel.top / (len(panel.decibels) - 1)
    assert np.abs(peak_frequency - 1000).max() < 40
    assert panel.seconds == 1.0
    assert panel.top == sample_rate / 2


def test_the_spectrogram_of_a_long_sound_is_averaged_to_a_fixed_width() -> None:
    loud, quiet = tone(1600000, 16000, 500.0), 0.1 * tone(1600000, 16000, 500.0)
    blocks = np.array_split(np.concatenate([loud, quiet], axis=1), 41, axis=1)
    panel = plots.spectrogram(blocks, 16000, 3200000)
    assert 0.9 * plots.COLUMNS < panel.decibels.shape[1] <= plots.COLUMNS + 2
    peak_db = panel.decibels.max(axis=0)
    assert peak_db[100] - peak_db[-100] == pytest.approx(20, abs=0.1)


def test_the_spectrogram_of_blocks_equals_that_of_the_whole() -> None:
    inputs = np.random.default_rng(0).normal(0, 0.1, (2, 10000)).astype(np.float32)
    whole = plots.spectrogram([inputs], 16000, 10000)
    blocks = plots.spectrogram(np.array_split(inputs, 33, axis=1), 16000, 10000)
    assert np.allclose(whole.decibels, blocks.decibels, atol=1e-3)


@pytest.mark.parametrize("frames", [1, 100, 8000])
def test_a_picture_is_drawn_of_audio_of_any_length(tmp_path: Path, frames: int) -> None:
    sound_files.write(tmp_path / "a.wav", np.vstack([tone(frames, 8000, 300.0)] * 2), 8000)
    sound_files.write(tmp_path / "b.wav", tone(2 * frames, 16000, 300.0), 16000)
    plots.before_after(tmp_path / "c.png", tmp_path / "a.wav", tmp_path / "b.wav", top=8000)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match=r"c\.png: exists already"):
        plots.before_after(tmp_path / "c.png", tmp_path / "a.wav", tmp_path / "b.wav")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.wav", "c.png"]


def test_charts_are_drawn_and_never_replaced(tmp_path: Path) -> None:
    lines = {"one": [(1.0, 0.2), (10.0, 0.1)], "other": [(1.0, 0.3)]}
    charts = [plots.Chart("seconds", "factor", lines), plots.Chart("seconds", "MB", {"other": [(1.0, 900.0)]})]
    plots.draw_charts(tmp_path / "speed.png", charts)
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(OutputError, match=r"speed.png"):
        plots.draw_charts(tmp_path / "speed.png", charts)


@pytest.mark.parametrize(
    ("panels", "size"), [(1, (1000, 340)), (4, (1000, 1060)), (8, (1000, 810)), (14, (1500, 1000))]
)
def test_many_spectrograms_are_arranged_in_rows(tmp_path: Path, panels: int, size: tuple[int, int]) -> None:
    drawn_panels = [plots.spectrogram([tone(8000, 16000, 500.0)], 16000, 8000, f"{n}") for n in range(panels)]
    plots.draw(tmp_path / "a.png", drawn_panels)
    assert Image.open(tmp_path / "a.png").size == size


@pytest.mark.parametrize(("low", "high"), [(2.3, 3.6), (2.3, 15), (0.2, 20), (1e-3, 1), (1e-6, 1), (5, 5)])
def test_a_logarithmic_axis_has_few_tick_labels_in_plain_numbers(low: float, high: float) -> None:
    figure = Figure()
    axis = figure.subplots()
    axis.plot([low, high], [0, 1])
    axis.set_xscale("log")
    plots._set_log_ticks(axis, [low, high])
    FigureCanvasAgg(figure).draw()
    left, right = axis.get_xlim()
    ticks = [tick for tick in axis.get_xticks() if left <= tick <= right]
    texts = [text.get_text() for text in axis.get_xticklabels() if left <= text.get_position()[0] <= right]
    assert 1 <= len(ticks) <= 10
    assert [float(text) for text in texts] == pytest.approx(ticks, rel=1e-5)
    assert not any(text.get_text() for text in axis.get_xticklabels(minor=True))


def test_thirty_lines_have_twenty_colors_and_distinct_styles() -> None:
    styles = plots._line_styles(30)
    assert len({style["color"] for style in styles}) == 20
    assert len({(style["color"], style["marker"]) for style in styles}) == 30


@pytest.mark.parametrize("name", ["\uac00\ub098.wav", r"$\frac{$.wav", "a\nb\x1b.wav", "\udcff.wav", "$"])
def test_any_name_is_drawn_without_a_warning(tmp_path: Path, name: str) -> None:
    panel = plots.spectrogram([tone(1600, 16000, 440.0)], 16000, 1600, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.draw(tmp_path / "a.png", [panel])
        plots.draw_charts(tmp_path / "b.png", [plots.Chart("x", name, {name: [(1.0, 1.0), (2.0, 2.0)]})])
    assert Image.open(tmp_path / "a.png").size[0] > 500
