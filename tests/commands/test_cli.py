"""Claims about the command line itself: whatever a command meets, its user reads a line and gets an exit code."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from twostage import cli
from twostage.utils import signals
from twostage.utils.errors import DataError

ROOT = Path(__file__).parents[2]
Run = Callable[[], int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], int]:
    """command(run) -> the exit code of a command that does that."""

    def main(run: Run) -> int:
        module = SimpleNamespace(HELP="", EXAMPLE="", add_arguments=lambda parser: None, run=lambda args: run())
        monkeypatch.setitem(cli.COMMANDS, "compare", module)  # type: ignore[arg-type]
        return cli.main(["compare"])

    return main


def raising(error: BaseException) -> Run:
    def run() -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("a\nb\x1b[31m.csv: no entries"), r"twostage: error: a\nb\x1b[31m.csv: no entries"),
        (OSError(28, "No space left on device"), "twostage: error: No space left on device"),
        (PermissionError(13, "Permission denied", "runs/a"), "twostage: error: runs/a: Permission denied"),
        (FileNotFoundError(2, "No such file or directory", b"a"), "twostage: error: a: No such file or directory"),
        (MemoryError(), "twostage: error: out of memory"),
        (DataError("a" * 5000), f"twostage: error: {'a' * 500} ... {'a' * 495}"),
    ],
)
def test_what_the_machine_refuses_is_a_line(
    command: Callable[[Run], int], capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    assert command(raising(error)) == 1
    assert capsys.readouterr().err == f"{line}\n"


def test_torchs_word_for_too_little_memory_is_a_line(
    command: Callable[[Run], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(lambda: len(torch.empty(2**50))) == 1
    assert capsys.readouterr().err.startswith("twostage: error: out of memory (")


def test_a_bug_is_not_hidden(command: Callable[[Run], int]) -> None:
    for error in (RuntimeError("x"), ValueError("x"), KeyError("x")):
        with pytest.raises(type(error)):
            command(raising(error))


def test_every_command_is_ended_by_sigterm_as_by_ctrl_c(
    command: Callable[[Run], int], capsys: pytest.CaptureFixture[str]
) -> None:
    before, undone = signal.getsignal(signal.SIGTERM), list[str]()

    def run() -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(10)
        finally:
            undone.append("undone")
        return 0

    assert command(run) == 130
    assert capsys.readouterr().err == "twostage: interrupted\n"
    assert undone == ["undone"]
    assert signal.getsignal(signal.SIGTERM) is before


# a command that reads its input, says a word, and writes another to stderr, without the seconds of a real one
SPEAKING = """
import sys
from types import SimpleNamespace
from twostage import cli
from twostage.commands import restore
def run(args):
    print("read", len(sys.stdin.read()), "\\udcff\\uac00")
    print("twostage: warning: none", file=sys.stderr)
    return 0
cli.COMMANDS["compare"] = SimpleNamespace(HELP="", EXAMPLE="", add_arguments=lambda parser: None, run=run)
sys.exit(cli.main(["compare"]))
"""


def shell(redirected: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = ["bash", "-c", f'exec "$0" -c "$1" {redirected}', sys.executable, SPEAKING]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(code, capture_output=True, text=True, env=variables, timeout=60)


@pytest.mark.parametrize("closed", ["<&-", "</dev/null >&-", "</dev/null 2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(closed: str) -> None:
    done = shell(closed)
    assert done.returncode == 0
    assert done.stderr == ("" if "2>" in closed else "twostage: warning: none\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_an_output_that_takes_nothing_is_a_line() -> None:
    done = shell("</dev/null >/dev/full")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "twostage: error: No space left on device"
    assert "Exception" not in done.stderr
    assert shell("</dev/null >/dev/full 2>/dev/full").returncode == 1


def test_names_that_the_terminal_has_no_letters_for() -> None:
    done = shell("</dev/null", PYTHONIOENCODING="latin-1:strict")
    assert done.returncode == 0
    assert done.stdout == "read 0 \\udcff\\uac00\n"


def test_who_asks_twice_gets_the_same_answer(
    command: Callable[[Run], int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signals while the command says that it was interrupted: who stops a process often signals it twice."""
    answer = print

    def disturbed(*words: object, **how: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        answer(*words, **how)  # type: ignore[call-overload]

    def run() -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr("builtins.print", disturbed)
    assert command(run) == 130
    monkeypatch.undo()
    assert capsys.readouterr().err == "twostage: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_asks_again_later_is_heard(command: Callable[[Run], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "PATIENCE", 0.05)
    arrived = list[int]()

    def run() -> int:
        for _ in range(2):
            try:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt:
                signal.raise_signal(signal.SIGTERM)
                arrived.append(1)
            time.sleep(0.1)
        return len(arrived)

    assert command(run) == 2


# a program that says when its command has ended, and takes its time with the rest
LINGERING = """
import atexit, signal, sys, time
from types import SimpleNamespace
from twostage import cli
def run(args):
    if args.settings:
        signal.raise_signal(signal.SIGTERM)
    return 0
def add(parser):
    parser.add_argument("settings", nargs="*")
atexit.register(lambda: (print("ended", flush=True), time.sleep(1)))
cli.COMMANDS["compare"] = SimpleNamespace(HELP="", EXAMPLE="", add_arguments=add, run=run)
sys.exit(cli.main())
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("words", "code"), [([], 0), (["stop"], 130)])
def test_a_signal_while_the_process_ends_changes_nothing(kind: signal.Signals, words: list[str], code: int) -> None:
    command = [sys.executable, "-c", LINGERING, "compare", *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **streams) as process:  # type: ignore
        assert process.stdout is not None
        assert process.stdout.readline() == "ended\n"
        process.send_signal(kind)
        assert process.communicate(timeout=60)[1] == ("twostage: interrupted\n" if code else "")
    assert process.returncode == code
