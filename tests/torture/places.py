"""Full disks, folders that are read-only or disappear, two processes with one folder, and signals at any moment."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from torture.assets import Assets, training
from torture.harness import NOBODY, Child, Limits, Place, Row, Session, record, small_disk, violations
from torture.kills import differences
from torture.mutations import RATE, encoded, speech

FILES = 8  # number of files in the folder that commands read
FREE = Limits(180, addresses=0)
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Writer:
    """A command that writes below ``OUT``, a placeholder in its arguments. ``resume``: options that complete its work.

    ``exact``: its outputs are the same in every run, byte by byte.
    """

    kind: str
    arguments: list[str]
    resume: tuple[str, ...] = ()
    exact: bool = False
    trains: bool = False
    lines: int = FILES + 4
    slow: bool = False

    def at(self, out: str) -> list[str]:
        return [argument.replace("OUT", out) for argument in self.arguments]


def writers(assets: Assets) -> list[Writer]:
    tiny, pairs = ["--model", str(assets.tiny)], str(assets.corpus / "pairs.csv")
    skip = ("--skip-existing",)
    commands = [
        Writer("restore", ["restore", "in", "-o", "OUT/r", *tiny], skip, exact=True),
        Writer("restore, FLAC", ["restore", "in", "-o", "OUT/r", "--format", "flac", *tiny], skip, exact=True),
        Writer("restore, Ogg", ["restore", "in", "-o", "OUT/r", "--format", "ogg", *tiny], skip),
        Writer("restore, MP3", ["restore", "in", "-o", "OUT/r", "--format", "mp3", *tiny], skip),
        Writer("restore, pictures", ["restore", "in", "-o", "OUT/r", "--plot", "--json", "OUT.json", *tiny],
               ("--overwrite",)),
        Writer("simulate", ["simulate", "in", "OUT/s", "--manifest", "OUT/m.jsonl"], ("--overwrite",)),
        Writer("stream", ["stream", "--file", "in/0.wav", "-o", "OUT/s.wav", "--json", "OUT/s.json", "--model",
                          str(assets.causal)], ("--overwrite",)),
        Writer("export", ["export", str(assets.tiny), "OUT/x.onnx"], ("--overwrite",), slow=True),
        Writer("import-hifigan", ["import-hifigan", str(assets.published / "generator"),
                                  str(assets.published / "config.json"), "OUT/v.safetensors"], ("--overwrite",)),
        Writer("manifest", ["manifest", "scan", "in", "-o", "OUT/m.jsonl", "--report", "OUT/r.json"], ("--overwrite",)),
        Writer("fit-sensor", ["fit-sensor", pairs, "-o", "OUT/s.yaml", "--plot"], ("--overwrite",)),
        Writer("evaluate", ["evaluate", "--pairs", pairs, "--model", "none", "-o", "OUT/e", "--pictures", "1"]),
    ]  # fmt: skip
    trainings = (
        Writer(stage, training(assets.corpus, stage, "OUT/run"), ("--resume",), trains=True)
        for stage in ("train-restorer", "train-vocoder")
    )
    return [*commands, *trainings]


def disk(session: Session, assets: Assets, kinds: Sequence[str] = (), rounds: int = 3) -> None:
    """Each command on a full disk, in a folder that is read-only or disappears, and two commands with one folder."""
    chosen = [writer for writer in writers(assets) if not kinds or writer.kind in kinds]
    undisturbed = {writer.kind: _undisturbed(session, writer) for writer in chosen if writer.exact or writer.trains}
    for index, writer in enumerate(chosen):
        for number in range(1 if writer.slow else rounds):
            rng = np.random.default_rng([session.seed, 4, index, number])
            _full_file_size(
                session, writer, f"full-{index:02}-{number}", undisturbed, int(rng.choice(SIZES[number % len(SIZES)]))
            )
            _full_disk(session, writer, f"disk-{index:02}-{number}", undisturbed, KILOBYTES[number % len(KILOBYTES)])
        _read_only(session, writer, f"readonly-{index:02}")
        if not writer.slow:
            _output_closed(session, writer, f"streams-{index:02}")
        for number in range(1 if writer.slow else rounds):
            rng = np.random.default_rng([session.seed, 5, index, number])
            _disappearing(session, writer, f"vanish-{index:02}-{number}", rng)
    _two_processes(session, assets, rounds)


def briefly(session: Session, assets: Assets) -> None:
    """A full disk, a read-only folder and a signal to one command of each sort."""
    for index, writer in enumerate(w for w in writers(assets) if w.kind in ("restore", "train-vocoder")):
        undisturbed = {writer.kind: _undisturbed(session, writer)}
        _full_file_size(session, writer, f"full-{index}", undisturbed, 9000)
        _read_only(session, writer, f"readonly-{index}")
        _signaled(session, writer, f"signal-{index}", undisturbed, signal.SIGTERM, np.random.default_rng(session.seed))


SIZES = ((1, 10, 44), (100, 1000, 4096), (10_000, 20_000, 40_000))  # bytes, by round
KILOBYTES = (4, 40, 120)


def _inputs(place: Place, seconds: float = 0.6) -> None:
    for number in range(FILES):
        sound = speech(np.random.default_rng(number), seconds + number / 10)
        place.put(f"in/{number}.wav", encoded(sound, RATE, "WAV", "PCM_16"))


def _undisturbed(session: Session, writer: Writer) -> Path:
    """The outputs of an undisturbed command."""
    name = f"whole-{writer.kind}".replace(" ", "-").replace(",", "")
    shutil.rmtree(session.place(name).folder)
    place = session.place(name)
    _inputs(place)
    outcome = place.run(writer.at("out"), FREE)
    if outcome.code:
        raise RuntimeError(f"{writer.kind}: {outcome.err}")
    return place.work / "out"


def _full_file_size(session: Session, writer: Writer, name: str, undisturbed: dict[str, Path], size: int) -> None:
    """Run with a limit of file sizes."""
    with session.case(name, f"full (file size): {writer.kind}") as (place, row):
        _inputs(place)
        outcome = place.run(writer.at("out"), Limits(180, file_size=size))
        record(row, outcome, violations(outcome, lines=writer.lines) + _leftovers(place))
        row.problems += _complete(place, writer, undisturbed)


def _full_disk(session: Session, writer: Writer, name: str, undisturbed: dict[str, Path], kilobytes: int) -> None:
    """Run on a full file system, and complete the work after there is space again."""
    with session.case(name, f"full (disk): {writer.kind}") as (place, row):
        _inputs(place)
        with small_disk(place.work / "out", kilobytes) as mounted:
            if mounted:
                outcome = place.run(writer.at("out"), FREE)
                record(row, outcome, violations(outcome, lines=writer.lines) + _leftovers(place))
                shutil.copytree(place.work / "out", place.work / "kept")
            else:
                row.message = "no disk could be mounted"
        if mounted:
            shutil.rmtree(place.work / "out")
            (place.work / "kept").rename(place.work / "out")
            row.problems += _complete(place, writer, undisturbed)


def _leftovers(place: Place) -> list[str]:
    return [f"left {name}" for name in place.leftovers()]


def _complete(place: Place, writer: Writer, undisturbed: dict[str, Path]) -> list[str]:
    """Complete the work without disturbance, and compare with the undisturbed outputs."""
    if writer.slow:
        return []
    outcome = place.run([*writer.at("out"), *writer.resume], FREE)
    problems = [f"afterwards: {problem}" for problem in violations(outcome, codes=(0,))]
    expected_folder, output = undisturbed.get(writer.kind), place.work / "out"
    if problems or not expected_folder:
        return problems
    if writer.trains:
        return differences(expected_folder / "run", output / "run")
    expected, actual = (
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (expected_folder, output)
    )
    return [f"{path} is not what it should be" for path in expected if actual.get(path) != expected[path]]


def _read_only(session: Session, writer: Writer, name: str) -> None:
    with session.case(name, f"read-only: {writer.kind}") as (place, row):
        _inputs(place)
        (place.work / "out").mkdir()
        place.temporary.chmod(0o777)
        (place.work / "out").chmod(0o555)
        user = NOBODY if os.geteuid() == 0 else 0  # root ignores the permissions of a folder
        outcome = place.run(writer.at("out"), Limits(180, addresses=0, user=user))
        record(row, outcome, violations(outcome, codes=(1,), lines=writer.lines) + _leftovers(place))
        row.problems += ["wrote into it"] * any((place.work / "out").iterdir())


def _output_closed(session: Session, writer: Writer, name: str) -> None:
    """Standard output on a full device, then all streams closed."""
    with session.case(name, f"streams: {writer.kind}") as (place, row):
        _inputs(place)
        with open("/dev/full", "wb") as full:
            outcome = place.run(writer.at("full"), FREE, stdout=full)
        record(row, outcome, violations(outcome, lines=writer.lines) + _leftovers(place))
        outcome = place.run(writer.at("closed"), FREE, stdout=-1, stderr=-1)
        record(row, outcome, violations(outcome, codes=(0,)) + _leftovers(place))


def _disappearing(session: Session, writer: Writer, name: str, rng: np.random.Generator) -> None:
    """The folder is deleted at a random moment after the first file is in it."""
    with session.case(name, f"vanishing: {writer.kind}") as (place, row):
        _inputs(place)
        child = place.start(writer.at("out"), FREE)
        wait, seen = rng.uniform(0, 0.3), 0.0
        while child.poll() is None and not (seen and child.elapsed > seen + wait):
            time.sleep(0.002)
            if not seen and (place.work / "out").is_dir() and any((place.work / "out").rglob("*")):
                seen = child.elapsed
        shutil.rmtree(place.work / "out", ignore_errors=True)
        outcome = child.wait()
        record(row, outcome, violations(outcome, lines=writer.lines) + _leftovers(place))


def _two_processes(session: Session, assets: Assets, rounds: int) -> None:
    """Two processes restore the same folder into the same output folder."""
    expected_folder = _undisturbed(session, writers(assets)[0])
    for option in ("", "--skip-existing", "--overwrite"):
        for number in range(rounds):
            with session.case(f"two-{option.strip('-') or 'plain'}-{number}", f"two at once {option}".strip()) as (
                place,
                row,
            ):
                _inputs(place)
                arguments = ["restore", "in", "-o", "out", "--model", str(assets.tiny), *([option] if option else [])]
                children = [place.start(arguments, FREE) for _ in range(2)]
                for child in children:
                    outcome = child.wait()
                    codes = (0,) if option else (0, 1)
                    record(row, outcome, violations(outcome, codes=codes, lines=FILES))
                expected, actual = (
                    {p.name: p.read_bytes() for p in f.rglob("*") if p.is_file()}
                    for f in (expected_folder, place.work / "out")
                )
                row.problems += ["outputs are not those of one process"] * (expected != actual) + _leftovers(place)


def signals(session: Session, assets: Assets, kinds: Sequence[str] = (), rounds: int = 4) -> None:
    """SIGINT and SIGTERM in turn to each command at a random moment, sometimes twice; then to real processes."""
    chosen = [writer for writer in writers(assets) if not kinds or writer.kind in kinds]
    undisturbed = {writer.kind: _undisturbed(session, writer) for writer in chosen if writer.exact or writer.trains}
    for index, writer in enumerate(chosen):
        for number in range(2 if writer.slow else rounds):
            rng = np.random.default_rng([session.seed, 6, index, number])
            kind = (signal.SIGINT, signal.SIGTERM)[number % 2]
            _signaled(session, writer, f"{index:02}-{number}", undisturbed, kind, rng, twice=number % 4 == 3)
    if not kinds:
        _pipe(session, assets)
        _processes(session, assets)


def _signaled(
    session: Session,
    writer: Writer,
    name: str,
    undisturbed: dict[str, Path],
    kind: signal.Signals,
    rng: np.random.Generator,
    *,
    twice: bool = False,
) -> None:
    with session.case(name, f"{kind.name}: {writer.kind}") as (place, row):
        _inputs(place)
        child = place.start(writer.at("out"), FREE)
        _wait_for_random_moment(child, place, rng)
        child.send(kind)
        if twice:
            time.sleep(rng.uniform(0, 0.02))
            child.send(kind)
        _record_end(row, place, child, writer)
        row.problems += _complete(place, writer, undisturbed)


def _wait_for_random_moment(child: Child, place: Place, rng: np.random.Generator) -> None:
    """Wait until a random moment after the first output."""
    started, wait = 0.0, rng.uniform(0, 0.5)
    while child.poll() is None and not (started and child.elapsed > started + wait):
        time.sleep(0.001)
        if not started and (child.elapsed > 0.3 or (place.work / "out").is_dir()):
            started = child.elapsed


def _record_end(row: Row, place: Place, child: Child, writer: Writer) -> None:
    outcome = child.wait()
    # before Python runs our handler, and after it has finished, SIGTERM has its default action
    codes = (0, 130, *([-signal.SIGTERM] if writer.kind == "start" else []))
    problems = violations(outcome, codes=codes, lines=writer.lines) + _leftovers(place)
    if outcome.code == 130 and outcome.last != "twostage: interrupted":
        problems.append(f"does not say that it was interrupted: {outcome.last[:100]}")
    record(row, outcome, problems)


def _pipe(session: Session, assets: Assets) -> None:
    """A stream between pipes that is stopped by a signal or by its reader."""
    for number, kind in enumerate((signal.SIGINT, signal.SIGTERM, None)):
        with session.case(f"pipe-{number}", f"{kind.name if kind else 'reader leaves'}: stream, pipe") as (place, row):
            (take, give), (read_end, write_end) = os.pipe(), os.pipe()
            child = place.start(["stream", "--model", str(assets.causal)], FREE, stdin=take, stdout=write_end)
            os.close(write_end)
            pcm = (speech(np.random.default_rng(0), 1.0) * 32767).astype("<i2").tobytes()
            os.write(give, pcm)
            received = os.read(read_end, 1 << 16)
            if kind:
                child.send(kind)
            else:
                os.close(read_end)
                os.write(give, pcm)
            outcome = child.wait()
            os.close(give)
            if kind:
                os.close(read_end)
            problems = violations(outcome, codes=(130,) if kind else (1,), lines=2 if kind else 1)
            record(row, outcome, [p for p in problems if kind or "say why" not in p])
            row.problems += ["no sound came out"] * (not received)


@contextmanager
def _real_process(place: Place, arguments: list[str]) -> Iterator[Child]:
    """A process like one that a shell starts, which imports everything itself."""

    def become() -> int:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, "-m", "twostage", *arguments], environment)

    place.commands.append(arguments)
    child = place.start(become, FREE)
    yield child
    child.wait()


def _processes(session: Session, assets: Assets) -> None:
    """Cases that need a real process: signals during imports, to process pools and to Ray."""
    tiny = ["--model", str(assets.tiny)]
    restore_command = ["restore", "in", "-o", "out", *tiny]
    for number in range(6):
        rng = np.random.default_rng([session.seed, 7, number])
        kind = (signal.SIGINT, signal.SIGTERM)[number % 2]
        with session.case(f"start-{number}", f"{kind.name}: a process that starts") as (place, row):
            _inputs(place)
            with _real_process(place, restore_command) as child:
                _sleep(child, rng.uniform(0.4, 4))
                child.send(kind)
            _record_end(row, place, child, Writer("start", []))
    pairs = str(assets.corpus / "pairs.csv")
    evaluate_command = ["evaluate", "--pairs", pairs, *tiny, "-o", "out", "--jobs", "2", "--pictures", "0"]
    for number, (kind, group) in enumerate(((signal.SIGINT, True), (signal.SIGTERM, False))):
        with session.case(f"pool-{number}", f"{kind.name}: evaluate --jobs 2") as (place, row):
            with _real_process(place, evaluate_command) as child:
                _until(child, lambda: _children(child.pid) >= 2, 60)
                _sleep(child, 0.5)
                child.send(kind, group=group)
            _record_end(row, place, child, Writer("evaluate", []))
    for number, (kind, group) in enumerate(((signal.SIGINT, True), (signal.SIGTERM, False))):
        with session.case(f"corpus-{number}", f"{kind.name}: restore-corpus") as (place, row):
            _inputs(place, 10.0)
            place.put("in/m.csv", ("path\n" + "".join(f"{n}.wav\n" for n in range(FILES))).encode())
            arguments = ["restore-corpus", "in/m.csv", "-o", "out", "--workers", "1", *tiny]
            with _real_process(place, arguments) as child:
                _until(child, lambda: len(list((place.work / "out").rglob("*.wav"))) >= 2, 120)
                child.send(kind, group=group)
            shutil.rmtree(place.temporary / "ray", ignore_errors=True)  # Ray's own logs
            _record_end(row, place, child, Writer("restore-corpus", []))
            with _real_process(place, arguments) as child:
                pass
            shutil.rmtree(place.temporary / "ray", ignore_errors=True)
            outcome = child.wait()
            row.problems += [f"afterwards: {problem}" for problem in violations(outcome, codes=(0,))]
            output = len(list((place.work / "out").glob("*.wav")))
            row.problems += [f"{output} outputs of {FILES}"] * (output != FILES)


def _sleep(child: Child, seconds: float) -> None:
    end = child.elapsed + seconds
    _until(child, lambda: child.elapsed > end, seconds)


def _until(child: Child, condition: Callable[[], bool], seconds: float) -> None:
    end = child.elapsed + seconds
    while child.poll() is None and child.elapsed < end and not condition():
        time.sleep(0.01)


def _children(pid: int) -> int:
    try:
        return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except OSError:
        return 0
