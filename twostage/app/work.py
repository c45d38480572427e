"""Work for a visitor: restoring files like `twostage restore`, simulating a sensor, and packing the outputs."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

from twostage.app.limits import Limits
from twostage.app.views import view
from twostage.audio.sound_files import info, resampled_length
from twostage.data.recordings import simulate_recording
from twostage.data.sensors import PRESETS
from twostage.inference.failures import Failure, one_by_one
from twostage.inference.jobs import RestoreJob, plan
from twostage.inference.rendering import ProgressCallback
from twostage.inference.restoration import RestorationReport, restore_file
from twostage.inference.restore_options import Options
from twostage.models.enhancer import Enhancer
from twostage.models.loading import load
from twostage.utils.errors import AudioError, ConfigError, called

SAMPLES = (Path(__file__).parent.parent / "samples", Path(__file__).parent.parent.parent / "samples")
Fraction = Callable[[float], None]


class Models:
    """Models by label, loaded on first use and kept in memory."""

    def __init__(self, paths: Mapping[str, Sequence[str]]) -> None:
        self._paths, self._lock = dict(paths), threading.Lock()
        self._loaded: dict[tuple[str, str], Enhancer] = {}

    @property
    def labels(self) -> list[str]:
        return list(self._paths)

    def paths(self, label: str) -> list[str]:
        """The paths for `twostage.load`."""
        return list(self._paths[label])

    def get(self, label: str, device: str) -> Enhancer:
        if label not in self._paths:
            raise ConfigError(f"no such model; there are {', '.join(self._paths)}", subject=label)
        with self._lock:
            if (label, device) not in self._loaded:
                self._loaded[label, device] = load(*self._paths[label], device=device)
            return self._loaded[label, device]


@dataclass(frozen=True)
class Outcome:
    """Views of the outputs, one line per failed file, warnings, and an archive of all outputs."""

    views: list[dict[str, Any]]
    failures: list[str]
    warnings: list[str]
    archive: Path | None = None
    seconds: float = 0.0
    elapsed: float = 0.0


def restore_all(
    model: Enhancer,
    sources: Sequence[Path],
    folder: Path,
    limits: Limits,
    options: Options,
    *,
    suffix: str | None = None,
    progress: Fraction = lambda fraction: None,
) -> Outcome:
    """Restore files into ``folder``, in the format ``suffix`` (None: their own); bad files do not stop the others."""
    limits.check_count(sources)
    reports, views, failures, seconds_so_far = list[RestorationReport](), list[dict[str, Any]](), list[str](), 0.0
    step = _fraction(sum(_seconds(source, limits) for source in sources), progress)

    def work(job: RestoreJob) -> tuple[RestorationReport, dict[str, Any]]:
        nonlocal seconds_so_far
        step(0.0)  # the callback may stop the work here
        with named_as_given(job.source, job.target):
            if job.error:
                raise AudioError(job.error, subject=job.source)
            seconds_so_far += limits.check_length(job.source, seconds_so_far)
            report_progress = bounded(job.source, limits, step)
            report = restore_file(model, job.source, job.target, options, progress=report_progress)
            sounds = {"before": job.source, "after": job.target}
            output_view = view(job.source.name, sounds, job.target.parent / "seen", top=model.sample_rate / 2)
            return report, output_view | {"file": _renamed(job.target)}

    folders = (f"{folder / str(number)}/" for number in range(len(sources)))
    jobs = [plan([str(source)], output, suffix=suffix)[0] for source, output in zip(sources, folders, strict=False)]
    for _, outcome in one_by_one(jobs, work, name=lambda job: job.source.name):
        if isinstance(outcome, Failure):
            failures.append(outcome.error)
        else:
            reports.append(outcome[0])
            views.append(outcome[1])
    files = [output_view["file"] for output_view in views]
    return Outcome(
        views,
        failures,
        [f"{Path(report.source).name}: {warning}" for report in reports for warning in report.warnings],
        _packed(files, folder / "restored.zip") if len(files) > 1 else None,
        sum(report.seconds for report in reports),
        sum(report.elapsed for report in reports),
    )


def simulate_one(source: Path, folder: Path, limits: Limits, *, sensor: str, seed: int = 0) -> Path:
    """Clean speech through the preset ``sensor``, as WAV: the file that `twostage simulate` writes."""
    if sensor not in PRESETS:
        raise ConfigError(f"sensor {sensor}: none of {', '.join(PRESETS)}")
    target = folder / f"{source.stem}-{sensor}.wav"
    with named_as_given(source, target):
        limits.check_length(source)
        simulate_recording(source, target, PRESETS[sensor], seed, source.name)
    return target


def sample(name: str) -> Path | None:
    """A sample recording of the project: samples/NAME.flac, installed or in the repository."""
    return next((home / f"{name}.flac" for home in SAMPLES if (home / f"{name}.flac").is_file()), None)


def named_as_given(*paths: Path) -> AbstractContextManager[None]:
    """Errors about these files contain only their names, without local folders."""
    return called({str(path): path.name for path in paths})


def room_for(source: Path, limits: Limits, sample_rate: int | None) -> int:
    """The maximum number of bytes for restoring ``source``, with views; at its own rate if none is given."""
    try:
        limits.check_length(source)
        file_info = info(source)
    except AudioError:
        return 0  # it will be refused
    output_frames = resampled_length(file_info.frames, file_info.sample_rate, sample_rate or file_info.sample_rate)
    return file_info.channels * (
        16 * output_frames + 8 * file_info.frames
    )  # as floats: put aside, written, packed and handed out


def bounded(source: Path, limits: Limits, step: ProgressCallback) -> ProgressCallback:
    """A callback that raises TooMuch if a file has more sound than its header states and the limits allow."""
    done = 0.0

    def add(seconds: float) -> None:
        nonlocal done
        done += seconds
        limits.check_seconds(source, done)
        step(seconds)

    return add


def _seconds(source: Path, limits: Limits) -> float:
    try:
        limits.check_length(source)
        return info(source).seconds
    except AudioError:
        return 0.0  # the error is reported when the file is restored


def _fraction(total: float, progress: Fraction) -> ProgressCallback:
    done = 0.0

    def add(seconds: float) -> None:
        nonlocal done
        done += seconds
        progress(min(1.0, done / total) if total else 1.0)

    return add


def _renamed(path: Path) -> Path:
    """Rename the file so that its name differs from the original's in a downloads folder."""
    return path.rename(path.with_name(f"{path.stem}-restored{path.suffix}"))


def _packed(files: Sequence[Path], archive: Path) -> Path:
    used_names: set[str] = set()
    with ZipFile(archive, "w", ZIP_STORED) as packed:  # sound hardly compresses
        for file in files:
            name, number = file.name, 2
            while name in used_names:
                name, number = f"{file.stem} ({number}){file.suffix}", number + 1
            used_names.add(name)
            packed.write(file, name)
    return archive
