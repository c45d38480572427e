"""Commands run under watch: each in a fork of this process, in a folder of its own, with limits and a stopwatch.

A fork has imported everything already, so a command costs what it does and not the seconds of its imports. What it
leaves behind is looked at: how it ended, what it said, how much memory it took, and which files there are.
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

MEMORY = 2048.0  # MB of resident memory that no command may pass
ADDRESSES = 6 * 2**30  # bytes of address space beyond what the fork begins with: the machine's own protection
SECONDS = 60.0  # after which a command counts as hung
LONGEST = 1050  # characters of a line that is to be read
NOBODY = 65534
UNLIKE = 99  # exit code of a command that went through and made what it should not
OURS = "twostage: "
# what a user should never see on stderr
LIBRARY = re.compile(
    r"^(\[src/libmpg123|Warning: Xing stream).*\n?", re.MULTILINE
)  # what libsndfile's decoder of MP3 says
FOREIGN = re.compile(
    r"Traceback|Exception ignored|Error in sys|^\S*Warning:|\.py:\d+: \w*Warning|terminate called|what\(\):|"
    r"^\w+(\.\w+)*(Error|Exception|Interrupt)\b|Segmentation|core dumped|onnxruntime:",
    re.MULTILINE,
)
LITTER = re.compile(r"\.part$|^tmp[a-z0-9_]{8}$")  # names of twostage's and of Python's temporary files
Call = Callable[[], int | None]


class Outcome(NamedTuple):
    """How a command ended: ``code`` is negative if a signal ended it."""

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
    """One case of a table. ``problems`` are what broke the contract, none if it was kept."""

    name: str
    kind: str
    code: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0
    said: str = ""
    problems: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """``file_size`` in bytes is a disk that is full; ``user`` another user; ``addresses`` 0 is no limit."""

    seconds: float = SECONDS
    addresses: int = ADDRESSES
    file_size: int = 0
    user: int = 0


class Place:
    """The folder of one case: what a command is given and makes in ``work``, its streams and temporary files beside."""

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

    def litter(self) -> list[str]:
        """Files that a command has begun and not finished."""
        begun = [path for path in self.work.rglob("*") if LITTER.search(path.name)]
        return sorted(str(path.relative_to(self.folder)) for path in [*begun, *self.temporary.rglob("*")])

    def start(
        self,
        call: Sequence[str] | Call,
        limits: Limits | None = None,
        *,
        then: Call | None = None,
        **streams: IO[Any] | int,
    ) -> "Child":
        """Begin a command of twostage, given as its words, or a function.

        ``then``: what looks at the outputs of a command that went through; what it returns is told by the exit code.
        """
        if not callable(call):
            words = list(call)
            self.commands.append(words)
            return Child(
                self, lambda: _main(words) or int(bool(then and then()) * UNLIKE), limits or Limits(), **streams
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
    """A fork that runs a command. ``stdin``, ``stdout`` may be open files, pipes among them."""

    _number = 0

    def __init__(
        self, place: Place, call: Call, limits: Limits, *, stdin: Any = None, stdout: Any = None, stderr: Any = None
    ) -> None:
        Child._number += 1
        self._said = [place.folder / f"{Child._number}.{name}" for name in ("stdout", "stderr")]
        self._limits, self._begun = limits, time.monotonic()
        self._outcome: Outcome | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self._pipe = os.pipe() if limits.file_size else None  # a file could not take what it says either
        with (
            open(stdin if stdin is not None else os.devnull, "rb", closefd=stdin is None) as inputs,
            open(self._said[0], "wb") as out,
            open(self._said[1], "wb") as err,
        ):
            ends = (inputs.fileno(), _number(stdout, out), self._pipe[1] if self._pipe else _number(stderr, err))
            self.pid = os.fork()
            if not self.pid:
                _become(place, call, limits, ends)
        if self._pipe:
            os.close(self._pipe[1])

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._begun

    def send(self, number: int, *, group: bool = False) -> None:
        """A signal, if it runs still; to its own children too, as a terminal does."""
        if self.poll() is None:
            (os.killpg if group else os.kill)(self.pid, number)

    def poll(self) -> Outcome | None:
        """What became of it, None as long as it runs."""
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
        """MB of memory right now."""
        try:
            text = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return 0.0
        actual = re.search(r"VmRSS:\s+(\d+)", text)
        return int(actual[1]) / 1024 if actual else 0.0

    def _kill_all(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(self.pid, signal.SIGKILL)

    def _end(self, status: int, usage: resource.struct_rusage, hung: bool) -> None:
        out, err = (path.read_bytes().decode(errors="replace") for path in self._said)
        if self._pipe:
            with open(self._pipe[0], "rb") as said:
                err = said.read().decode(errors="replace")
        seconds, code = self.elapsed, os.waitstatus_to_exitcode(status)
        self._outcome = Outcome(code, seconds, usage.ru_maxrss / 1024, out, err, hung)


def _main(words: Sequence[str]) -> int:
    """As the program ``twostage``, which takes its words from the command line."""
    sys.argv = ["twostage", *words]
    return cli.main()


def _number(inputs: Any, default: IO[Any]) -> int:
    if inputs is None:
        return default.fileno()
    return inputs if isinstance(inputs, int) else inputs.fileno()


def _become(place: Place, call: Call, limits: Limits, ends: Sequence[int]) -> None:
    """The rest of a fork's life. -1 among ``ends`` is a stream that is closed."""
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
                stream = None  # as Python starts with it
            setattr(sys, name, stream)
        os.closerange(3, 4096)  # other ends of its own pipes among them: they would never end
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
        finally:  # as an interpreter does at its end: a thread may hang it
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except OSError:
                code = code or 120  # as an interpreter that cannot flush
        os._exit(code)


def _die_with_parent() -> None:
    """Linux alone: no fork outlives a torture that is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def complaints(outcome: Outcome, *, codes: Iterable[int] = (0, 1), lines: int = 1, memory: float = MEMORY) -> list[str]:
    """What about an outcome breaks the contract. ``lines``: errors that a failure may name, at most; ``memory``: MB."""
    actual = []
    if outcome.code == UNLIKE:
        return [outcome.last]
    outcome = outcome._replace(err=LIBRARY.sub("", outcome.err))
    if outcome.hung:
        actual.append(f"hung, stopped after {outcome.seconds:.0f} s")
    elif outcome.code < 0 and outcome.code not in codes:
        actual.append(f"died of {signal.Signals(-outcome.code).name}")
    elif outcome.code not in codes:
        actual.append(f"exit code {outcome.code}")
    if match := FOREIGN.search(outcome.err):
        line = outcome.err[match.start() :].partition("\n")[0]
        last = f" ... {outcome.last}" if line.startswith("Traceback") else ""
        actual.append(f"stderr: {(line + last)[:300]}")
    if outcome.megabytes > memory:
        actual.append(f"{outcome.megabytes:.0f} MB of memory")
    said = [line for line in outcome.err.splitlines() if line.startswith(OURS) and ": warning: " not in line]
    if outcome.code == 1 and not 1 <= len(said) <= lines:
        actual.append(f"{len(said)} lines that say why")
    if any(len(line) > LONGEST for line in outcome.err.splitlines()):
        actual.append(f"a line of {max(map(len, outcome.err.splitlines()))} characters")
    return actual


class Session:
    """A run of some parts: where its files go, what is drawn from, and the table so far."""

    def __init__(self, out: Path, seed: int = 0, *, quiet: bool = False) -> None:
        self.out, self.seed, self._quiet = out, seed, quiet
        self.part, self.rows = "", list[Row]()
        self._begun = self._said = 0.0
        self.notes: list[str] = []
        out.mkdir(parents=True, exist_ok=True)

    def begin(self, part: str) -> None:
        self.part, self.rows, self.notes = part, [], []
        self._begun = self._said = time.monotonic()
        shutil.rmtree(self.out / "work" / part, ignore_errors=True)
        shutil.rmtree(self.out / "failures" / part, ignore_errors=True)

    def place(self, name: str) -> Place:
        return Place(self.out / "work" / self.part / name)

    @contextmanager
    def case(self, name: str, kind: str) -> Iterator[tuple[Place, Row]]:
        """A folder and a row; the folder is kept if the row has problems when the block ends."""
        place, row = self.place(name), Row(name, kind)
        yield place, row
        self.settle(place, row)

    def settle(self, place: Place, row: Row) -> None:
        row.problems += [f"left {name}" for name in place.litter()]
        self.rows.append(row)
        if row.problems:
            kept = self.out / "failures" / self.part / row.name
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(place.temporary)
            (place.folder / "case.json").write_text(
                json.dumps({**asdict(row), "commands": [list(words) for words in place.commands]}, indent=2)
            )
            shutil.move(place.folder, kept)
            self.say(f"BROKEN {self.part} {row.name} ({row.kind}): {'; '.join(row.problems)}")
        else:
            shutil.rmtree(place.folder)
        if time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            broken = sum(bool(row.problems) for row in self.rows)
            self.say(f"{self.part}: {len(self.rows)} cases, {broken} broken, {self._said - self._begun:.0f} s")

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.say(text)

    def say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)

    def result(self) -> dict[str, Any]:
        """Of the part that was begun last, as plain values."""
        return {
            "part": self.part,
            "seed": self.seed,
            "seconds": round(time.monotonic() - self._begun, 1),
            "notes": self.notes,
            "rows": [asdict(row) for row in self.rows],
        }


def noted(row: Row, outcome: Outcome, problems: Iterable[str]) -> None:
    """Put an outcome into a row."""
    row.code, row.said = outcome.code, outcome.last[:300]
    row.seconds, row.megabytes = round(row.seconds + outcome.seconds, 3), round(max(row.megabytes, outcome.megabytes))
    row.problems += problems


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """A file system of so many kB at ``folder``; False where this process may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
