"""Score the raw input, restored speech, copy-synthesis and the clean speech itself, utterance by utterance.

Copy-synthesis sends the clean speech itself through a model's mel and vocoder: what stage two could reach if stage one
made no error. All scores are taken at 16 kHz on the first channel, after delays and differences of length up to 20 ms
are undone.
"""

import math
import os
import re
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from twostage.audio import plots, sound_files
from twostage.audio.sound_files import Audio
from twostage.data.manifest import Entry
from twostage.data.noise import Air
from twostage.data.sensors import Sensor
from twostage.data.simulator import simulate_file
from twostage.evaluation import metrics, report
from twostage.evaluation.costs import Costs, measure
from twostage.evaluation.report import AIR, CLEAN, RAW, Row
from twostage.inference.restoration import restore
from twostage.inference.windows import Enhancer, inputs_of
from twostage.models import checkpoint
from twostage.models.features import LogMel
from twostage.models.onnx_enhancer import ONNX, OnnxEnhancer
from twostage.models.precision import convert
from twostage.models.two_stage import TwoStage
from twostage.models.vocoder import Vocoder
from twostage.utils.errors import AudioError, ConfigError, DataError, TwoStageError
from twostage.utils.schema import build, parse_json

RATE = metrics.SAMPLE_RATE
NAMES = tuple(report.COLUMNS)  # of metrics
SAVE_EVERY = 10.0  # seconds
ROWS, SETTINGS, TABLE, SUMMARY = "utterances.csv", "settings.json", "table.md", "summary.json"
PICTURES, SOUNDS = "spectrograms", "sounds"
COPY = ", copy-synthesis"  # ends the name of a vocoder that is fed with clean speech


class CopySynthesis(nn.Module):
    """A vocoder fed with the mel of what it should say: (B, 1, T) -> (B, 1, T // hop_length * hop_length)."""

    def __init__(self, vocoder: Vocoder) -> None:
        super().__init__()
        self.mel, self.vocoder = LogMel(vocoder.config.mel), vocoder
        mel = vocoder.config.mel
        self.sample_rate, self.hop_length, self.stride = mel.sample_rate, mel.hop_length, mel.hop_length
        self.context = mel.hop_length * (math.ceil(mel.n_fft / mel.hop_length) + vocoder.context)

    def forward(self, audio: Tensor) -> Tensor:
        out: Tensor = self.vocoder(self.mel(audio))
        return out


@dataclass(frozen=True)
class System:
    """A row of the table: an enhancer, and whether it is given the clean speech or the degraded one."""

    name: str
    model: Enhancer
    hears_clean: bool


@dataclass(frozen=True)
class Source:
    """Where utterances come from: as recorded in pairs, or simulated from clean speech as `twostage simulate` does.

    With ``air``, a noisy air microphone is made beside that on the body.
    """

    folder: Path  # that names are relative to
    sensor: Sensor | None = None
    seed: int = 0
    air: Air | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what every utterance is heard through."""
        return (RAW, AIR) if self.air else (RAW,)

    def name(self, entry: Entry) -> str:
        path = entry.clean if self.sensor else entry.name
        return Path(os.path.relpath(path or "", self.folder)).as_posix()

    def read(self, entry: Entry) -> tuple[Audio, Audio]:
        """Degraded and clean speech at 16 kHz, (T,) each, lengths as they are; with an air channel, degraded (2, T)."""
        bone, clean = self._bone(entry)
        if not self.air:
            return bone, clean
        air = self.air.of(clean, RATE, self.name(entry))
        return np.stack([bone, sound_files.match_length(air, len(bone))]), clean

    def _bone(self, entry: Entry) -> tuple[Audio, Audio]:
        clean = _read(entry.clean or "")
        if self.sensor:
            return simulate_file(clean[None], RATE, self.sensor, self.seed, self.name(entry))[0], clean
        late = round(entry.delay * RATE)
        return _read(entry.degraded or "")[max(0, late) :], clean[max(0, -late) :]


@dataclass
class Results:
    """Rows so far and what failed, one line a file."""

    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def done(self, systems: Iterable[str]) -> set[str]:
        """Utterances that have a row of every system."""
        keys = {row.key for row in self.rows}
        wanted = list(systems)
        return {row.utterance for row in self.rows if all((row.utterance, system) in keys for system in wanted)}


def load_systems(models: Mapping[str, Sequence[str]], device: str = "cpu", precision: str = "float32") -> list[System]:
    """Restoration and copy-synthesis of each model, by label; a vocoder alone gives copy-synthesis only."""
    systems = []
    for label, paths in models.items():
        if label in (RAW, AIR, CLEAN):
            raise ConfigError(f"--model {label}: is the name of another row; give it a LABEL=")
        model = convert(_load(paths, device), precision)
        vocoder = model if isinstance(model, Vocoder) else getattr(model, "vocoder", None)
        if not isinstance(model, Vocoder):
            systems.append(System(label, model, hears_clean=False))  # type: ignore[arg-type]
        if isinstance(model, Vocoder | TwoStage) and isinstance(vocoder, Vocoder):
            copy = CopySynthesis(vocoder).eval().to(device)
            systems.append(System(f"{label}{COPY}", copy, hears_clean=True))
    return systems


def _load(paths: Sequence[str], device: str) -> nn.Module:
    files = [file for path in paths for file in checkpoint.stage_files(path)]
    if len(files) == 1 and files[0].suffix != ONNX and checkpoint.read_header(files[0]).kind == "vocoder":
        return checkpoint.load_stage(files[0], folded=True).eval().requires_grad_(False).to(device)
    return checkpoint.load(*paths, device=device)


def check_inputs(systems: Iterable[System], source: Source) -> None:
    """Raise ConfigError for a model that hears more than there is."""
    for system in systems:
        if not system.hears_clean and inputs_of(system.model) > len(source.inputs):
            raise ConfigError(f"--model {system.name}: hears bone and air, and there is no air channel: see --air-snr")


def fingerprint(systems: Iterable[System]) -> dict[str, str]:
    """Digest of every system's weights: a resumed evaluation must be of the same ones."""
    return {system.name: _digest(system.model) for system in systems}


def _digest(model: object) -> str:
    if isinstance(model, OnnxEnhancer):
        return sha256(model.path.read_bytes()).hexdigest()[:16]
    assert isinstance(model, nn.Module)
    digest = sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def select(
    entries: Sequence[Entry], *, paired: bool, speakers: Sequence[str] = (), limit: int | None = None
) -> list[Entry]:
    """The entries to score: those of ``speakers`` (empty: all), ``limit`` of them evenly spread. DataError if none."""
    usable = [entry for entry in entries if (entry.paired if paired else entry.clean)]
    if not usable:
        raise DataError(f"no entry has {'both a clean and a degraded file' if paired else 'a clean file'}")
    unknown = sorted(set(speakers) - {entry.speaker for entry in usable})
    if unknown:
        raise DataError(f"no speaker {', '.join(unknown)}")
    chosen = [entry for entry in usable if not speakers or entry.speaker in speakers]
    if limit is None or limit >= len(chosen):
        return chosen
    return [chosen[index * len(chosen) // limit] for index in range(limit)]


def evaluate(
    entries: Iterable[Entry],
    source: Source,
    systems: Sequence[System],
    results: Results,
    *,
    names: Sequence[str] = NAMES,
    keep_low_band: float = 0.0,
    jobs: int = 1,
    save: Callable[[], None] = lambda: None,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Score every entry that ``results`` has not by the metrics ``names``, adding to it.

    The clean speech has a row of its own for the metrics that need no reference. ``save`` is called from time to time,
    and at the end.

    A file that cannot be read or scored becomes one line of ``results.failures``, and none of its rows is added. With
    ``jobs`` above 1, that many processes score while this one runs the models.
    """
    metrics.require_packages(names)
    reference_free = [name for name in names if name in metrics.NO_REFERENCE]
    done = results.done([*source.inputs, *(system.name for system in systems), *([CLEAN] if reference_free else [])])
    waiting: deque[tuple[str, list[Future[Row]]]] = deque()
    saved = time.monotonic()
    try:
        with _scorers(jobs) as pool:
            for entry in entries:
                name = source.name(entry)
                if name in done:
                    progress()
                    continue
                with _reported(name, results):
                    rows = _rows(entry, name, source, systems, keep_low_band)
                    scored = [pool.submit(_score, row, clean, estimate, names) for row, clean, estimate in rows]
                    if reference_free:
                        row, clean, _ = rows[0]
                        scored.append(pool.submit(_score, replace(row, system=CLEAN), clean, clean, reference_free))
                    waiting.append((name, scored))
                _collect(waiting, 0 if jobs == 1 else 2 * jobs, results, progress)
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
                    saved = time.monotonic()
            _collect(waiting, 0, results, progress)
    finally:
        save()


class _Here(Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **kwargs))
        except TwoStageError as error:
            future.set_exception(error)
        return future


def _scorers(jobs: int) -> Executor:
    return ProcessPoolExecutor(jobs, _Undisturbed(), torch.set_num_threads, (1,)) if jobs > 1 else _Here()


class _DeafProcess(SpawnProcess):
    """Ctrl-C goes to all processes of a terminal; whoever began this one hears it and ends it."""

    def start(self) -> None:
        if not hasattr(signal, "pthread_sigmask"):
            super().start()
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a new process inherits
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Undisturbed(SpawnContext):  # spawn: a fork of a process whose torch has threads can hang
    Process = _DeafProcess


@contextmanager
def _reported(name: str, results: Results) -> Iterator[None]:
    try:
        yield
    except TwoStageError as error:
        results.failures.append(str(error) if name in str(error) else f"{name}: {error}")
    except BrokenProcessPool:  # the packages behind the scores are C
        results.failures.append(f"{name}: a scoring process died, maybe of another file; try again with --jobs 1")


def _collect(
    waiting: deque[tuple[str, list[Future[Row]]]], most: int, results: Results, progress: Callable[[], None]
) -> None:
    """Wait for utterances until at most ``most`` are left; rows and failures in the order of the entries."""
    while len(waiting) > most:
        name, futures = waiting.popleft()
        with _reported(name, results):
            results.rows += [future.result() for future in futures]
        progress()


def _rows(
    entry: Entry, name: str, source: Source, systems: Sequence[System], keep_low_band: float
) -> list[tuple[Row, Audio, Audio]]:
    """Rows without scores yet, with the clean speech and the estimate that they are of."""
    degraded, clean = source.read(entry)
    rows = []
    for label, estimate in estimates(degraded, clean, systems, keep_low_band):
        row = Row(name, entry.corpus, entry.speaker, round(len(clean) / RATE, 3), label, {})
        rows.append((row, clean, estimate))
    return rows


def estimates(
    degraded: Audio, clean: Audio, systems: Sequence[System], keep_low_band: float = 0.0
) -> Iterator[tuple[str, Audio]]:
    """The raw input, (T,) or bone and air (2, T), and what every system makes of it: name and (T,) at 16 kHz.

    A system of one input hears the bone alone.
    """
    channels = np.atleast_2d(degraded)
    yield from zip((RAW, AIR), channels, strict=False)
    for system in systems:
        given = channels if inputs_of(system.model) > 1 else channels[0]
        heard, low = (clean, 0.0) if system.hears_clean else (given, keep_low_band)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of silence: the scores' own note says so
            out = restore(system.model, heard, RATE, keep_low_band=low)
        yield system.name, sound_files.resample(out.reshape(-1), system.model.sample_rate, RATE)


def _score(row: Row, clean: Audio, estimate: Audio, names: Sequence[str]) -> Row:
    aligned = metrics.align(clean, estimate)
    exact, reasons = metrics.score(aligned.reference, aligned.estimate, names)
    # the digits that the CSV has: ESTOI is noisy behind them, and a resumed evaluation must give the same summary
    scores = {metric: float(f"{value:.6g}") for metric, value in exact.items()}
    return replace(row, scores=scores, delay=aligned.delay, longer=aligned.longer, note="; ".join(reasons))


def _read(path: str) -> Audio:
    sound, sample_rate = sound_files.read(path)
    if not np.isfinite(sound[0]).all():
        raise AudioError(f"{path}: NaN or infinite samples")
    return sound_files.resample(sound[0], sample_rate, RATE)


def show(
    folder: Path, entries: Sequence[Entry], source: Source, systems: Sequence[System], keep_low_band: float = 0.0
) -> None:
    """Input, estimates and clean speech to look at and to listen to, in two folders below ``folder``.

    Of an entry, a PNG with their spectrograms above each other, and a folder of FLAC files at 16 kHz. Files that cannot
    be used are passed over: ``evaluate`` names them.
    """
    for entry in entries:
        name = source.name(entry)
        with _reported(name, Results()):
            degraded, clean = source.read(entry)
            sounds = {**dict(estimates(degraded, clean, systems, keep_low_band)), CLEAN: clean}
            draw(folder / PICTURES / f"{file_name(name)}.png", sounds)
            for title, sound in sounds.items():
                target = folder / SOUNDS / file_name(name) / f"{file_name(title)}.flac"
                sound_files.write(target, sound.clip(-1, 1)[None], RATE, overwrite=True)


def draw(path: Path, sounds: Mapping[str, Audio]) -> None:
    """Spectrograms of sounds (T,) at 16 kHz, by title, above each other."""
    panels = [plots.spectrogram([sound[None]], RATE, len(sound), title) for title, sound in sounds.items()]
    plots.draw(path, panels, overwrite=True)


def file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)


def measure_costs(systems: Iterable[System]) -> dict[str, Costs]:
    """Costs of every system on this machine."""
    return {system.name: measure(system.model) for system in systems}


def known_costs(path: Path, systems: Sequence[System]) -> dict[str, Costs]:
    """Costs of the systems as the summary of another evaluation has them, which must have been of the same weights."""
    summary = _json(path)
    costs, settings = _costs(summary, path), summary.get("settings")
    models = settings.get("models") if isinstance(settings, dict) else None
    if not isinstance(models, dict):
        raise DataError(f"{path}: does not say which weights its costs are of")
    for name, digest in fingerprint(systems).items():
        if name not in costs or models.get(name) != digest:
            raise DataError(f"{path}: holds no costs of {name} with these weights")
    return {system.name: costs[system.name] for system in systems}


def _costs(summary: Mapping[str, Any], path: Path) -> dict[str, Costs]:
    try:
        return {name: build(Costs, cost, f"costs.{name}") for name, cost in summary["costs"].items()}
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise DataError(f"{path}: not a summary ({error!r})") from None


def resume(folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> Results:
    """Rows of an evaluation that began in ``folder`` with the same settings; none where there is none.

    Raises DataError if the folder holds an evaluation with other settings, unless ``overwrite``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot make this folder ({error.strerror})") from None
    before = _json(folder / SETTINGS) if (folder / SETTINGS).exists() and not overwrite else dict(settings)
    for key in sorted({*before, *settings}):
        if before.get(key) != settings.get(key):
            there, here = before.get(key), settings.get(key)
            raise DataError(f"{folder} holds another evaluation ({key}: {there} there, {here} here); see --overwrite")
    report.write_json(folder / SETTINGS, settings)
    if overwrite or not (folder / ROWS).exists():
        return Results()
    return Results(report.read_rows(folder / ROWS))


def merge(folders: Sequence[Path]) -> tuple[Results, dict[str, Costs]]:
    """Join the rows, failures and costs of several evaluations; what several hold alike (the raw input) counts once.

    Where they measured different metrics, a row has all of them. Raises DataError if two hold different scores of one
    system on one utterance.
    """
    found: dict[tuple[str, str], tuple[Row, Path]] = {}
    failures: list[str] = []
    costs: dict[str, Costs] = {}
    for folder in folders:
        for row in report.read_rows(folder / ROWS):
            other, where = found.get(row.key, (row, folder))
            if not _agree(other, row):
                raise DataError(f"{where} and {folder} differ in the scores of {row.system} on {row.utterance}")
            notes = "; ".join(dict.fromkeys(filter(None, (other.note, row.note))))
            found[row.key] = replace(other, scores={**row.scores, **other.scores}, note=notes), where
        summary = _json(folder / SUMMARY)
        costs = _costs(summary, folder / SUMMARY) | costs
        failed = summary.get("failures", [])
        if not isinstance(failed, list):
            raise DataError(f"{folder / SUMMARY}: failures is {failed!r}, must be a list")
        failures += map(str, failed)
    return Results([row for row, _ in found.values()], failures), costs


def _agree(one: Row, other: Row) -> bool:
    """Whether two rows can be of one estimate: alike in whatever both measured."""
    both = one.scores.keys() & other.scores.keys()
    known = [replace(row, scores={name: row.scores[name] for name in sorted(both)}, note="") for row in (one, other)]
    return repr(known[0]) == repr(known[1])  # NaN differs from itself, its name does not


def _json(path: Path) -> dict[str, Any]:
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: not a JSON object")
    return values
