"""Maps the inputs of a command to a list of jobs: which file is restored to which output."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from twostage.audio.finding import MEDIA
from twostage.audio.sound_files import FORMATS, SUFFIXES, find
from twostage.utils.errors import AudioError, ConfigError

FILE_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}")


@dataclass(frozen=True)
class RestoreJob:
    """One file and its output. ``error`` is the reason why there is no output, without the name of ``source``.

    ``rivals``: earlier files that would write the same target. The job is done only if none of them was.
    """

    source: Path
    target: Path
    plot: Path | None = None
    error: str | None = None
    rivals: tuple[Path, ...] = ()

    def beaten_by(self, done: Mapping[Path, Path]) -> Path | None:
        """The rival that has written the target of this job, if one has; ``done`` maps sources to their outputs."""
        return next((rival for rival in self.rivals if done.get(rival) == self.target), None)


def plan(
    inputs: Sequence[str],
    out: str,
    *,
    suffix: str | None = None,
    plot: bool = False,
    passed_over: list[Path] | None = None,
) -> list[RestoreJob]:
    """Jobs for files, folders (whose tree is kept) and patterns; ``out`` is a file name for one file, else a folder.

    ``suffix`` ("flac") is the format in a folder; without it, a file keeps its format if that can be written, else WAV.
    An input without sound files becomes a job with an ``error``. Inputs for the same output have their predecessors as
    ``rivals``; formats that only the extra ``media`` reads come last. Other files in folders go to ``passed_over``.
    """
    if _is_file_name(out):
        return [_single(inputs, Path(out), suffix, plot)]
    jobs: list[RestoreJob] = []
    for name in inputs:
        try:
            files = find([name], passed_over=passed_over)
        except AudioError as error:
            jobs.append(RestoreJob(Path(name), Path(out), error=error.reason))
            continue
        kept = [(file, below) for file, below in files if not _written_before(file, name, out)]
        jobs += [RestoreJob(file, Path(out) / renamed(below, suffix)) for file, below in kept]
    return _with_plots(_distinct(jobs), plot)


def _is_file_name(out: str) -> bool:
    if Path(out).is_dir() or out.endswith(("/", "\\")):
        return False
    ending = Path(out).suffix
    known = ending.lower().lstrip(".") in FORMATS
    if not known and FILE_ENDING.fullmatch(ending):
        formats = ", ".join(FORMATS)
        raise ConfigError(f"cannot write {ending} files; the formats are {formats}; for a folder: {out}/", subject=out)
    return known


def _single(inputs: Sequence[str], out: Path, suffix: str | None, plot: bool) -> RestoreJob:
    if len(inputs) > 1 or Path(inputs[0]).is_dir():
        raise ConfigError("is the name of a sound file, name a folder for more than one input", subject=out)
    if suffix and FORMATS[suffix] != FORMATS[out.suffix.lower().lstrip(".")]:
        raise ConfigError(f"its name says {out.suffix}, --format says {suffix}", subject=out)
    try:
        files = find(inputs)
    except AudioError as error:
        return RestoreJob(Path(inputs[0]), out, error=error.reason)
    if len(files) > 1:
        raise ConfigError(
            f"is the name of a sound file, but {inputs[0]} names {len(files)}; name a folder", subject=out
        )
    return RestoreJob(files[0][0], out, out.with_suffix(".png") if plot else None)


def _written_before(file: Path, name: str, out: str) -> bool:
    """Whether ``file`` is in an output folder within the input folder: a result of an earlier run."""
    folder, target_folder = _real(Path(name)), _real(Path(out))
    return folder != target_folder and folder in target_folder.parents and target_folder in _real(file).parents


def _ending(path: Path) -> str:
    return path.suffix.lower().lstrip(".")


def _real(path: Path) -> Path:
    """The path without symbolic links; Path.resolve would raise RuntimeError if they lead in a circle."""
    return Path(os.path.realpath(path))


def renamed(path: Path, suffix: str | None = None) -> Path:
    """The name of a restored file: with ``suffix``, else its own suffix if that can be written, else WAV."""
    own = _ending(path)
    if suffix is None and own in FORMATS:
        return path
    stem = path.stem if own in SUFFIXES else path.name  # "take.2" has no suffix to replace
    return path.with_name(f"{stem}.{suffix or 'wav'}")


def _distinct(jobs: Sequence[RestoreJob]) -> list[RestoreJob]:
    """Jobs without repetition; those with the same output are adjacent and have their predecessors as rivals."""
    groups: dict[object, list[RestoreJob]] = {}
    for job in jobs:
        group = groups.setdefault(job.source if job.error else _real(job.target), [])
        if all(_real(rival.source) != _real(job.source) for rival in group):
            group.append(job)
    kept = []
    for group in groups.values():
        group.sort(key=lambda job: _ending(job.source) in MEDIA)  # stable: otherwise in the order of the inputs
        kept += [replace(job, rivals=tuple(rival.source for rival in group[:count])) for count, job in enumerate(group)]
    return kept


def _with_plots(jobs: Sequence[RestoreJob], plot: bool) -> list[RestoreJob]:
    """Name a plot in the folder of each output: a.png for a.wav, or a.flac.png if that name is used already."""
    pictures: dict[Path, Path] = {}
    planned = []
    for job in jobs:
        picture = job.target.with_suffix(".png")
        if pictures.setdefault(picture, job.target) != job.target:
            picture = job.target.with_name(job.target.name + ".png")
        planned.append(replace(job, plot=picture if plot and not job.error else None))
    return planned
