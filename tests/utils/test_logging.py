"""Tests of logging: what -q and -v show, and that the logging of a host program is not changed."""

import logging
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import twostage
from twostage import cli
from twostage.audio import sound_files
from twostage.models.two_stage import TwoStage
from twostage.utils.logs import quieted

ROOT = Path(__file__).parents[2]


@pytest.fixture
def logging_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the command compare by one that logs one record of each level."""

    def run(args: Any) -> int:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger("twostage.anything").log(level, "level %d\nof it", level)
        return 0

    module = SimpleNamespace(HELP="", EXAMPLE="", add_arguments=lambda parser: None, run=run)
    monkeypatch.setitem(cli.COMMANDS, "compare", module)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "levels"), [([], [30, 40]), (["-q"], [40]), (["-v"], [20, 30, 40]), (["-vv"], [10, 20, 30, 40])]
)
@pytest.mark.parametrize("options_last", [True, False])
def test_quiet_and_verbose_select_the_levels_that_are_printed(
    logging_command: None, options: list[str], levels: list[int], options_last: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", *options] if options_last else [*options, "compare"]) == 0
    kinds = {10: "", 20: "", 30: "warning: ", 40: "error: "}
    lines = capsys.readouterr().err.splitlines()
    assert lines == [rf"twostage: {kinds[level]}level {level}\nof it" for level in levels]
    assert logging.getLogger("twostage").level == logging.NOTSET
    assert [type(handler) for handler in logging.getLogger("twostage").handlers] == [logging.NullHandler]


def test_quiet_and_verbose_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.parse(["restore", "a.wav", "-o", "b.wav", "-q", "-v"])


def test_restore_prints_according_to_quiet_and_verbose(
    tiny_path: Path, tmp_path: Path, speech: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sound_files.write(tmp_path / "a.wav", np.stack([speech(4000), np.zeros(4000)]), 16000)
    (tmp_path / "bad.wav").write_text("no sound" * 30)
    printed = {}
    for option in ("-q", "-v"):
        files = [str(tmp_path / "a.wav"), str(tmp_path / "bad.wav")]
        command = ["restore", *files, "-o", str(tmp_path / "out"), "--overwrite", "--model", str(tiny_path), option]
        assert cli.main(command) == 1
        printed[option] = capsys.readouterr()
    assert printed["-q"].out == ""
    assert printed["-q"].err.splitlines() == [
        f"twostage: error: {tmp_path}/bad.wav: not a sound file that can be read (Format not recognised)"
    ]
    assert "1 restored, 1 failed" in printed["-v"].out
    assert f"twostage: loaded {tiny_path}: a two-stage, on cpu" in printed["-v"].err
    assert "a.wav: channel 2 silent; restored as silence" in printed["-v"].err


def test_log_records_reach_a_host_program(tiny_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "twostage"):
        twostage.load(tiny_path)
    assert [record.name for record in caplog.records] == ["twostage.models.checkpoint"]


def test_importing_does_not_change_the_root_logger() -> None:
    code = "import logging, twostage; print(logging.root.handlers, logging.root.manager.disable)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout == "[] 0\n"


def test_only_quieted_packages_are_quiet(caplog: pytest.LogCaptureFixture) -> None:
    child = logging.getLogger("aa.child")
    child.setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    handlers = logging.root.handlers[:]
    with quieted("aa"):
        for name in ("aa", "aa.child", "aab", "host"):
            logging.getLogger(name).warning("w of %s", name)
            logging.getLogger(name).error("e of %s", name)
        exec(compile("import logging; logging.warning('w'); logging.error('e')", "/lib/aa/file.py", "exec"))
        logging.root.addHandler(logging.NullHandler())  # logging.warning does the same if there is no handler
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["e of aa", "e of aa.child", "w of aab", "e of aab", "w of host", "e of host", "e"]
    assert (child.level, logging.root.handlers, logging.root.filters) == (logging.DEBUG, handlers, [])


def test_an_export_does_not_silence_a_host_program(
    tiny: TwoStage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxscript")
    from twostage.export import onnx

    with caplog.at_level(logging.INFO), warnings.catch_warnings(), onnx._quietly():
        logging.getLogger("host").info("still logged")
        logging.getLogger("torch.onnx").warning("not logged")
    assert [record.getMessage() for record in caplog.records] == ["still logged"]
    assert logging.root.manager.disable == 0


def test_no_module_disables_or_configures_logging() -> None:
    for path in ROOT.glob("twostage/**/*.py"):
        text = path.read_text(encoding="utf-8")
        assert "logging.disable" not in text, path
        assert "basicConfig" not in text, path
