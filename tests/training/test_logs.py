"""Tests of the logs of a training: a resumed run keeps its logs up to its step, also from a damaged file."""

import contextlib
import json
import sys
import threading
from pathlib import Path

import pytest

from twostage.training import logs
from twostage.training.logs import RunLog
from twostage.utils.errors import OutputError


def logged_steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]


def write_log(run: Path, count: int = 3) -> None:
    log = RunLog(run)
    for step in range(1, count + 1):
        log.scalars(step, {"loss": 1.0}, "train")
    log.close()


def test_lines_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    write_log(tmp_path)
    RunLog(tmp_path, 2).close()
    assert logged_steps(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    "partial",
    [
        b'{"step": 3, "ki',
        b"\xed\xa0\x80",
        b"null",
        b"[1]",
        b'{"step": "x"}',
        b'{"step": NaN}',
        b"[" * 50_000,
        b"\x00" * 99,
        b'{"step": 1' + b"0" * 9999 + b"}",
        b'{"step": null}',
        b'{"loss": 1}',
    ],
    ids=lambda partial: repr(partial[:15]),
)
def test_partial_lines_of_a_crash_are_dropped(tmp_path: Path, partial: bytes) -> None:
    write_log(tmp_path)
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(partial + b"\n" + partial)
    RunLog(tmp_path, 3).close()
    assert logged_steps(tmp_path) == [1, 2, 3]


def test_an_interruption_while_lines_are_dropped_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path)
    write = Path.write_text

    def write_half(self: Path, text: str, **options: str) -> int:
        write(self, text[: len(text) // 2], **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(logs.Path, "write_text", write_half)
    with pytest.raises(KeyboardInterrupt):
        RunLog(tmp_path, 2)
    assert logged_steps(tmp_path) == [1, 2, 3]


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of file size")
def test_a_full_disk_is_an_error_without_output_of_the_writer_thread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    limits, hook = resource.getrlimit(resource.RLIMIT_FSIZE), threading.excepthook

    def write() -> None:
        with RunLog(tmp_path) as log:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
            for step in range(1, 100):
                log.scalars(step, {"loss": 1.0}, "train")

    try:
        with pytest.raises(OutputError, match=rf"{tmp_path}: logs cannot be written \(File too large\)"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capsys.readouterr().err == ""
    assert threading.excepthook is hook


def test_a_missing_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "gone")
    with pytest.raises(OutputError, match=r"run: logs cannot be written \(No such file or directory\)"):
        log.scalars(1, {"loss": 1.0}, "train")
    with contextlib.suppress(OutputError):
        log.close()
    assert capsys.readouterr().err == ""


def test_exceptions_in_other_threads_are_still_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = list[type[BaseException]]()
    monkeypatch.setattr(threading, "excepthook", lambda args: exceptions.append(args.exc_type))
    with RunLog(tmp_path):
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    assert exceptions == [ZeroDivisionError]
