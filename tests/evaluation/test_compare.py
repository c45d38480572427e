"""Tests of comparing evaluations: the table, errors by frequency, and charts of costs."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from twostage.audio import sound_files
from twostage.cli import main
from twostage.data.manifest import Entry
from twostage.evaluation import compare, metrics, report
from twostage.evaluation.costs import Costs
from twostage.evaluation.pairs import PairSource
from twostage.evaluation.pictures import show
from twostage.evaluation.results import ROWS, SUMMARY, EvaluationResults
from twostage.evaluation.runner import evaluate
from twostage.evaluation.systems import System
from twostage.models.enhancer import EnhancerModule

RATE = 16000


class LowPass(EnhancerModule):
    """An enhancer that removes everything above ``limit`` Hz."""

    sample_rate, context = RATE, 0

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, sound):
        spectrum = np.fft.rfft(sound.numpy())
        spectrum[..., np.fft.rfftfreq(sound.shape[-1], 1 / RATE) > self.limit] = 0
        return type(sound)(np.fft.irfft(spectrum, sound.shape[-1]).astype(np.float32))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, speech):
    """Evaluations of two systems on the same utterance: a low-pass at 3 kHz, and one at 6 kHz."""
    home = tmp_path_factory.mktemp("compared")
    clean = speech(RATE) + 0.01 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    sound_files.write(home / "a_air.wav", clean, RATE)
    sound_files.write(home / "a_bone.wav", clean, RATE)
    entry = Entry(str(home / "a_air.wav"), str(home / "a_bone.wav"), "a", 1.0)
    for name, limit in (("three", 3000.0), ("six", 6000.0)):
        systems, results = [System(name, LowPass(limit), uses_clean=False)], EvaluationResults()
        evaluate([entry], PairSource(home), systems, results, names=["lsd", "estoi"])
        costs = {name: Costs(1000, limit / 1e3, 0.1, "cpu", 1, 0.05)}
        report.write_rows(home / name / ROWS, results.rows)
        report.write_json(home / name / SUMMARY, report.as_json(results.rows, costs, [], {}))
        show(home / name, [entry], PairSource(home), systems)
    return [home / "three", home / "six"]


def test_the_table_contains_every_system_and_the_input_once(folders, tmp_path, capsys):
    assert main(["compare", *map(str, folders), "-o", str(tmp_path), "--title", "Both"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# Both\n")
    assert text.strip() == (tmp_path / "table.md").read_text().strip()
    with (tmp_path / "table.csv").open() as file:
        rows = {row["system"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["raw input", "three", "six"]
    assert float(rows["three"]["lsd"]) > float(rows["six"]["lsd"]) > float(rows["raw input"]["lsd"])
    assert (float(rows["six"]["gmac"]), float(rows["six"]["latency_s"]), rows["raw input"]["gmac"]) == (6.0, 0.05, "")
    assert (tmp_path / "cost.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in (tmp_path / "spectrograms").iterdir()] == ["a_bone.wav.png"]


def test_errors_by_frequency_are_large_where_a_band_is_missing(folders, tmp_path):
    compare.compare(folders, tmp_path)
    with (tmp_path / "bands.csv").open() as file:
        errors = {row.pop("system"): {float(hz): float(v) for hz, v in row.items()} for row in csv.DictReader(file)}
    assert list(errors) == ["raw input", "three", "six"]
    assert max(errors["raw input"].values()) < 0.1  # rounding to 16 bits
    for system, limit in (("three", 3000), ("six", 6000)):
        assert max(v for hz, v in errors[system].items() if hz < limit) < 1
        assert min(v for hz, v in errors[system].items() if hz > limit) > 10


def test_the_error_of_a_band_is_its_level_difference():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(4 * RATE).astype(np.float32)
    spectrum = np.fft.rfft(noise)
    spectrum[np.fft.rfftfreq(len(noise), 1 / RATE) > 4000] *= 10 ** (-6 / 20)
    errors = metrics.band_errors(noise, np.fft.irfft(spectrum).astype(np.float32))
    # the levels are equalized first: the louder half exceeds the reference, the other one falls short by the rest
    excess = 10 * np.log10(2 / (1 + 10**-0.6))
    np.testing.assert_allclose(errors[:7], excess, atol=0.05)
    np.testing.assert_allclose(errors[9:], 6 - excess, atol=0.05)
    assert np.isnan(metrics.band_errors(noise, np.zeros_like(noise))).all()


def test_systems_without_a_cost_or_latency_are_left_out_of_that_chart(folders):
    row = report.Row("u", "c", "s", 1.0, "free", dict.fromkeys(report.COLUMNS, 0.5))
    charts = compare.cost_charts(EvaluationResults([row]), {"free": Costs(5, 0.0, 0.1, "cpu", 1, None)}, "stoi")
    assert [chart.across for chart in charts] == ["million parameters", "real-time factor"]
    assert charts[0].lines == {"free": [(5e-6, 0.5)]}
    cheap = {"free": Costs(5, 0.0, 1e-6, "cpu", 1, None)}  # a system that returns its input
    assert [chart.across for chart in compare.cost_charts(EvaluationResults([row]), cheap, "stoi")] == [
        "million parameters"
    ]


def test_charts_of_cost_show_the_level_of_the_input_but_no_copy_synthesis():
    scores = {"raw input": 0.4, "model": 0.5, "model, copy-synthesis": 0.9}
    rows = [report.Row("u", "c", "s", 1.0, name, dict.fromkeys(report.COLUMNS, s)) for name, s in scores.items()]
    costs = {name: Costs(5, 1.0, 0.1, "cpu", 1, None) for name in list(scores)[1:]}
    for chart in compare.cost_charts(EvaluationResults(rows), costs, "estoi"):
        assert list(chart.lines) == ["model"]
        assert chart.levels == {"raw input": 0.4}


def test_invalid_arguments_are_errors_that_name_them(folders, tmp_path, capsys):
    assert main(["compare", str(folders[0]), "-o", str(folders[0])]) == 1
    assert "is one of the folders to compare" in capsys.readouterr().err
    assert main(["compare", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert "utterances.csv: No such file" in capsys.readouterr().err
    assert main(["compare", str(folders[0]), "-o", str(tmp_path), "--metric", "taste"]) == 1
    assert "no metric 'taste'; there are pesq" in capsys.readouterr().err
    assert main(["compare", str(folders[0]), "-o", str(tmp_path), "--metric", "mos"]) == 1
    assert "no folder has scores of mos; there are estoi, lsd" in capsys.readouterr().err


def test_summaries_of_older_versions_without_a_latency_are_compared(folders, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    for name in (ROWS, SUMMARY):
        (old / name).write_text((folders[0] / name).read_text())
    summary = json.loads((old / SUMMARY).read_text())
    del summary["costs"]["three"]["latency"]
    (old / SUMMARY).write_text(json.dumps(summary))
    assert "three" in compare.compare([old], Path(tmp_path / "out"))
