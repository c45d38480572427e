"""Which file is restored into which: inputs as the user named them -> a list of jobs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twostage.audio.sound_files import FOREIGN, FORMATS, find
from twostage.utils.errors import AudioError, ConfigError


@dataclass(frozen=True)
class Job:
    """One file's way; ``error`` says, without naming ``source``, why there is none."""

    source: Path
    target: Path
    plot: Path | None = None
    error: str | None = None


def plan(inputs: Sequence[str], out: str, *, suffix: str | None = None, plot: bool = False) -> list[Job]:
    """Jobs for files, folders (their tree is kept) and patterns; ``out`` is a file for one file, else a folder.

    ``suffix`` ("flac") is the format in a folder; without it a file keeps its own where that can be written, else WAV.
    An input that leads nowhere, and a second input for the same output, become jobs with an ``error``.
    """
    if _is_file_name(out):
        return [_single(inputs, Path(out), suffix, plot)]
    jobs: list[Job] = []
    for name in inputs:
        try:
            found = find([name])
        except AudioError as error:
            jobs.append(Job(Path(name), Path(out), error=error.reason))
            continue
        kept = [(file, below) for file, below in found if not _written_before(file, name, out)]
        jobs += [Job(file, Path(out) / renamed(below, suffix)) for file, below in kept]
    return _with_plots(_distinct(jobs), plot)


def _is_file_name(out: str) -> bool:
    ending = Path(out).suffix.lower().lstrip(".")
    if ending in FOREIGN and not Path(out).is_dir():
        raise ConfigError(f"cannot write .{ending} files; the formats are {', '.join(FORMATS)}", subject=out)
    return ending in FORMATS and not Path(out).is_dir() and not out.endswith(("/", "\\"))


def _single(inputs: Sequence[str], out: Path, suffix: str | None, plot: bool) -> Job:
    if len(inputs) > 1 or Path(inputs[0]).is_dir():
        raise ConfigError("is the name of a sound file, name a folder for more than one input", subject=out)
    if suffix and FORMATS[suffix] != FORMATS[out.suffix.lower().lstrip(".")]:
        raise ConfigError(f"its name says {out.suffix}, --format says {suffix}", subject=out)
    try:
        found = find(inputs)
    except AudioError as error:
        return Job(Path(inputs[0]), out, error=error.reason)
    if len(found) > 1:
        raise ConfigError(
            f"is the name of a sound file, but {inputs[0]} names {len(found)}; name a folder", subject=out
        )
    return Job(found[0][0], out, out.with_suffix(".png") if plot else None)


def _written_before(file: Path, name: str, out: str) -> bool:
    """Whether ``file`` lies in an output folder inside the input folder: a result of an earlier run."""
    folder, place = _real(Path(name)), _real(Path(out))
    return folder != place and folder in place.parents and place in _real(file).parents


def _real(path: Path) -> Path:
    """Without symbolic links; Path.resolve would raise RuntimeError where they lead in a circle."""
    return Path(os.path.realpath(path))


def renamed(path: Path, suffix: str | None = None) -> Path:
    """The name of a restored file: with ``suffix``, else its own where that can be written, else WAV."""
    own = path.suffix.lower().lstrip(".")
    if suffix is None and own in FORMATS:
        return path
    stem = path.stem if own in (*FORMATS, *FOREIGN) else path.name  # "take.2" has no suffix to replace
    return path.with_name(f"{stem}.{suffix or 'wav'}")


def _distinct(jobs: Sequence[Job]) -> list[Job]:
    """Jobs without repetition; of two that would write the same file, the second gets an error."""
    writers: dict[Path, Path] = {}
    kept: dict[Job, None] = {}  # in the order of their coming
    for job in jobs:
        first = job.source if job.error else writers.setdefault(_real(job.target), job.source)
        if first != job.source and _real(first) == _real(job.source):
            continue
        if first != job.source:
            job = Job(job.source, job.target, error=f"would write {job.target}, which {first} writes")
        kept[job] = None
    return list(kept)


def _with_plots(jobs: Sequence[Job], plot: bool) -> list[Job]:
    """Name a picture beside each output: a.png for a.wav, and a.flac.png where that name is taken."""
    taken: set[Path] = set()
    planned = []
    for job in jobs:
        picture = job.target.with_suffix(".png")
        if picture in taken:
            picture = job.target.with_name(job.target.name + ".png")
        taken.add(picture)
        planned.append(Job(job.source, job.target, picture if plot and not job.error else None, job.error))
    return planned
