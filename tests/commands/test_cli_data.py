"""Tests of the commands simulate, fit-sensor and manifest."""

import json
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from twostage import cli
from twostage.audio import sound_files
from twostage.commands import fit_sensor, manifest, simulate
from twostage.data.manifest import read_manifest
from twostage.data.sensors import PRESETS, load_sensor
from twostage.data.simulator import simulate_file
from twostage.utils.errors import TwoStageError

RATE = 16000
Speech = Callable[..., np.ndarray]


def run(module: ModuleType, *arguments: object) -> int:
    parser = ArgumentParser()
    module.add_arguments(parser)
    return int(module.run(parser.parse_args([str(argument) for argument in arguments])))


@pytest.fixture
def clean(tmp_path: Path, speech: Speech) -> Path:
    """A folder with p1/a.wav (stereo, 44.1 kHz) and p2/b.flac (mono, 16 kHz)."""
    stereo = np.stack([speech(44100, 44100), speech(44100, 44100, seed=1)])
    sound_files.write(tmp_path / "clean/p1/a.wav", stereo, 44100)
    sound_files.write(tmp_path / "clean/p2/b.flac", speech(RATE), RATE)
    return tmp_path / "clean"


def test_simulate_keeps_the_folder_structure_and_is_reproducible(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in ("one", "two"):
        assert run(simulate, clean, tmp_path / out, "--sensor", "throat", "--seed", 3) == 0
    assert "2 of 2 files" in capsys.readouterr().out
    for name in ("p1/a.wav", "p2/b.flac"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        before, after = sound_files.info(clean / name), sound_files.info(tmp_path / "one" / name)
        assert (before.sample_rate, before.channels, before.frames) == (after.sample_rate, after.channels, after.frames)
    output, rate = sound_files.read(tmp_path / "one/p2/b.flac")
    expected = simulate_file(sound_files.read(clean / "p2/b.flac")[0], rate, PRESETS["throat"], 3, "p2/b.flac")
    np.testing.assert_allclose(output, expected, atol=2**-15)
    run(simulate, clean, tmp_path / "three", "--seed", 4)
    assert (tmp_path / "one/p2/b.flac").read_bytes() != (tmp_path / "three/p2/b.flac").read_bytes()


def test_simulate_writes_a_manifest_of_pairs(clean: Path, tmp_path: Path) -> None:
    run(simulate, clean, tmp_path / "out", "--manifest", tmp_path / "pairs.jsonl", "--format", "flac")
    first, second = read_manifest(tmp_path / "pairs.jsonl")
    assert (first.speaker, second.speaker) == ("p1", "p2")
    assert first.degraded == str(tmp_path / "out/p1/a.flac")
    assert first.clean == str(clean / "p1/a.wav")
    assert first.seconds == pytest.approx(1.0)


def test_simulate_reports_unreadable_files_and_continues(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clean / "bad.wav").write_bytes(b"no sound")
    assert run(simulate, clean, tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "2 of 3 files" in printed.out
    assert "bad.wav" in printed.err
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["a.wav", "b.flac"]
    assert run(simulate, clean, tmp_path / "out") == 1  # all outputs exist
    assert "exists already" in capsys.readouterr().err
    (clean / "bad.wav").unlink()
    assert run(simulate, clean, tmp_path / "out", "--skip-existing") == 0
    assert run(simulate, clean, tmp_path / "out", "--overwrite") == 0


def test_simulate_never_exceeds_full_scale(tmp_path: Path, speech: Speech) -> None:
    loud = speech(RATE)
    sound_files.write(tmp_path / "in/x.wav", loud / np.abs(loud).max(), RATE, subtype="FLOAT")
    run(simulate, tmp_path / "in", tmp_path / "out", "--sensor", "throat")
    assert np.abs(sound_files.read(tmp_path / "out/x.wav")[0]).max() <= 0.991


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clean", "clean/bone"], "lies in"),
        (["none", "out"], "none"),
        (["clean", "out", "--sensor", "trhoat"], "sensor trhoat"),
        (["clean", "out", "--manifest", "clean/p2/b.flac"], "exists already"),
    ],
)
def test_simulate_refuses_invalid_arguments_before_it_writes(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TwoStageError, match=message):
        run(simulate, *arguments)
    assert not (tmp_path / "out").exists()


def test_two_inputs_with_the_same_output_are_refused(clean: Path, tmp_path: Path) -> None:
    sound_files.write(clean / "p2/b.wav", np.full(100, 0.1, np.float32), RATE)
    with pytest.raises(TwoStageError, match="same output"):
        run(simulate, clean, tmp_path / "out", "--format", "flac")


@pytest.fixture
def recordings(tmp_path: Path, speech: Speech) -> Path:
    """{bone,air}/pN/x.wav: three usable pairs, and one whose channels do not match."""
    rng = np.random.default_rng(0)
    for number in range(4):
        air = speech(2 * RATE, seed=number) + 0.003 * rng.standard_normal(2 * RATE).astype(np.float32)
        bone = simulate_file(air[None], RATE, PRESETS["forehead"], 0, str(number))[0]
        if number == 3:
            bone = 0.1 * rng.standard_normal(2 * RATE).astype(np.float32)
        sound_files.write(tmp_path / f"recordings/air/p{number}/x.wav", air, RATE)
        sound_files.write(tmp_path / f"recordings/bone/p{number}/x.wav", np.pad(bone, (30, 0)), RATE)
    return tmp_path / "recordings"


def test_a_folder_is_scanned_aligned_and_split(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(manifest, "scan", recordings, "-o", tmp_path / "all.jsonl", "--corpus", "mine") == 0
    assert "4 pairs and 0 clean files of 4 speakers" in capsys.readouterr().out
    assert (
        run(manifest, "align", tmp_path / "all.jsonl", "-o", tmp_path / "good.jsonl", "--report", tmp_path / "r.json")
        == 0
    )
    printed = capsys.readouterr().out
    assert "3 of 4 pairs are fit for use" in printed
    (problem_line,) = [line for line in printed.splitlines() if "do not match" in line]
    assert problem_line.startswith("p3/x.wav ")  # the folder is printed because all files have the same name
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["kept"] == 3
    assert [bool(pair["problem"]) for pair in report["pairs"]] == [False, False, False, True]
    usable = read_manifest(tmp_path / "good.jsonl")
    assert [entry.corpus for entry in usable] == ["mine"] * 3
    assert all(entry.delay == pytest.approx(30 / RATE, abs=3 / RATE) for entry in usable)
    run(manifest, "split", tmp_path / "good.jsonl", "-o", tmp_path / "t.jsonl", tmp_path / "h.jsonl", "--fraction", 0.3)
    train, held_out = read_manifest(tmp_path / "t.jsonl"), read_manifest(tmp_path / "h.jsonl")
    assert {entry.speaker for entry in train}.isdisjoint(entry.speaker for entry in held_out)
    assert len(train) + len(held_out) == 3


def test_two_folders_are_paired(recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recordings / "air/p0/x.wav").unlink()
    arguments = [
        "pair",
        recordings / "bone",
        recordings / "air",
        "-o",
        tmp_path / "p.jsonl",
        "--report",
        tmp_path / "r.json",
    ]
    assert run(manifest, *arguments) == 0
    assert "no partner" in capsys.readouterr().out
    assert len(read_manifest(tmp_path / "p.jsonl")) == 3
    assert json.loads((tmp_path / "r.json").read_text())["speakers"] == ["p1", "p2", "p3"]
    with pytest.raises(TwoStageError, match="exists already"):
        run(manifest, *arguments)


def test_align_without_a_usable_pair_is_an_error_but_writes_the_report(recordings: Path, tmp_path: Path) -> None:
    run(manifest, "scan", recordings, "-o", tmp_path / "all.jsonl")
    arguments = ["align", tmp_path / "all.jsonl", "-o", tmp_path / "g.jsonl", "--report", tmp_path / "r.json"]
    with pytest.raises(TwoStageError, match="none of the 4 pairs"):
        run(manifest, *arguments, "--min-peak", 1.0)
    assert json.loads((tmp_path / "r.json").read_text())["kept"] == 0
    assert not (tmp_path / "g.jsonl").exists()


def test_simulate_reads_the_sensor_that_fit_sensor_writes(
    recordings: Path, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sensor.yaml"
    assert run(fit_sensor, recordings, "-o", out, "--plot", "--exclude-speaker", "p2") == 0
    printed = capsys.readouterr().out
    assert "left out" in printed  # p3, whose channels do not match
    assert "speakers: p0, p1" in printed
    assert "speakers: p0, p1" in out.read_text().splitlines()[0]
    assert (tmp_path / "sensor.png").stat().st_size > 10000
    sensor = load_sensor(out)
    assert len(sensor.response_db) == len(sensor.frequencies) > 20
    assert run(simulate, clean, tmp_path / "simulated", "--sensor", out) == 0
    with pytest.raises(TwoStageError, match="exists already"):
        run(fit_sensor, recordings, "-o", out)
    with pytest.raises(TwoStageError, match="no speaker p9 to exclude"):
        run(fit_sensor, recordings, "-o", out, "--overwrite", "--exclude-speaker", "p9")


@pytest.mark.parametrize(
    "arguments",
    [
        ["manifest", "scan", "clean", "-o", "file/x.jsonl"],
        ["manifest", "scan", "clean", "-o", "x.jsonl", "--report", "file/x.json"],
        ["simulate", "clean", "out", "--manifest", "file/m.jsonl"],
        ["train-restorer", "restorer", "tiny", "data.train=[m.csv]", "data.valid=[m.csv]", "--run", "file/run"],
        ["train-vocoder", "vocoder", "tiny", "data.train=[m.csv]", "data.valid=[m.csv]", "run_dir=file"],
    ],
)
def test_an_output_that_cannot_be_written_is_reported_in_one_line(
    tmp_path: Path,
    speech: Callable[..., np.ndarray],
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    sound_files.write(tmp_path / "clean" / "a.wav", speech(16000), RATE)
    (tmp_path / "m.csv").write_text("path,speaker\nclean/a.wav,s\n")
    (tmp_path / "file").touch()
    assert cli.main(arguments) == 1
    assert "twostage: error: file: cannot make this folder" in capsys.readouterr().err.replace("file/run", "file")
