"""Tests of the command restore."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from twostage.audio import levels, sound_files
from twostage.cli import COMMANDS, main
from twostage.commands import options
from twostage.commands import restore as command
from twostage.inference import input_levels, jobs, restoration, spool
from twostage.inference.jobs import plan

Speech = Callable[..., np.ndarray]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def recordings(mixed_recordings: Path) -> Path:
    """A working folder with readable and unreadable recordings in "in"."""
    sound_files.write("in/one.wav", np.full(1, 0.1), 16000)
    soundfile.write("in/zero.wav", np.zeros(0), 16000)
    soundfile.write("in/nan.wav", np.array([0.1, np.nan]), 16000, subtype="FLOAT")
    Path("in/empty.wav").touch()
    Path("in/cut.wav").write_bytes(Path("in/good.wav").read_bytes()[:5000])
    Path("in/notes.txt").write_text("no recording")
    return mixed_recordings


def listing(folder: str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def run(tiny_path: Path, *arguments: str) -> int:
    return main(["restore", *arguments, "--model", str(tiny_path), "--device", "cpu"])


def test_readable_files_are_restored_and_unreadable_ones_reported(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_path, "in", "-o", "out") == 1
    out, err = capsys.readouterr()
    assert listing("out") == ["good.wav", "one.wav", "silent.wav", "sub/stereo.flac"]
    assert sound_files.info("out/sub/stereo.flac") == sound_files.Info(
        16000, 2, round(20000 * 16000 / 44100), "FLAC", "PCM_24"
    )
    assert sound_files.info("out/one.wav").frames == 1
    assert not sound_files.read("out/silent.wav")[0].any()
    lines_by_file = {line.split(": ")[2]: line for line in err.splitlines()}
    expected_problems = {
        "zero": "no samples",
        "nan": "NaN",
        "empty": "empty",
        "text": "not a sound file",
        "cut": "truncated",
    }
    for name, problem in expected_problems.items():
        assert problem in lines_by_file[f"in/{name}.wav"]
    assert "warning: in/silent.wav: silent" in err
    assert len(err.splitlines()) == 6
    assert len([line for line in out.splitlines() if " -> " in line]) == 4
    assert out.splitlines()[-1].startswith("4 restored, 5 failed; ")


def test_a_file_is_restored_to_a_named_file_with_report_and_picture(recordings: Path, tiny_path: Path) -> None:
    options = ["--plot", "--json", "r.json", "--sample-rate", "input"]
    assert run(tiny_path, "in/sub/stereo.flac", "-o", "a/b.wav", *options) == 0
    assert listing("a") == ["b.png", "b.wav"]
    assert Path("a/b.png").read_bytes().startswith(b"\x89PNG")
    assert sound_files.info("a/b.wav") == sound_files.Info(44100, 2, 20000, "WAV", "PCM_24")
    report = json.loads(Path("r.json").read_text())
    assert report["device"] == "cpu"
    assert report["model"] == [str(tiny_path)]
    (entry,) = report["files"]
    assert (entry["status"], entry["channels"], entry["sample_rate"]) == ("restored", 2, 44100)
    assert entry["seconds"] == pytest.approx(20000 / 44100)
    assert entry["realtime_factor"] == pytest.approx(entry["elapsed"] / entry["seconds"])
    assert entry["plot"] == "a/b.png"
    assert report["summary"]["restored"] == 1


def test_stdout_with_json_is_only_the_report(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_path, "in/good.wav", "in/text.wav", "-o", "out", "--json") == 1
    files = json.loads(capsys.readouterr().out)["files"]
    assert [file["status"] for file in files] == ["restored", "failed"]
    assert "not a sound file" in files[1]["error"]


def test_an_existing_output_is_refused_skipped_or_overwritten(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    Path("out/good.wav").write_text("precious")
    assert run(tiny_path, "in/good.wav", "-o", "out") == 1
    assert "out/good.wav: exists already" in capsys.readouterr().err
    assert run(tiny_path, "in/good.wav", "-o", "out", "--skip-existing") == 0
    assert "skipped" in capsys.readouterr().out
    assert Path("out/good.wav").read_text() == "precious"
    assert run(tiny_path, "in/good.wav", "-o", "out", "--overwrite") == 0
    assert sound_files.info("out/good.wav").frames == 6000


def test_an_existing_picture_is_refused_before_restoring(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("good.png").touch()
    assert run(tiny_path, "in/good.wav", "-o", "good.wav", "--plot") == 1
    assert "good.png: exists already" in capsys.readouterr().err
    assert not Path("good.wav").exists()


def test_options_for_patterns_formats_and_levels(recordings: Path, tiny_path: Path) -> None:
    assert run(tiny_path, "in/**/[gs]*o*.*a*", "-o", "out", "--format", "ogg", "--keep-low-band", "500") == 0
    assert listing("out") == ["good.ogg", "sub/stereo.ogg"]
    assert run(tiny_path, "in/good.wav", "-o", "loud.wav", "--level", "model") == 0
    level = levels.active_level(sound_files.read("loud.wav")[0], 16000)
    assert level != pytest.approx(levels.active_level(sound_files.read("in/good.wav")[0], 16000), abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.wav", "-o", "out"], "nothing.wav: no such file"),
        (["no*.wav", "-o", "out"], "no*.wav: no sound files found"),
        (["in/good.wav", "-o", "a.m4a"], "a.m4a: cannot write .m4a files"),
        (["in", "-o", "a.wav"], "a.wav: is the name of a sound file"),
        (["in/good.wav", "-o", "a.wav", "--format", "flac"], "a.wav: its name says .wav, --format says flac"),
        (["in/good.wav", "-o", "in"], "in/good.wav: would be replaced by its own restoration"),
        (["in/good.wav", "-o", "out", "--seconds", "0"], "seconds is 0.0, must be positive"),
        (["in/good.wav", "-o", "out", "--keep-low-band", "9000"], "keep_low_band is 9000.0"),
        (["in/good.wav", "-o", "out", "--json", "in/one.wav"], "must end in .json"),
        (["in/good.wav", "-o", "in/text.wav/out"], "in/text.wav/out: cannot make this folder (Not a directory)"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = listing(".")
    assert run(tiny_path, *arguments) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("twostage: error: ")
    assert len(err.splitlines()) == 1
    assert listing(".") == before


@pytest.mark.parametrize("model", ["missing-model", "in/text.wav"])
def test_a_model_that_cannot_be_loaded_is_reported_in_one_line(
    recordings: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    assert main(["restore", "in/good.wav", "-o", "out", "--model", model]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"twostage: error: {model}: ")
    assert len(err.splitlines()) == 1


def test_a_second_input_with_the_same_output_is_refused(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound_files.write("in/good.flac", np.full(100, 0.1), 16000)
    assert run(tiny_path, "in/good.flac", "in/good.wav", "in/good.wav", "-o", "out", "--format", "wav") == 1
    assert "in/good.wav: would write out/good.wav, which in/good.flac writes" in capsys.readouterr().err
    assert sound_files.info("out/good.wav").frames == 100


def test_outputs_inside_the_input_folder_are_not_restored_again(recordings: Path) -> None:
    Path("in/out").mkdir()
    sound_files.write("in/out/good.wav", np.full(100, 0.1), 16000)
    assert Path("in/out/good.wav") not in {job.source for job in plan(["in"], "in/out")}


def test_pictures_of_files_of_the_same_name_have_different_names(recordings: Path) -> None:
    sound_files.write("in/good.flac", np.full(100, 0.1), 16000)
    plots = [job.plot.name for job in plan(["in/good.flac", "in/good.wav"], "out", plot=True) if job.plot]
    assert plots == ["good.png", "good.wav.png"]


def test_a_full_disk_is_reported_and_leaves_no_output(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_disk_full(self: object, block: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool.SpoolFile, "write", raise_disk_full)
    assert run(tiny_path, "in/good.wav", "-o", "out") == 1
    assert "out/good.wav: cannot be written (No space left on device)" in capsys.readouterr().err
    assert listing("out") == []


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_reports_what_was_restored(
    recordings: Path,
    tiny_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: signal.Signals,
) -> None:
    original = restoration.restore_file

    def interrupted(model: object, source: Path, *args: object, **kwargs: object) -> restoration.RestorationReport:
        if source.name == "one.wav":
            signal.raise_signal(kind)
        return original(model, source, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(restoration, "restore_file", interrupted)
    assert run(tiny_path, "in/good.wav", "in/one.wav", "in/silent.wav", "-o", "out") == 130
    out, err = capsys.readouterr()
    assert "1 restored, 2 not done" in out
    assert err == "twostage: interrupted\n"
    assert listing("out") == ["good.wav"]


def test_an_interruption_leaves_no_partial_output(recordings: Path, tiny_path: Path) -> None:
    with sound_files.Writer("in/long.wav", 16000, 1) as writer:
        for seed in range(20):
            writer.write(np.random.default_rng(seed).normal(0, 0.1, (1, 160000)).astype(np.float32))
    arguments = [sys.executable, "-m", "twostage", "restore", "in/long.wav", "-o", "out", "--model", str(tiny_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not listing("out") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert listing("out")  # a partial file under a temporary name
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert listing("out") == []


def test_help_shows_an_example_and_imports_no_heavy_package(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit) as exit_info:
            main([name, "--help"])
        assert exit_info.value.code == 0
        out = capsys.readouterr().out
        assert f"example:\n  twostage {name} " in out
    code = "import sys, twostage.cli; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_option_format_offers_the_writable_formats() -> None:
    assert set(options.FORMATS) == set(sound_files.FORMATS) - {"aif", "oga"}


def test_outputs_that_another_process_writes_meanwhile_are_skipped(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with --skip-existing share the work: an output appears before a file is read or while it is."""
    original, measure_levels = restoration.restore_file, restoration.measure_levels

    def restore_while_silent_wav_appears(
        model: object, source: Path, *args: object, **kwargs: object
    ) -> restoration.RestorationReport:
        sound_files.write("out/silent.wav", np.full(7, 0.1), 16000, overwrite=True)
        return original(model, source, *args, **kwargs)  # type: ignore[arg-type]

    def measure_while_one_wav_appears(
        source: input_levels.AudioSource, rate: int, **options: bool
    ) -> input_levels.InputLevels:
        if source.name == "in/one.wav":
            sound_files.write("out/one.wav", np.full(7, 0.1), 16000)
        return measure_levels(source, rate, **options)

    monkeypatch.setattr(restoration, "restore_file", restore_while_silent_wav_appears)
    monkeypatch.setattr(restoration, "measure_levels", measure_while_one_wav_appears)
    assert run(tiny_path, "in/good.wav", "in/one.wav", "in/silent.wav", "-o", "out", "--skip-existing") == 0
    out, err = capsys.readouterr()
    assert "1 restored, 2 skipped" in out
    assert err == ""
    assert {name: sound_files.info(f"out/{name}").frames for name in listing("out")} == {
        "good.wav": 6000,
        "one.wav": 7,
        "silent.wav": 7,
    }


def test_a_circular_link_is_named(recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in/circle.wav").symlink_to("circle.wav")
    assert run(tiny_path, "in/circle.wav", "-o", "out") == 1
    assert (
        "twostage: error: in/circle.wav: cannot be read (Too many levels of symbolic links)" in capsys.readouterr().err
    )


def test_the_time_to_plan_grows_linearly_with_the_number_of_files(
    recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning compares fewer jobs than there are, instead of every job with every other."""
    for number in range(300):
        Path(f"in/sub/{number}.wav").touch()
    comparisons = 0
    original_eq = jobs.RestoreJob.__eq__

    def counting_eq(self: jobs.RestoreJob, other: object) -> bool:
        nonlocal comparisons
        comparisons += 1
        return bool(original_eq(self, other))

    monkeypatch.setattr(jobs.RestoreJob, "__eq__", counting_eq)
    assert len(plan(["in/sub"], "out")) == 301
    assert comparisons < 301


def test_a_progress_bar_in_a_log_file_does_not_share_lines_with_errors(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "LONG", 0.0)
    assert run(tiny_path, "in/good.wav", "in/text.wav", "-o", "out") == 1
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("restoring: ") for line in lines)
    assert any(line.startswith("twostage: error: in/text.wav: not a sound file") for line in lines)


def test_an_unreadable_file_does_not_block_a_readable_one_of_the_same_name(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("calls").mkdir()
    Path("calls/call.aac").write_bytes(np.random.default_rng(0).bytes(3000))
    Path("calls/call.aiff").write_bytes(b"no sound")
    Path("calls/call.wav").write_bytes(Path("in/good.wav").read_bytes())
    assert run(tiny_path, "calls", "-o", "out", "--format", "flac") == 1
    out, err = capsys.readouterr()
    assert listing("out") == ["call.flac"]
    assert sound_files.info("out/call.flac").frames == 6000
    assert "1 restored, 2 failed" in out
    assert "calls/call.aac" in err
    assert "calls/call.aiff: not a sound file" in err


def test_files_that_are_passed_over_are_counted_and_listed(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in/sub/picture.png").touch()
    assert run(tiny_path, "in", "-o", "out", "--json", "r.json") == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("; 2 files passed over that are not sound by their names")
    assert json.loads(Path("r.json").read_text())["passed_over"] == ["in/notes.txt", "in/sub/picture.png"]


def test_salvage_restores_a_truncated_file_and_reports_what_is_missing(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_path, "in/cut.wav", "-o", "cut.wav") == 1
    assert "--salvage reads the rest" in capsys.readouterr().err
    assert run(tiny_path, "in/cut.wav", "-o", "cut.wav", "--salvage", "--plot") == 0
    assert "warning: in/cut.wav: truncated, 7044 of 12000 bytes of sound are missing" in capsys.readouterr().err
    assert sound_files.info("cut.wav").frames == (5000 - 44) // 2
    assert Path("cut.png").exists()


@pytest.mark.parametrize("out", ["out.txt", "out.m4a", "new/out.webm"])
def test_an_output_of_an_unsupported_format_is_not_taken_for_a_folder(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    assert run(tiny_path, "in/good.wav", "-o", out) == 1
    assert f"{out}: cannot write {Path(out).suffix} files; the formats are wav" in capsys.readouterr().err
    assert not Path(out).exists()
    assert run(tiny_path, "in/good.wav", "-o", f"{out}/") == 0
    assert listing(out) == ["good.wav"]


@pytest.mark.slow
def test_an_invalid_matplotlib_backend_does_not_stop_the_command(recordings: Path, tiny_path: Path) -> None:
    arguments = ["restore", "in/good.wav", "in/one.wav", "-o", "out", "--plot", "--model", str(tiny_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "nonsense"}
    process = subprocess.run([sys.executable, "-m", "twostage", *arguments], env=environment, capture_output=True)
    assert (process.returncode, process.stderr) == (0, b"")
    assert listing("out") == ["good.png", "good.wav", "one.png", "one.wav"]


def test_a_picture_that_cannot_be_drawn_is_only_a_warning(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_error(*_: object, **__: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr("twostage.audio.plots.draw", raise_error)
    assert run(tiny_path, "in/good.wav", "in/one.wav", "-o", "out", "--plot") == 0
    assert "warning: in/good.wav: out/good.png: not drawn (no font)" in capsys.readouterr().err
    assert listing("out") == ["good.wav", "one.wav"]


def test_a_recording_is_restored_from_stdin_to_stdout(recordings: Path, tiny_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "twostage",
        "restore",
        "-",
        "-o",
        "-",
        "--model",
        str(tiny_path),
        "--format",
        "flac",
    ]
    content = Path("in/good.wav").read_bytes()
    process = subprocess.run(command, input=content, env=environment, capture_output=True)
    assert process.returncode == 0
    assert b"standard input -> standard output" in process.stderr
    Path("piped").write_bytes(process.stdout)
    assert sound_files.info("piped").format == "FLAC"
    assert run(tiny_path, "in/good.wav", "-o", "direct.wav") == 0
    assert np.abs(sound_files.read("piped")[0] - sound_files.read("direct.wav")[0]).max() < 2**-14
    failed = subprocess.run(command, input=b"no sound", env=environment, capture_output=True)
    assert (failed.returncode, failed.stdout) == (1, b"")
    assert b"twostage: error: standard input: not a sound file" in failed.stderr
    assert not Path("-").exists()


def test_options_that_do_not_work_with_a_pipe_are_refused(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["in/good.wav", "--plot"], ["in/good.wav", "--json"], ["in"], ["in/good.wav", "in/one.wav"]):
        assert run(tiny_path, *arguments, "-o", "-") == 1
        assert "-o -: " in capsys.readouterr().err
    assert not Path("-").exists()


def test_inputs_whose_names_look_like_options(
    recordings: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("-x.wav").write_bytes(Path("in/good.wav").read_bytes())
    Path("in/sub/-y.wav").write_bytes(Path("in/good.wav").read_bytes())
    for arguments in (["-x.wav", "-o", "out"], ["in/good.wav", "-x.wav", "-o", "out"]):
        with pytest.raises(SystemExit):
            main(["restore", *arguments])
        assert "if -x.wav is a file: ./-x.wav, or -- before it" in capsys.readouterr().err
    assert run(tiny_path, "./-x.wav", "in/sub", "-o", "out") == 0
    assert listing("out") == ["-x.wav", "-y.wav", "stereo.flac"]
    assert main(["restore", "--model", str(tiny_path), "-o", "out2", "--", "-x.wav"]) == 0
