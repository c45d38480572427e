"""Large inputs: ten thousand files, an hour of audio."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from torture.assets import Assets
from torture.harness import Child, Limits, Place, Session, record, violations
from torture.mutations import RATE, speech

GROWTH = 64.0  # MB by which memory may grow between the first tenth and the end of the work
HIGH = 48000


def many(session: Session, assets: Assets, count: int = 10_000) -> None:
    """A folder of ``count`` short files; stopped by SIGTERM after one third and by SIGINT after two, and resumed."""
    with session.case("many", f"{count} files") as (place, row):
        (place.work / "in").mkdir()
        for number in range(count):
            sound = speech(np.random.default_rng([session.seed, number]), 0.05 + number % 10 / 100)
            folder = place.work / "in" / f"{number // 1000}"
            folder.mkdir(exist_ok=True)
            soundfile.write(folder / f"{number}.wav", sound, RATE, subtype="PCM_16")
        arguments = ["restore", "in", "-o", "out", "--model", str(assets.tiny), "--skip-existing"]
        before: dict[str, int] = {}
        for part, kind in ((1 / 3, signal.SIGTERM), (2 / 3, signal.SIGINT), (2.0, None)):
            child = place.start(arguments, Limits(1800, addresses=0))
            sizes = _watch(child, lambda: _count_outputs(place) >= part * count, kind)  # noqa: B023
            outcome = child.wait()
            record(row, outcome, violations(outcome, codes=(130,) if kind else (0,)))
            times = {name: os.stat(place.work / name).st_mtime_ns for name in place.files() if name.startswith("out/")}
            changed = sum(times.get(name) != old_time for name, old_time in before.items())
            row.problems += [f"{changed} finished outputs were written again"] * (changed > 0)
            growth = max(sizes[len(sizes) // 10 :]) - sizes[len(sizes) // 10]
            row.problems += [f"memory grew by {growth:.0f} MB"] * (growth > GROWTH)
            row.figures[f"after {kind.name if kind else 'the end'}"] = {
                "outputs": len(times),
                "growth, MB": round(growth, 1),
            }
            before = times
        row.problems += _compare(place, count)
        grown = [
            f"{name} {values['outputs']}, memory grown by {values['growth, MB']} MB"
            for name, values in row.figures.items()
        ]
        session.note(f"{count} files: " + "; ".join(grown))


def _count_outputs(place: Place) -> int:
    return sum(len(files) for _, _, files in os.walk(place.work / "out"))


def _watch(child: Child, condition: Callable[[], bool], kind: signal.Signals | None, pause: float = 0.2) -> list[float]:
    """Resident memory in MB over the life of a child; the signal ``kind`` is sent when the condition holds."""
    sizes, sent = [], False
    while child.poll() is None:
        sizes.append(child.resident())
        if kind and not sent and condition():
            child.send(kind)
            sent = True
        time.sleep(pause)
    return [size for size in sizes if size] or [0.0]


def _compare(place: Place, count: int) -> list[str]:
    problems = []
    inputs_found = sorted(path.relative_to(place.work / "in") for path in (place.work / "in").rglob("*.wav"))
    output = sorted(path.relative_to(place.work / "out") for path in (place.work / "out").rglob("*") if path.is_file())
    if inputs_found != output or len(output) != count:
        problems.append(f"{len(output)} outputs, wanted {count}")
    for name in output:
        inputs, out = (soundfile.info(place.work / side / name) for side in ("in", "out"))
        if (inputs.frames, out.samplerate) != (out.frames, RATE):
            problems.append(f"{name}: {out.frames} samples at {out.samplerate} Hz")
    return problems[:10]


def long(session: Session, assets: Assets, minutes: float = 60.0, stream_minutes: float = 10.0) -> None:
    """Restore an hour of stereo at 48 kHz with the shipped default, and stream PCM, with bounded memory."""
    with session.case("file", f"{minutes:g} minutes of stereo, restore") as (place, row):
        _long_file(place.work / "long.flac", minutes)
        child = place.start(["restore", "long.flac", "-o", "out.flac", "--model", "default"], Limits(5400, addresses=0))
        sizes = _watch(child, lambda: False, None, pause=1.0)
        outcome = child.wait()
        record(row, outcome, violations(outcome, codes=(0,)))
        if not outcome.code:
            out = soundfile.info(place.work / "out.flac")
            expected = (round(minutes * 60 * RATE), RATE, 2)
            row.problems += ["out.flac is of another length or rate"] * (
                (out.frames, out.samplerate, out.channels) != expected
            )
        _report(session, row, sizes, outcome.seconds, minutes)
    with session.case("stream", f"{stream_minutes:g} minutes of PCM, stream") as (place, row):
        seconds, samples, sizes = _streamed(place, row, stream_minutes)
        row.problems += [f"{samples} samples came out"] * (samples != round(stream_minutes * 60) * RATE)
        _report(session, row, sizes, seconds, stream_minutes)


def _report(session: Session, row: Any, sizes: list[float], seconds: float, minutes: float) -> None:
    early_size = sizes[len(sizes) // 10]
    growth = max(sizes[len(sizes) // 10 :]) - early_size
    row.figures = {"MB after a tenth": round(early_size), "most MB": round(max(sizes)), "seconds": round(seconds)}
    row.problems += [f"memory grew by {growth:.0f} MB"] * (growth > 4 * GROWTH)
    pace = f"{seconds:.0f} s ({seconds / 60 / minutes:.3f} x real time)"
    session.note(f"{row.kind}: {pace}, {early_size:.0f} MB after a tenth of it, {max(sizes):.0f} at most")


def _long_file(path: Path, minutes: float) -> None:
    block = speech(np.random.default_rng(0), 10.0, HIGH, channels=2)
    with soundfile.SoundFile(path, "w", HIGH, 2, "PCM_16") as file:
        for _ in range(round(minutes * 6)):
            file.write(block)


def _streamed(place: Place, row: Any, minutes: float) -> tuple[float, int, list[float]]:
    """Stream raw PCM through ``twostage stream``, a second at a time."""
    (take, give), (read_end, write_end) = os.pipe(), os.pipe()
    child = place.start(["stream"], Limits(5400, addresses=0), stdin=take, stdout=write_end)
    os.close(take)
    os.close(write_end)
    os.set_blocking(read_end, False)
    second = (speech(np.random.default_rng(0), 1.0) * 32767).astype("<i2").tobytes()
    samples, sizes = 0, list[float]()
    for _ in range(round(minutes * 60)):
        unsent = memoryview(second)
        while unsent:
            os.set_blocking(give, False)
            try:
                unsent = unsent[os.write(give, unsent) :]
            except BlockingIOError:
                time.sleep(0.002)
            samples += _read_available(read_end)
        sizes.append(child.resident())
    os.close(give)
    while child.poll() is None:
        samples += _read_available(read_end)
        time.sleep(0.002)
    samples += _read_available(read_end)
    os.close(read_end)
    outcome = child.wait()
    record(row, outcome, violations(outcome, codes=(0,)))
    return outcome.seconds, samples // 2, sizes


def _read_available(end: int) -> int:
    """Read all available bytes; return their number."""
    total = 0
    while True:
        try:
            data = os.read(end, 1 << 16)
        except BlockingIOError:
            return total
        if not data:
            return total
        total += len(data)
