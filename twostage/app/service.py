"""The actions of the page: from requests to messages and contents of the player. It does not depend on gradio."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Protocol

from twostage.app.limits import Limits
from twostage.app.private_folder import private_folder
from twostage.app.results import ResultFolders
from twostage.app.storage import Storage
from twostage.app.views import view
from twostage.app.work import Models, Outcome, restore_all, room_for, sample, simulate_one
from twostage.app.work_queue import WorkQueue
from twostage.audio.sound_files import info
from twostage.inference.failures import FAILURES, explain
from twostage.inference.restore_options import Options
from twostage.utils.errors import Cancelled, ConfigError, TwoStageError

logger = logging.getLogger(__name__)
Check = Callable[[], None]  # raises Cancelled when the client has disconnected


class PageProgress(Protocol):
    """Receives the completed fraction of the work and its description."""

    def __call__(self, part: float, *, desc: str) -> Any: ...


@dataclass(frozen=True)
class RestoreRequest:
    """The settings of a visitor's request: the label of a model, and the settings of `twostage restore`."""

    model: str
    device: str
    sample_rate: str = "model"
    suffix: str | None = None
    level: str = "input"
    keep_low_band: float = 0.0
    if_full_band: str = "restore"


@dataclass(frozen=True)
class Service:
    """Processes requests in temporary folders of ``storage``; ``publish`` stores files that outlive a request.

    Its results are plain values in which the paths are those of published files.
    """

    storage: Storage
    models: Models
    devices: Sequence[str]
    limits: Limits
    publish: Callable[[Any], Any]
    results: ResultFolders | None = None
    seconds: float = 10.0  # of a window
    queue: WorkQueue = field(default_factory=WorkQueue)

    @property
    def home(self) -> Path:
        return self.storage.home

    def restore(
        self, files: Sequence[str], request: RestoreRequest, progress: PageProgress, check: Check = lambda: None
    ) -> tuple[str, Any]:
        """Restore files; returns a message and the contents of the player."""
        try:
            sources = [Path(path) for path in files]
            self.limits.check_count(sources)
            with self._folder(progress, check) as folder:
                outcome = self._restored(sources, folder, request, progress, check)
                return summary_html(outcome, request), self._player(outcome.views, outcome.archive)
        except Cancelled as reason:
            return _stopped(reason), None
        except FAILURES as error:
            return error_paragraphs([_reason(error)]), None

    def simulate(
        self,
        file: str | None,
        sensor: str,
        seed: int,
        request: RestoreRequest,
        progress: PageProgress,
        check: Check = lambda: None,
    ) -> tuple[str, Any]:
        """Clean speech, its simulated recording by a sensor, and the restored recording."""
        source = Path(file or "nothing")
        try:
            self.limits.check_count([source] if file else [])
            with self._folder(progress, check) as folder:
                progress(0, desc="simulating")
                bone = simulate_one(source, folder, self.limits, sensor=sensor, seed=seed)
                outcome = self._restored([bone], folder / "restored", request, progress, check)
                if not outcome.views:
                    return summary_html(outcome, request), None
                (restored,) = outcome.views
                sounds = {"clean": source, sensor: bone, "restored": restored["file"]}
                comparison = view(bone.name, sounds, folder / "seen", top=restored["top"])
                # the regained band is relative to the simulated recording, not to the clean speech
                comparison |= {name: restored[name] for name in ("gained", "file")}
                return summary_html(outcome, request), self._player([comparison])
        except Cancelled as reason:
            return _stopped(reason), None
        except FAILURES as error:
            return error_paragraphs([explain(error, source.name) if file else _reason(error)]), None

    def show(self, name: str | None, progress: PageProgress, check: Check = lambda: None) -> tuple[str, str, Any, Any]:
        """A folder of results: an error message, the table in Markdown, images, sounds."""
        if not (self.results and name):
            return "", "", None, None
        try:
            files = [path for sounds in self.results.sounds(name).values() for path in sounds.values()]
            size = sum(path.stat().st_size for path in [*files, *self.results.pictures(name)])
            with self._folder(progress, check) as folder, self.storage.reserve(3 * size):
                pictures = [
                    {"name": path.stem, "file": shutil.copyfile(path, folder / f"{number}.png")}
                    for number, path in enumerate(self.results.pictures(name))
                ]
                views = [
                    view(utterance, sounds, folder / str(number), top=_top(sounds.values())) | {"gained": ""}
                    for number, (utterance, sounds) in enumerate(self.results.sounds(name).items())
                ]
                return "", self.results.table(name), self.publish(pictures), self._player(views)
        except Cancelled as reason:
            return _stopped(reason), "", None, None
        except FAILURES as error:
            return error_paragraphs([explain(self.results.unrooted(error), name)]), "", None, None

    def sample(self, name: str) -> str | None:
        """A copy of a sample recording in ``home``; None if it is not installed."""
        original = sample(name)
        if original is None:
            return None
        folder = self.home / "samples"
        folder.mkdir(exist_ok=True)
        return str(shutil.copyfile(original, folder / original.name))

    def options(self, request: RestoreRequest) -> Options:
        """The restoration options of a request. Raises ConfigError if they are invalid or not available."""
        if request.device not in self.devices:
            raise ConfigError(f"device {request.device}: none of {', '.join(self.devices)}")
        return Options(
            *(self.seconds, request.level, request.keep_low_band, request.sample_rate),
            if_full_band=request.if_full_band,
        )

    def _restored(
        self, sources: Sequence[Path], folder: Path, request: RestoreRequest, progress: PageProgress, check: Check
    ) -> Outcome:
        options = self.options(request)
        progress(0, desc=f"loading {request.model}")
        model = self.models.get(request.model, request.device)

        def restoring(part: float) -> None:
            self.queue.check_open()
            check()
            progress(part, desc="restoring")

        rate = None if request.sample_rate == "input" else model.sample_rate
        with self.storage.reserve(sum(room_for(source, self.limits, rate) for source in sources)):
            return restore_all(model, sources, folder, self.limits, options, suffix=request.suffix, progress=restoring)

    def _player(self, views: list[dict[str, Any]], archive: Path | None = None) -> Any:
        return self.publish({"items": views, "archive": archive}) if views else None

    @contextmanager
    def _folder(self, progress: PageProgress, check: Check) -> Iterator[Path]:
        """A new folder within the block, which starts when the request's turn has come."""

        def waiting(earlier: int) -> None:
            progress(0, desc=f"waiting for {earlier} earlier request{'s' if earlier > 1 else ''}")

        with self.queue.work(check, waiting), self.folder() as folder:
            yield folder

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A new folder within the block."""
        folder = Path(mkdtemp(prefix="work-", dir=self.home))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def serving_from(
    models: Mapping[str, list[str]],
    devices: Sequence[str],
    limits: Limits,
    *,
    results: ResultFolders | None = None,
    seconds: float = 10.0,
) -> Iterator[Service]:
    """A service in a private folder within the block; ``models`` are paths by label."""
    with private_folder() as home:
        storage = Storage(home, limits.total_mb)
        queue = WorkQueue(limits.jobs, limits.queue)
        yield Service(storage, Models(models), devices, limits, lambda value: value, results, seconds, queue)


def _stopped(reason: Cancelled) -> str:
    logger.info("work was stopped: %s", reason)
    return ""


def _reason(error: Exception) -> str:
    """The error message for a request that failed as a whole."""
    return str(error) if isinstance(error, TwoStageError) else explain(error, "this request")


def summary_html(outcome: Outcome, request: RestoreRequest) -> str:
    """The results of the files as HTML."""
    restored, failed = len(outcome.views), len(outcome.failures)
    counts = f"{restored} restored" + (f", {failed} failed" if failed else "")
    pace = f"; {outcome.seconds:.1f} s of sound in {outcome.elapsed:.1f} s on {request.device}" if restored else ""
    warnings = "".join(f"<p>{escape(warning)}</p>" for warning in outcome.warnings)
    return f"<p>{counts}{pace}</p>{warnings}{error_paragraphs(outcome.failures)}"


def error_paragraphs(lines: Sequence[str]) -> str:
    """The errors as HTML."""
    return "".join(f'<p class="ts-bad">{escape(line)}</p>' for line in lines)


def _top(sounds: Any) -> float:
    return max(info(path).sample_rate for path in sounds) / 2
