"""Runs commands under observation: each in a fork of this process, in a separate folder, with limits and a timer.

A fork has already imported everything, so that a command does not take the seconds of its imports. Its exit code,
output, memory and files are recorded.
"""

import atexit
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from twostage import cli

MEMORY = 2048.0  # MB of resident memory that no command may exceed
ADDRESSES = 6 * 2**30  # bytes of address space beyond that of the fork, which protects the machine
SECONDS = 60.0  # a command that takes longer counts as hung
LONGEST = 1050  # maximal number of characters of a line of output
NOBODY = 65534
WRONG_OUTPUT = 99  # exit code of a command that succeeded with wrong output
OURS = "twostage: "
# output that a user should never see on stderr
LIBRARY = re.compile(
    r"^(\[src/libmpg123|Warning: Xing stream).*\n?", re.MULTILINE
)  # messages of libsndfile's MP3 decoder
FOREIGN = re.compile(
    r"Traceback|Exception ignored|Error in sys|^\S*Warning:|\.py:\d+: \w*Warning|terminate called|what\(\):|"
    r"^\w+(\.\w+)*(Error|Exception|Interrupt)\b|Segmentation|core dumped|onnxruntime:",
    re.MULTILINE,
)
LEFTOVER = re.compile(r"\.part$|^tmp[a-z0-9_]{8}$")  # names of temporary files of twostage and of Python
Call = Callable[[], int | None]


class Outcome(NamedTuple):
    """The result of a command: ``code`` is negative if a signal ended it."""

    code: int
    seconds: float
    megabytes: float
    out: str
    err: str
    hung: bool = False

    @property
    def last(self) -> str:
        lines = [line for line in self.err.splitlines() if line.strip()]
        return lines[-1] if lines else ""


@dataclass
class Row:
    """One case of a table. ``problems`` are violations of the contract."""

    name: str
    kind: str
    code: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0
    message: str = ""
    problems: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """``file_size`` in bytes simulates a full disk; ``user`` is a user id to run as; ``addresses`` of 0 is no limit."""

    seconds: float = SECONDS
    addresses: int = ADDRESSES
    file_size: int = 0
    user: int = 0


class Place:
    """The folder of one case: inputs and outputs of commands in ``work``, streams and temporary files beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work, self.temporary = folder, folder / "work", folder / "tmp"
        for output in (self.work, self.temporary):
            output.mkdir(parents=True, exist_ok=True)
        self.commands: list[Sequence[str]] = []

    def put(self, name: str, content: bytes) -> Path:
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def files(self) -> set[str]:
        return {str(path.relative_to(self.work)) for path in self.work.rglob("*") if not path.is_dir()}

    def leftovers(self) -> list[str]:
        """Files that a command has started and not finished."""
        partial = [path for path in self.work.rglob("*") if LEFTOVER.search(path.name)]
        return sorted(str(path.relative_to(self.folder)) for path in [*partial, *self.temporary.rglob("*")])

    def start(
        self,
        call: Sequence[str] | Call,
        limits: Limits | None = None,
        *,
        then: Call | None = None,
        **streams: IO[Any] | int,
    ) -> "Child":
        """Start a command of twostage, given by its arguments, or a function.

        ``then`` checks the outputs of a command that succeeded; it returns 1 if they are wrong.
        """
        if not callable(call):
            arguments = list(call)
            self.commands.append(arguments)
            return Child(
                self,
                lambda: _main(arguments) or int(bool(then and then()) * WRONG_OUTPUT),
                limits or Limits(),
                **streams,
            )
        return Child(self, call, limits or Limits(), **streams)

    def run(
        self,
        call: Sequence[str] | Call,
        limits: Limits | None = None,
        *,
        then: Call | None = None,
        **streams: IO[Any] | int,
    ) -> Outcome:
        return self.start(call, limits, then=then, **streams).wait()


class Child:
    """A fork that runs a command. ``stdin`` and ``stdout`` may be open files or pipes."""

    _number = 0

    def __init__(
        self, place: Place, call: Call, limits: Limits, *, stdin: Any = None, stdout: Any = None, stderr: Any = None
    ) -> None:
        Child._number += 1
        self._output_paths = [place.folder / f"{Child._number}.{name}" for name in ("stdout", "stderr")]
        self._limits, self._started = limits, time.monotonic()
        self._outcome: Outcome | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self._pipe = (
            os.pipe() if limits.file_size else None
        )  # the limit of file sizes would apply to a file with its output, too
        with (
            open(stdin if stdin is not None else os.devnull, "rb", closefd=stdin is None) as inputs,
            open(self._output_paths[0], "wb") as out,
            open(self._output_paths[1], "wb") as err,
        ):
            ends = (inputs.fileno(), _number(stdout, out), self._pipe[1] if self._pipe else _number(stderr, err))
            self.pid = os.fork()
            if not self.pid:
                _become(place, call, limits, ends)
        if self._pipe:
            os.close(self._pipe[1])

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def send(self, number: int, *, group: bool = False) -> None:
        """Send a signal if it still runs; with ``group`` also to its children, as a terminal does."""
        if self.poll() is None:
            (os.killpg if group else os.kill)(self.pid, number)

    def stop(self) -> None:
        """Send SIGSTOP and wait until it stands still, or has ended."""
        self.send(signal.SIGSTOP)
        while self.poll() is None and self._state() not in "TtZ":
            time.sleep(0.0001)

    def _state(self) -> str:
        """The letter of its state in /proc; Z if it is not there."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "Z"

    def poll(self) -> Outcome | None:
        """The outcome, or None as long as it runs."""
        if self._outcome is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self._end(status, usage, hung=False)
            elif self.elapsed > self._limits.seconds:
                self._kill_all()
                _, status, usage = os.wait4(self.pid, 0)
                self._end(status, usage, hung=True)
        return self._outcome

    def wait(self) -> Outcome:
        while (outcome := self.poll()) is None:
            time.sleep(0.002)
        return outcome

    def resident(self) -> float:
        """Its current resident memory in MB."""
        try:
            text = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return 0.0
        match = re.search(r"VmRSS:\s+(\d+)", text)
        return int(match[1]) / 1024 if match else 0.0

    def _kill_all(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(self.pid, signal.SIGKILL)

    def _end(self, status: int, usage: resource.struct_rusage, hung: bool) -> None:
        out, err = (path.read_bytes().decode(errors="replace") for path in self._output_paths)
        if self._pipe:
            with open(self._pipe[0], "rb") as reader:
                err = reader.read().decode(errors="replace")
        seconds, code = self.elapsed, os.waitstatus_to_exitcode(status)
        self._outcome = Outcome(code, seconds, usage.ru_maxrss / 1024, out, err, hung)


def _main(arguments: Sequence[str]) -> int:
    """Run like the program ``twostage``, which takes its arguments from the command line."""
    sys.argv = ["twostage", *arguments]
    return cli.main()


def _number(inputs: Any, default: IO[Any]) -> int:
    if inputs is None:
        return default.fileno()
    return inputs if isinstance(inputs, int) else inputs.fileno()


def _become(place: Place, call: Call, limits: Limits, ends: Sequence[int]) -> None:
    """Run the call in a fork, and end it. -1 in ``ends`` is a closed stream."""
    code = 1
    try:
        os.setpgid(0, 0)
        _die_with_parent()
        os.chdir(place.work)
        for number, (end, name) in enumerate(zip(ends, ("stdin", "stdout", "stderr"), strict=True)):
            if end >= 0:
                os.dup2(end, number)
                kind = {"mode": "w" if number else "r", "buffering": 1 if number == 2 else -1}
                stream = open(number, closefd=False, **kind)  # type: ignore[call-overload]  # noqa: SIM115
            else:
                os.close(number)
                stream = None  # like Python at its start
            setattr(sys, name, stream)
        os.closerange(3, 4096)  # including the other ends of its pipes, which would never be closed
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ["TMPDIR"] = tempfile.tempdir = str(place.temporary)
        if limits.addresses:
            own = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (own + limits.addresses,) * 2)
        if limits.file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_size,) * 2)
        if limits.user:
            os.setgroups([])
            os.setgid(limits.user)
            os.setuid(limits.user)
        try:
            code = call() or 0
        finally:  # like the end of an interpreter, which a thread may block
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
    except SystemExit as exit_error:
        code = exit_error.code if isinstance(exit_error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except OSError:
                code = code or 120  # like an interpreter that cannot flush
        os._exit(code)


def _die_with_parent() -> None:
    """Ask Linux to kill this fork when its parent ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def violations(outcome: Outcome, *, codes: Iterable[int] = (0, 1), lines: int = 1, memory: float = MEMORY) -> list[str]:
    """Violations of the contract. ``lines``: maximal number of errors that a failure may report; ``memory``: MB."""
    problems = []
    if outcome.code == WRONG_OUTPUT:
        return [outcome.last]
    outcome = outcome._replace(err=LIBRARY.sub("", outcome.err))
    if outcome.hung:
        problems.append(f"hung, stopped after {outcome.seconds:.0f} s")
    elif outcome.code < 0 and outcome.code not in codes:
        problems.append(f"died of {signal.Signals(-outcome.code).name}")
    elif outcome.code not in codes:
        problems.append(f"exit code {outcome.code}")
    if match := FOREIGN.search(outcome.err):
        line = outcome.err[match.start() :].partition("\n")[0]
        last = f" ... {outcome.last}" if line.startswith("Traceback") else ""
        problems.append(f"stderr: {(line + last)[:300]}")
    if outcome.megabytes > memory:
        problems.append(f"{outcome.megabytes:.0f} MB of memory")
    error_lines = [line for line in outcome.err.splitlines() if line.startswith(OURS) and ": warning: " not in line]
    if outcome.code == 1 and not 1 <= len(error_lines) <= lines:
        problems.append(f"{len(error_lines)} lines that say why")
    if any(len(line) > LONGEST for line in outcome.err.splitlines()):
        problems.append(f"a line of {max(map(len, outcome.err.splitlines()))} characters")
    return problems


class Session:
    """A run of some parts: its folder, its seed, and the rows of the table so far."""

    def __init__(self, out: Path, seed: int = 0, *, quiet: bool = False) -> None:
        self.out, self.seed, self._quiet = out, seed, quiet
        self.part, self.rows = "", list[Row]()
        self._started = self._last_report = 0.0
        self.notes: list[str] = []
        out.mkdir(parents=True, exist_ok=True)

    def begin(self, part: str) -> None:
        self.part, self.rows, self.notes = part, [], []
        self._started = self._last_report = time.monotonic()
        shutil.rmtree(self.out / "work" / part, ignore_errors=True)
        shutil.rmtree(self.out / "failures" / part, ignore_errors=True)

    def place(self, name: str) -> Place:
        return Place(self.out / "work" / self.part / name)

    @contextmanager
    def case(self, name: str, kind: str) -> Iterator[tuple[Place, Row]]:
        """Yield a folder and a row; the folder is kept if the row has problems at the end of the block."""
        place, row = self.place(name), Row(name, kind)
        yield place, row
        self.settle(place, row)

    def settle(self, place: Place, row: Row) -> None:
        row.problems += [f"left {name}" for name in place.leftovers()]
        self.rows.append(row)
        if row.problems:
            kept = self.out / "failures" / self.part / row.name
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(place.temporary)
            (place.folder / "case.json").write_text(
                json.dumps({**asdict(row), "commands": [list(arguments) for arguments in place.commands]}, indent=2)
            )
            shutil.move(place.folder, kept)
            self.say(f"BROKEN {self.part} {row.name} ({row.kind}): {'; '.join(row.problems)}")
        else:
            shutil.rmtree(place.folder)
        if time.monotonic() - self._last_report > 10:
            self._last_report = time.monotonic()
            broken = sum(bool(row.problems) for row in self.rows)
            self.say(f"{self.part}: {len(self.rows)} cases, {broken} broken, {self._last_report - self._started:.0f} s")

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.say(text)

    def say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)

    def result(self) -> dict[str, Any]:
        """The results of the current part, as plain values."""
        return {
            "part": self.part,
            "seed": self.seed,
            "seconds": round(time.monotonic() - self._started, 1),
            "notes": self.notes,
            "rows": [asdict(row) for row in self.rows],
        }


def record(row: Row, outcome: Outcome, problems: Iterable[str]) -> None:
    """Record an outcome in a row."""
    row.code, row.message = outcome.code, outcome.last[:300]
    row.seconds, row.megabytes = round(row.seconds + outcome.seconds, 3), round(max(row.megabytes, outcome.megabytes))
    row.problems += problems


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """Mount a file system of this size at ``folder``; yield False if this process may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
