"""Restores a corpus with one model: the names of its outputs, the files that are done, and the work itself.

The distribution of the work over machines is separate, in `ray_cluster`. A file may be restored twice if a process dies
between writing its output and its row: the second output is the same, and the table keeps one row.
"""

import json
import re
import tempfile
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha256
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from twostage.corpus.storage import SCRATCH, Store, fetch, read_text
from twostage.corpus.table import FAILED, PARTS, RESTORED, TABLE, Result, Table
from twostage.data.manifest import read_paths
from twostage.inference.failures import Failure, one_by_one
from twostage.inference.jobs import renamed
from twostage.inference.restoration import restore_file
from twostage.inference.restore_options import Options
from twostage.models.enhancer import Enhancer
from twostage.models.loading import load
from twostage.models.model_files import DEFAULT, stage_files
from twostage.models.precision import shortfall
from twostage.utils.errors import AudioError, ConfigError, OutputError, called
from twostage.utils.schema import parse_json

SETTINGS_FILE = "corpus.json"  # marks the folder of a corpus, and contains its settings
RESERVED = {SETTINGS_FILE, TABLE, PARTS, SCRATCH}
UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')  # has a special meaning on some file systems


@dataclass(frozen=True)
class Item:
    """One file: ``source``, a path or URL, is restored to ``name`` in the folder of the corpus."""

    source: str
    name: str


@dataclass(frozen=True)
class ModelWeights:
    """The files of a model by name, in memory, to be sent to the machines of a cluster."""

    files: tuple[tuple[str, bytes], ...]

    @classmethod
    def read(cls, *names: str) -> "ModelWeights":
        """The files that ``loading.load`` would read. Raises CheckpointError."""
        paths = [path for name in names or (DEFAULT,) for path in stage_files(name)]
        return cls(tuple((path.name, path.read_bytes()) for path in paths))

    @property
    def digest(self) -> str:
        """SHA-256 of the file, or of the digests of several files in any order."""
        digests = sorted(sha256(content).hexdigest() for _, content in self.files)
        return digests[0] if len(digests) == 1 else sha256("\n".join(digests).encode()).hexdigest()

    def load(self, device: str = "cpu", precision: str = "float32") -> Enhancer:
        """The model, as ``loading.load`` returns it."""
        with tempfile.TemporaryDirectory(prefix="twostage-") as folder:
            paths = [Path(folder) / f"{index}-{name}" for index, (name, _) in enumerate(self.files)]
            for path, (_, content) in zip(paths, self.files, strict=True):
                path.write_bytes(content)
            return load(*paths, device=device, precision=precision)


@dataclass(frozen=True)
class CorpusJob:
    """The settings for restoring files into the folder ``dest``, a path or URL.

    ``suffix`` ("flac") is the format of the outputs (empty: that of the input); ``model`` is the digest of the
    weights.
    """

    dest: str
    model: str
    options: Options = field(default_factory=Options)
    precision: str = "float32"
    suffix: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that change the output, which must be the same within a corpus."""
        options = self.options
        return {
            "model": self.model,
            "precision": self.precision,
            "level": options.level,
            "keep_low_band": options.keep_low_band,
            "sample_rate": options.sample_rate,
            "format": self.suffix,
            "if_full_band": options.if_full_band,
        }


class Worker:
    """A model that restores some files of a job at a time. The results are written to the table and returned."""

    def __init__(self, job: CorpusJob, weights: ModelWeights, device: str = "cpu", threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.job, self._store = job, Store(job.dest)
        self._unsupported = shortfall(job.precision, device)
        self._model = weights.load(device, "float32" if self._unsupported else job.precision)

    def __call__(self, items: Sequence[Item]) -> list[Result]:
        results = []
        # every kind of store has its own exceptions, and none may stop the corpus
        for item, outcome in one_by_one(items, self.restore, name=lambda item: item.source, catch=(Exception,)):
            results.append(failure(item, outcome.error, self.job.model) if isinstance(outcome, Failure) else outcome)
        Table(self._store).add(results)
        return results

    def restore(self, item: Item) -> Result:
        """Restore one file; all errors are raised."""
        with self._store.scratch() as folder:
            output = folder / f"made{PurePosixPath(item.name).suffix}"
            local = fetch(item.source, folder)
            # in errors, temporary files have the names of the source and the output
            with called({str(local): item.source, str(output): self._store.path(item.name)}):
                report = restore_file(self._model, local, output, replace(self.job.options, overwrite=True))
                self._store.deliver(output, item.name)
        return Result(
            item.source,
            item.name,
            RESTORED,
            report.seconds,
            report.sample_rate,
            report.realtime_factor,
            self.job.model,
            warnings="; ".join([self._unsupported, *report.warnings] if self._unsupported else report.warnings),
            finished=time.time(),
        )


def failure(item: Item, error: str, model: str) -> Result:
    return Result(item.source, item.name, FAILED, model=model, error=error, finished=time.time())


def begin(job: CorpusJob, *, overwrite: bool = False) -> dict[str, Result]:
    """Prepare the folder ``job.dest`` for a corpus, or continue with one; returns results by the path of the source.

    ``overwrite`` discards earlier results. Raises OutputError if the folder contains something else, ConfigError if it
    was started with other settings.
    """
    store = Store(job.dest)
    names = store.names()
    if SETTINGS_FILE in names:
        (content,) = store.read([SETTINGS_FILE])
        if not overwrite:
            _check_same(job, content)
    elif set(names) - {SCRATCH}:
        raise OutputError(
            f"contains {names[0]} and no {SETTINGS_FILE}, so it is not a corpus; name a new folder", subject=job.dest
        )
    store.sweep()
    table = Table(store)
    if overwrite:
        table.clear()
    store.write(SETTINGS_FILE, (json.dumps(job.settings, indent=2) + "\n").encode())
    return {path: result for path, result in table.fold().items() if result.status == RESTORED}


def _check_same(job: CorpusJob, content: bytes) -> None:
    try:
        stored = {"if_full_band": Options.if_full_band} | dict(parse_json(content))  # older files have no such setting
    except (ValueError, TypeError):
        raise ConfigError(f"{SETTINGS_FILE} cannot be read (--overwrite starts over)", subject=job.dest) from None
    for name, value in job.settings.items():
        if stored.get(name) != value:
            raise ConfigError(
                f"{name} is {value!r}, was {stored.get(name)!r} when it was started; "
                "name another folder, or --overwrite to restore all again",
                subject=job.dest,
            )


def sources(manifest: str) -> tuple[list[str], str]:
    """The files in a manifest, without duplicates, as absolute paths or URLs, and the folder of the manifest.

    Raises ConfigError or DataError.
    """
    home, _, _ = (manifest if _is_url(manifest) else Path(manifest).absolute().as_posix()).rpartition("/")
    return list(dict.fromkeys(_located(path, home) for path in read_paths(read_text(manifest), manifest))), home


def plan(sources: Iterable[str], home: str, done: Mapping[str, Result], *, suffix: str = "") -> Iterator[Item]:
    """An item for every source that is not done; names differ in more than upper and lower case.

    If another file has the same name, a digest of the source is appended.
    """
    used_names = {_folded(result.output): path for path, result in done.items()}
    for source in sources:
        if source in done:
            continue
        name = renamed(Path(safe_name(source, home)), suffix or None).as_posix()
        if used_names.setdefault(_folded(name), source) != source:
            path, digest = PurePosixPath(name), blake2b(source.encode(), digest_size=6).hexdigest()
            name = path.with_name(f"{path.stem}-{digest}{path.suffix}").as_posix()
            used_names[_folded(name)] = source
        yield Item(source, name)


def refused(items: Iterable[Item], job: CorpusJob) -> dict[str, Result]:
    """Results for items that must not be restored, by source: those in the output folder."""
    store = Store(job.dest)
    results = {}
    for item in items:
        try:
            if store.holds(item.source):
                raise AudioError(f"lies in {job.dest}, which is written to", subject=item.source)
        except (AudioError, ConfigError) as error:
            results[item.source] = failure(item, str(error), job.model)
    return results


def safe_name(source: str, home: str) -> str:
    """A relative path for ``source`` that stays within any folder; relative to ``home`` if ``source`` is in it.

    >>> safe_name("s3://bucket/corpus/a/x.wav", "s3://bucket/corpus")
    'a/x.wav'
    >>> safe_name("/corpus/../../etc/x.wav", "/corpus")
    'etc/x.wav'
    >>> safe_name("/elsewhere/x.wav", "/corpus")
    'elsewhere/x.wav'
    """
    relative = source.removeprefix(f"{home}/") if source.startswith(f"{home}/") else source.rpartition("://")[2]
    parts: list[str] = []
    for part in re.split(r"[/\\]", relative):
        part = UNSAFE.sub("_", part)
        if part == "..":
            parts = parts[:-1]
        elif part.rstrip(" ."):
            parts.append(part.rstrip(" ."))
    if not parts or _folded(parts[0]) in RESERVED:
        parts = ["_" + "".join(parts[:1]), *parts[1:]]
    return "/".join(parts)


def _located(path: str, home: str) -> str:
    """Make a path from a manifest in the folder ``home`` absolute, so that any process can open it."""
    if _is_url(path):
        return path
    if _is_url(home):
        return path if path.startswith("/") else f"{home}/{path}"
    return (Path(home) / path).as_posix()


def _is_url(path: str) -> bool:
    return "://" in path


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
