"""Claims about a training's logs: a run that goes on keeps what it has logged, whatever became of the file."""

import contextlib
import json
import sys
import threading
from pathlib import Path

import pytest

from twostage.training import logs
from twostage.training.logs import RunLog
from twostage.utils.errors import OutputError


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]


def begun(run: Path, count: int = 3) -> None:
    log = RunLog(run)
    for step in range(1, count + 1):
        log.scalars(step, {"loss": 1.0}, "train")
    log.close()


def test_what_is_beyond_the_step_is_dropped(tmp_path: Path) -> None:
    begun(tmp_path)
    RunLog(tmp_path, 2).close()
    assert steps(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    "torn",
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
    ids=lambda torn: repr(torn[:15]),
)
def test_lines_that_a_crash_left_are_dropped(tmp_path: Path, torn: bytes) -> None:
    begun(tmp_path)
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(torn + b"\n" + torn)
    RunLog(tmp_path, 3).close()
    assert steps(tmp_path) == [1, 2, 3]


def test_a_training_killed_while_it_drops_lines_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(tmp_path)
    write = Path.write_text

    def half(self: Path, text: str, **how: str) -> int:
        write(self, text[: len(text) // 2], **how)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(logs.Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        RunLog(tmp_path, 2)
    assert steps(tmp_path) == [1, 2, 3]


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of file size")
def test_a_disk_that_is_full_is_a_line_and_no_word_of_a_thread(
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


def test_a_folder_that_is_gone_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "gone")
    with pytest.raises(OutputError, match=r"run: logs cannot be written \(No such file or directory\)"):
        log.scalars(1, {"loss": 1.0}, "train")
    with contextlib.suppress(OutputError):
        log.close()
    assert capsys.readouterr().err == ""


def test_a_bug_in_a_thread_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = list[type[BaseException]]()
    monkeypatch.setattr(threading, "excepthook", lambda args: answer.append(args.exc_type))
    with RunLog(tmp_path):
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    assert answer == [ZeroDivisionError]
