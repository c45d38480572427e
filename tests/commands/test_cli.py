"""Tests of the command line itself: every error is one line with an exit code, and signals end every command."""

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
    """command(run) -> the exit code of the command line with a command that calls ``run``."""

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
def test_errors_of_the_operating_system_are_reported_in_one_line(
    command: Callable[[Run], int], capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    assert command(raising(error)) == 1
    assert capsys.readouterr().err == f"{line}\n"


def test_an_out_of_memory_error_of_torch_is_reported_in_one_line(
    command: Callable[[Run], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(lambda: len(torch.empty(2**50))) == 1
    assert capsys.readouterr().err.startswith("twostage: error: out of memory (")


def test_unexpected_exceptions_are_not_caught(command: Callable[[Run], int]) -> None:
    for error in (RuntimeError("x"), ValueError("x"), KeyError("x")):
        with pytest.raises(type(error)):
            command(raising(error))


def test_sigterm_ends_a_command_like_ctrl_c(command: Callable[[Run], int], capsys: pytest.CaptureFixture[str]) -> None:
    handler_before, cleanups = signal.getsignal(signal.SIGTERM), list[str]()

    def run() -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(10)
        finally:
            cleanups.append("done")
        return 0

    assert command(run) == 130
    assert capsys.readouterr().err == "twostage: interrupted\n"
    assert cleanups == ["done"]
    assert signal.getsignal(signal.SIGTERM) is handler_before


# a command that reads stdin and writes a line to stdout and one to stderr, without the seconds that a real one takes
READS_AND_PRINTS = """
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


def run_in_shell(redirections: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = ["bash", "-c", f'exec "$0" -c "$1" {redirections}', sys.executable, READS_AND_PRINTS]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(code, capture_output=True, text=True, env=variables, timeout=60)


@pytest.mark.parametrize("closed", ["<&-", "</dev/null >&-", "</dev/null 2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_not_stop_a_command(closed: str) -> None:
    process = run_in_shell(closed)
    assert process.returncode == 0
    assert process.stderr == ("" if "2>" in closed else "twostage: warning: none\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_output_device_is_reported_in_one_line() -> None:
    process = run_in_shell("</dev/null >/dev/full")
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.splitlines()[-1] == "twostage: error: No space left on device"
    assert "Exception" not in process.stderr
    assert run_in_shell("</dev/null >/dev/full 2>/dev/full").returncode == 1


def test_characters_that_the_terminal_cannot_show_are_escaped() -> None:
    process = run_in_shell("</dev/null", PYTHONIOENCODING="latin-1:strict")
    assert process.returncode == 0
    assert process.stdout == "read 0 \\udcff\\uac00\n"


def test_further_signals_while_the_interruption_is_reported_change_nothing(
    command: Callable[[Run], int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signals arrive while the message is printed: a process that is stopped often receives more than one."""
    original_print = print

    def print_between_signals(*words: object, **options: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        original_print(*words, **options)  # type: ignore[call-overload]

    def run() -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr("builtins.print", print_between_signals)
    assert command(run) == 130
    monkeypatch.undo()
    assert capsys.readouterr().err == "twostage: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_after_the_grace_period_interrupts_again(
    command: Callable[[Run], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "PATIENCE", 0.05)
    interruptions = list[int]()

    def run() -> int:
        for _ in range(2):
            try:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt:
                signal.raise_signal(signal.SIGTERM)
                interruptions.append(1)
            time.sleep(0.1)
        return len(interruptions)

    assert command(run) == 2


# a program that prints a line when its command has ended and takes a second to exit
EXITS_SLOWLY = """
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
@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["stop"], 130)])
def test_a_signal_while_the_process_exits_changes_nothing(
    kind: signal.Signals, arguments: list[str], code: int
) -> None:
    command = [sys.executable, "-c", EXITS_SLOWLY, "compare", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **streams) as process:  # type: ignore
        assert process.stdout is not None
        assert process.stdout.readline() == "ended\n"
        process.send_signal(kind)
        assert process.communicate(timeout=60)[1] == ("twostage: interrupted\n" if code else "")
    assert process.returncode == code
