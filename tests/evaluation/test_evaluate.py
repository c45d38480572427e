"""Tests of evaluation: known scores, reproducible results, resuming, merging, and unreadable files."""

import csv
import json
import signal
from argparse import ArgumentParser
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch

from twostage.audio import sound_files
from twostage.cli import main
from twostage.commands import evaluate as command
from twostage.data.manifest import Entry
from twostage.data.sensors import PRESETS
from twostage.evaluation import costs, metrics, pairs, report, runner, systems
from twostage.evaluation.report import RAW, Row, bootstrap
from twostage.evaluation.results import EvaluationResults
from twostage.evaluation.scoring import scoring_pool
from twostage.models import checkpoint
from twostage.models.enhancer import EnhancerModule
from twostage.utils.errors import ConfigError, DataError

RATE = 16000
QUICK = ("pesq", "stoi", "estoi", "lsd", "mel_l1", "mcd")  # metrics that take well below a second


def speech(seed, seconds=1.0, rate=RATE):
    """Bursts of low-passed noise, which every metric accepts as speech."""
    rng, frames = np.random.default_rng(seed), round(seconds * rate)
    amplitudes = rng.normal(size=frames // 1600 + 2)
    bursts = np.abs(np.interp(np.arange(frames) / 1600, np.arange(amplitudes.size), amplitudes))
    return (0.1 * bursts * np.convolve(rng.normal(size=frames), 0.9 ** np.arange(30), "same")).astype(np.float32)


@pytest.fixture
def corpus(tmp_path):
    """A folder with three pairs and a manifest: identical, 100 samples late, 200 samples short."""
    changes = {"a": lambda x: x, "b": lambda x: np.append(np.zeros(100, np.float32), x[:-100]), "c": lambda x: x[:-200]}
    lines = ["bone,air,speaker,sensor"]
    for seed, (name, change) in enumerate(changes.items()):
        clean = speech(seed)
        sound_files.write(tmp_path / f"{name}_air.wav", clean, RATE)
        sound_files.write(tmp_path / f"{name}_bone.wav", change(clean), RATE)
        lines.append(f"{name}_bone.wav,{name}_air.wav,{name},throat")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    return tmp_path


def run(*arguments):
    parser = ArgumentParser()
    command.add_arguments(parser)
    metrics_option = () if "--merge" in arguments or "--metrics" in arguments else ("--metrics", *QUICK)
    return command.run(parser.parse_args([str(argument) for argument in (*arguments, *metrics_option)]))


def scores(folder, system=RAW):
    return {row.utterance: row for row in report.read_rows(folder / "utterances.csv") if row.system == system}


def test_delays_and_lengths_are_aligned_and_reported(corpus, capsys):
    assert run("--pairs", corpus / "pairs.csv", "--model", "none", "-o", corpus / "out", "--pictures", 0) == 0
    rows = scores(corpus / "out")
    assert [(row.delay, row.longer) for row in rows.values()] == [(0, 0), (100, 0), (0, -200)]
    assert all(row.scores["estoi"] == pytest.approx(1, abs=1e-3) for row in rows.values())
    table = capsys.readouterr().out
    assert "Aligned before scoring: 2 of 3 estimates, delays of +0.00 to +6.25 ms, lengths off by -12.50" in table
    assert "| raw input | 3 |" in table
    assert (corpus / "out" / "table.md").read_text() in table


def test_unreadable_files_are_reported_and_the_others_scored(corpus, capsys):
    lines = (corpus / "pairs.csv").read_text().splitlines()
    (corpus / "broken.wav").write_bytes(b"RIFF nothing")
    long = np.append(speech(0), np.zeros(400, np.float32))
    sound_files.write(corpus / "long.wav", long, RATE)
    bad_lines = ["broken.wav,a_air.wav,x,throat", "gone.wav,a_air.wav,x,throat", "long.wav,a_air.wav,x,throat"]
    (corpus / "pairs.csv").write_text("\n".join([lines[0], *bad_lines, *lines[1:]]))
    assert run("--pairs", corpus / "pairs.csv", "--model", "none", "-o", corpus / "out", "--pictures", 0) == 1
    assert list(scores(corpus / "out")) == ["a_bone.wav", "b_bone.wav", "c_bone.wav"]
    errors = capsys.readouterr().err
    assert "broken.wav: not a sound file" in errors
    assert "gone.wav: no such file" in errors
    assert "long.wav: lengths differ by +0.025 s" in errors
    assert len(json.loads((corpus / "out" / "summary.json").read_text())["failures"]) == 3


def test_models_and_copy_synthesis_have_rows_costs_and_pictures(corpus, tiny, tiny_path, capsys, monkeypatch):
    checkpoint.save(corpus / "v.safetensors", tiny.vocoder, provenance={})
    monkeypatch.setattr(systems, "measure_model", partial(costs.measure_model, seconds=0.5, repeats=1))
    arguments = ("--pairs", corpus / "pairs.csv", "--limit", 2, "--group-by", "speaker", "-o", corpus / "out")
    run(*arguments, "--model", f"ours={tiny_path}", "--model", f"voc={corpus / 'v.safetensors'}", "--pictures", 1)
    summary = json.loads((corpus / "out" / "summary.json").read_text())
    assert list(summary["systems"]) == [RAW, "ours", "ours, copy-synthesis", "voc, copy-synthesis"]
    assert summary["systems"]["ours"]["stoi"]["n"] == 2
    assert summary["systems"]["ours, copy-synthesis"] == summary["systems"]["voc, copy-synthesis"]
    assert summary["differences to raw"]["ours"]["stoi"]["mean"] < 0
    assert summary["costs"]["ours"]["gmac"] > summary["costs"]["voc, copy-synthesis"]["gmac"] > 0
    assert "## speaker: a" in capsys.readouterr().out
    assert [path.name for path in (corpus / "out" / "spectrograms").iterdir()] == ["a_bone.wav.png"]


def test_costs_are_reused_from_another_evaluation_of_the_same_weights(corpus, tiny, tiny_path, monkeypatch):
    measured_models = []

    def measure(model):
        measured_models.append(model)
        return costs.Costs(7, 0.5, 0.1, "cpu", 1, 0.25)

    monkeypatch.setattr(systems, "measure_model", measure)
    arguments = ("--pairs", corpus / "pairs.csv", "--limit", 1, "--pictures", 0)
    run(*arguments, "--model", f"ours={tiny_path}", "-o", corpus / "first")
    assert len(measured_models) == 2
    costs_option = ("--costs", corpus / "first" / "summary.json")
    run(*arguments, "--model", f"ours={tiny_path}", "-o", corpus / "second", *costs_option)
    assert len(measured_models) == 2
    first, second = (json.loads((corpus / name / "summary.json").read_text()) for name in ("first", "second"))
    assert first["costs"] == second["costs"]
    with pytest.raises(DataError, match=r"summary.json: contains no costs of other with these weights"):
        run(*arguments, "--model", f"other={tiny_path}", "-o", corpus / "third", *costs_option)
    changed = deepcopy(tiny)
    next(changed.parameters()).add_(1)
    checkpoint.save(corpus / "changed.safetensors", changed, provenance={})
    with pytest.raises(DataError, match=r"summary.json: contains no costs of ours with these weights"):
        run(*arguments, "--model", f"ours={corpus / 'changed.safetensors'}", "-o", corpus / "third", *costs_option)


def test_the_run_folder_of_a_vocoder_is_evaluated_as_copy_synthesis(tmp_path, tiny):
    checkpoint.save(tmp_path / "run" / "best.safetensors", tiny.vocoder, provenance={})
    (system,) = systems.load_systems({"voc": [str(tmp_path / "run")]})
    assert (system.name, system.uses_clean) == ("voc, copy-synthesis", True)


def test_keeping_the_whole_band_scores_like_the_input(corpus, tiny_path):
    keep_option = ("--keep-low-band", 7900)
    run(
        "--pairs",
        corpus / "pairs.csv",
        "--limit",
        1,
        "--model",
        f"m={tiny_path}",
        "-o",
        corpus / "out",
        "--pictures",
        0,
        *keep_option,
    )
    assert scores(corpus / "out", "m")["a_bone.wav"].scores["stoi"] == pytest.approx(1, abs=1e-3)


def test_simulated_input_depends_only_on_seed_and_file(corpus, tmp_path):
    lines = ["path,speaker", *(f"{name}_air.wav,{name}" for name in "abc")]
    (corpus / "clean.csv").write_text("\n".join(lines))
    arguments = ("--clean", corpus / "clean.csv", "--simulate", "throat", "--model", "none", "--pictures", 0)
    run(*arguments, "-o", tmp_path / "all")
    run(*arguments, "-o", tmp_path / "one", "--only-speaker", "b")
    run(*arguments, "-o", tmp_path / "seed", "--only-speaker", "b", "--seed", 1)
    (alone,), (other_seed,) = scores(tmp_path / "one").values(), scores(tmp_path / "seed").values()
    assert alone == scores(tmp_path / "all")["b_air.wav"]
    assert alone.scores["estoi"] != other_seed.scores["estoi"]
    assert alone.scores["estoi"] < 0.9


def test_simulated_input_equals_the_output_of_simulate(corpus, tmp_path):
    (corpus / "in").mkdir()
    (corpus / "a_air.wav").rename(corpus / "in" / "a.wav")
    assert main(["simulate", str(corpus / "in"), str(tmp_path / "out"), "--sensor", "in-ear", "--seed", "3"]) == 0
    source = pairs.PairSource(corpus / "in", PRESETS["in-ear"], seed=3)
    simulated, _ = source.read(Entry(str(corpus / "in" / "a.wav"), None, "s", 1.0))
    assert np.abs(simulated - sound_files.read(tmp_path / "out" / "a.wav")[0][0]).max() <= 2**-15


@pytest.mark.slow
def test_scores_do_not_depend_on_the_number_of_processes(corpus):
    entries = [Entry(str(corpus / f"b_{side}.wav"), str(corpus / "b_bone.wav"), side, 1.0) for side in ("air", "gone")]
    in_this_process, in_workers = EvaluationResults(), EvaluationResults()
    runner.evaluate(entries, pairs.PairSource(corpus), [], in_this_process, names=QUICK)
    # starts one worker, since only one pair can be scored
    runner.evaluate(entries, pairs.PairSource(corpus), [], in_workers, names=QUICK, jobs=2)
    assert in_this_process == in_workers
    assert [(row.delay, row.scores["stoi"]) for row in in_this_process.rows] == [(100, 1.0)]
    assert len(in_this_process.failures) == 1


def test_an_interrupted_evaluation_continues_where_it_stopped(corpus, monkeypatch):
    arguments = ("--pairs", corpus / "pairs.csv", "--model", "none", "-o", corpus / "out", "--pictures", 0)
    read, read_names = pairs.PairSource.read, []

    def interrupted(source, entry):
        read_names.append(source.name(entry))
        if len(read_names) == 2:
            raise KeyboardInterrupt
        return read(source, entry)

    monkeypatch.setattr(pairs.PairSource, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(*arguments)
    assert list(scores(corpus / "out")) == ["a_bone.wav"]
    assert run(*arguments) == 0
    assert read_names == ["a_bone.wav", "b_bone.wav", "b_bone.wav", "c_bone.wav"]
    assert list(scores(corpus / "out")) == ["a_bone.wav", "b_bone.wav", "c_bone.wav"]
    with pytest.raises(DataError, match=r"another evaluation \(seed: 0 there, 1 here\)"):
        run(*arguments, "--seed", 1)
    assert run(*arguments, "--seed", 1, "--overwrite") == 0
    assert len(read_names) == 7


def test_merging_separate_evaluations_equals_a_joint_one(corpus):
    arguments = ("--pairs", corpus / "pairs.csv", "--model", "none", "--pictures", 0)
    run(*arguments, "-o", corpus / "all")
    for speaker in "abc":
        run(*arguments, "-o", corpus / speaker, "--only-speaker", speaker)
    assert run("--merge", corpus / "a", corpus / "b", corpus / "c", "-o", corpus / "joined") == 0
    assert scores(corpus / "joined") == scores(corpus / "all")
    merged, joint = (json.loads((corpus / f / "summary.json").read_text())["systems"] for f in ("joined", "all"))
    assert merged[RAW]["stoi"]["mean"] == pytest.approx(joint[RAW]["stoi"]["mean"], abs=1e-6)
    changed = (corpus / "b" / "utterances.csv").read_text().replace("b_bone", "a_bone")
    (corpus / "b" / "utterances.csv").write_text(changed)
    with pytest.raises(DataError, match=r"differ in the scores of raw input on a_bone\.wav"):
        run("--merge", corpus / "a", corpus / "b", "-o", corpus / "again")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--pairs", "gone.csv"), DataError, "gone.csv: No such file"),
        (("--clean", "pairs.csv"), ConfigError, "--clean and --simulate belong together"),
        (("--pairs", "pairs.csv", "--simulate", "eben"), ConfigError, "--clean and --simulate belong together"),
        (("--clean", "pairs.csv", "--simulate", "nose"), DataError, "sensor nose"),
        (("--pairs", "pairs.csv", "--only-speaker", "zoe"), DataError, "no speaker zoe"),
        (("--pairs", "pairs.csv", "--model", "x", "--model", "x"), ConfigError, "--model x: given twice"),
        (("--merge", "gone"), DataError, "gone/utterances.csv: No such file"),
    ],
)
def test_invalid_arguments_are_errors_that_name_them(corpus, monkeypatch, arguments, error, message):
    monkeypatch.chdir(corpus)
    with pytest.raises(error, match=message):
        run(*arguments)


def test_limited_entries_are_spread_over_the_manifest():
    entries = [Entry("c", "d", str(i), 1.0) for i in range(10)]
    assert [entry.speaker for entry in pairs.select(entries, paired=True, limit=3)] == ["0", "3", "6"]
    assert pairs.select(entries, paired=True, limit=11) == entries


def test_a_delay_in_the_manifest_is_corrected(corpus):
    late = Entry(str(corpus / "a_air.wav"), str(corpus / "a_bone.wav"), "a", 1.0, delay=0.1)
    degraded, clean = pairs.PairSource(corpus).read(late)
    assert (degraded.size, clean.size) == (RATE - 1600, RATE)
    simulated, _ = pairs.PairSource(corpus, PRESETS["eben"]).read(late)
    assert simulated.size == RATE


def test_the_bootstrap_interval_of_normal_values_has_the_theoretical_width():
    values = np.random.default_rng(0).normal(5, 2, 400)
    mean, low, high, n = bootstrap(values)
    assert (mean, n) == (pytest.approx(values.mean()), 400)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap([3.0])[:1] == (3.0,)
    assert np.isnan(bootstrap([np.nan]).mean)


def test_rows_are_read_back_from_their_file(tmp_path):
    values = dict(zip(QUICK, [1.5, 0.25, np.nan, 3.0, 1.0, 12.5], strict=True))
    rows = [
        Row("a,b.wav", "c", "é", 1.25, "x, y", values, -7, 3, "estoi: too short"),
        Row("a,b.wav", "c", "é", 1.25, report.CLEAN, {"mos": 4.5, "dnsmos": np.nan}),
    ]
    report.write_rows(tmp_path / "rows.csv", rows)
    assert repr(report.read_rows(tmp_path / "rows.csv")) == repr(rows)
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["delay_ms"] == "-0.4375"
    (tmp_path / "rows.csv").write_text("utterance,pesq\na,good\n")
    with pytest.raises(DataError, match=r"rows.csv:2: not a line of scores"):
        report.read_rows(tmp_path / "rows.csv")


def test_clean_speech_is_scored_by_metrics_without_reference(corpus, monkeypatch):
    monkeypatch.setitem(metrics.NO_REFERENCE, "mos", lambda sound: float(np.abs(sound).sum()))
    arguments = ("--pairs", corpus / "pairs.csv", "--model", "none", "--pictures", 0)
    run(*arguments, "-o", corpus / "out", "--metrics", "mos", "stoi")
    clean, raw = scores(corpus / "out", report.CLEAN), scores(corpus / "out")
    assert [row.scores.keys() for row in (clean["c_bone.wav"], raw["c_bone.wav"])] == [{"mos"}, {"stoi", "mos"}]
    assert clean["a_bone.wav"].scores["mos"] == pytest.approx(raw["a_bone.wav"].scores["mos"], rel=1e-4)
    assert clean["c_bone.wav"].longer == 0
    table = (corpus / "out" / "table.md").read_text()
    assert "| system | n | STOI ↑ | MOS ↑ | RTF |" in table
    assert "| clean | 3 | - | " in table
    with pytest.raises(DataError, match=r"another evaluation \(metrics: \['stoi', 'mos'\] there"):
        run(*arguments, "-o", corpus / "out")
    with pytest.raises(ConfigError, match="no metric 'taste'; there are pesq, stoi"):
        run(*arguments, "--metrics", "taste")


def test_merging_joins_metrics_that_were_measured_separately(corpus):
    arguments = ("--pairs", corpus / "pairs.csv", "--model", "none", "--pictures", 0)
    run(*arguments, "-o", corpus / "all", "--metrics", "lsd", "stoi", "mcd")
    run(*arguments, "-o", corpus / "one", "--metrics", "lsd", "stoi")
    run(*arguments, "-o", corpus / "two", "--metrics", "stoi", "mcd")
    assert run("--merge", corpus / "one", corpus / "two", "-o", corpus / "joined") == 0
    assert scores(corpus / "joined") == scores(corpus / "all")


def test_a_model_must_not_have_the_name_of_another_row(corpus, tiny_path):
    with pytest.raises(ConfigError, match="--model clean: is the name of another row"):
        run("--pairs", corpus / "pairs.csv", "--model", f"clean={tiny_path}")


def test_missing_scores_are_noted_in_the_table():
    complete_scores = dict.fromkeys(report.COLUMNS, 1.0)
    rows = [
        Row(str(i), "", "s", 1.0, RAW, complete_scores | ({"pesq": np.nan} if i else {}), note="why" if i else "")
        for i in (0, 1)
    ]
    table = report.markdown(rows, {})
    assert "| raw input | 2 | 1.00 (n = 1) | 1.000 [1.000, 1.000]" in table
    assert "Without a score, 1 estimates: why." in table


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")
def test_scoring_processes_ignore_ctrl_c() -> None:
    """A terminal sends SIGINT to all processes, each of which would print a traceback."""
    with scoring_pool(2) as pool:
        assert pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result() == {signal.SIGINT}
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


class Muting(EnhancerModule):
    """An enhancer that stores its inputs and returns silence."""

    sample_rate, hop_length, stride, context = RATE, 256, 256, 0

    def __init__(self):
        super().__init__()
        self.stored_inputs = []

    def forward(self, audio):
        self.stored_inputs.append(audio[0, 0].numpy().copy())
        return torch.zeros_like(audio)


def test_copy_synthesis_gets_the_clean_speech_and_no_low_band_is_kept():
    clean, degraded = speech(0), speech(1)
    copied, restored = Muting(), Muting()
    both = [systems.System("copied", copied, uses_clean=True), systems.System("restored", restored, uses_clean=False)]
    outputs = dict(systems.estimates(degraded, clean, both, keep_low_band=1000.0))
    for model, expected_input, other_input in ((copied, clean, degraded), (restored, degraded, clean)):
        correlations = [
            abs(np.corrcoef(model.stored_inputs[0][: len(clean)], side)[0, 1]) for side in (expected_input, other_input)
        ]
        assert correlations[0] > 0.95 > 0.5 > correlations[1]  # not 1, since the input is high-passed
    assert not outputs["copied"].any()
    assert outputs["restored"].any()  # the kept low band of its input
