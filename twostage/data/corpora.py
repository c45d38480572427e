"""Imports published corpora of paired speech: local Parquet shards become sound files and manifests.

Vibravox: J. Hauret et al., "Vibravox: A Dataset of French Speech Captured with Body-conduction Audio Sensors", 2024.
TAPS: Y. Kim, Y. Song and Y. Chung, "TAPS: Throat and Acoustic Paired Speech Dataset", 2025.

A shard is complete when the folder of lists contains its list. An interrupted import continues after the last complete
sound file. At the end, the lists are combined to the manifests.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twostage.audio import sound_files
from twostage.audio.types import Audio
from twostage.data.manifest import Entry, read_manifest, write_manifest
from twostage.data.parquet import ParquetRows
from twostage.utils.errors import ConfigError, DataError, TwoStageError
from twostage.utils.files import replacing
from twostage.utils.schema import parse_json

SETTINGS_FILE, LISTS, SOUNDS = "import.json", "shards", "flac"
SPLITS = {"train": "train", "validation": "valid", "valid": "valid", "val": "valid", "dev": "valid", "test": "test"}
SPLIT = re.compile(rf"(?:^|[-_./])({'|'.join(SPLITS)})(?=[-_./]|$)")
PREFIX = "audio."  # of the columns that contain sound


@dataclass(frozen=True)
class Corpus:
    """The columns of a corpus; ``subsets`` are the folders of its configurations, one of which is imported."""

    name: str
    air: str
    sensors: tuple[str, ...]
    speaker: tuple[str, ...] = ("speaker_id", "speaker")
    text: tuple[str, ...] = ("raw_text", "text", "normalized_text", "sentence", "transcription")
    subsets: tuple[str, ...] = ()


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            "vibravox",
            "audio.headset_microphone",
            (
                "audio.throat_microphone",
                "audio.forehead_accelerometer",
                "audio.rigid_in_ear_microphone",
                "audio.soft_in_ear_microphone",
                "audio.temple_vibration_pickup",
            ),
            subsets=("speech_clean", "speech_noisy", "speechless_clean", "speechless_noisy"),
        ),
        Corpus("taps", "audio.acoustic_microphone", ("audio.throat_microphone",)),
    )
}


@dataclass(frozen=True)
class ImportConfig:
    """Which part of a corpus is imported."""

    corpus: str
    air: str  # column of the air-conduction microphone
    sensors: tuple[str, ...]  # columns of the body-worn sensors
    subset: str = ""  # folder of the configuration to import
    sample_rate: int = 16000  # Hz of the written files; 0: that of the source

    def __post_init__(self) -> None:
        if not self.air or not self.sensors:
            raise ConfigError(f"corpus {self.corpus!r} is not one of {', '.join(CORPORA)}: name its columns")
        if self.sample_rate and not sound_files.SLOWEST <= self.sample_rate <= sound_files.FASTEST:
            raise ConfigError(f"sample rate is {self.sample_rate}, must be 0 or {sound_files.SLOWEST} and more")


def import_config(
    name: str, *, air: str = "", sensors: Sequence[str] = (), subset: str = "", sample_rate: int = 16000
) -> ImportConfig:
    """Settings for the corpus ``name``; columns that are not given are those of the known corpus.

    Sensors may be named without the prefix "audio."; "all" selects all of the corpus. Raises ConfigError.
    """
    corpus = CORPORA.get(name)
    if corpus is None:
        return ImportConfig(name, air, tuple(sensors), subset, sample_rate)
    short_names = {column.removeprefix(PREFIX): column for column in corpus.sensors}
    columns = [short_names.get(sensor, sensor) for sensor in sensors] or [corpus.sensors[0]]
    columns = list(corpus.sensors) if list(sensors) == ["all"] else columns
    for column in columns:
        if column not in corpus.sensors:
            raise ConfigError(f"{name} has no sensor {column!r}; there are {', '.join(short_names)}")
    if subset and subset not in corpus.subsets:
        raise ConfigError(
            f"{name} has no subset {subset!r}" + f"; there are {', '.join(corpus.subsets)}" * bool(corpus.subsets)
        )
    return ImportConfig(name, air or corpus.air, tuple(columns), subset or next(iter(corpus.subsets), ""), sample_rate)


class Shard(NamedTuple):
    path: Path
    name: str  # unique
    split: str


@dataclass
class Imported:
    """The result of an import: manifests by split, rows that could not be used, files that were skipped."""

    manifests: dict[str, list[Entry]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    @property
    def in_two_splits(self) -> list[str]:
        """Speakers that occur in more than one split."""
        speakers = [{entry.speaker for entry in entries} for entries in self.manifests.values()]
        return sorted(name for name in set().union(*speakers) if sum(name in split for split in speakers) > 1)


def find_shards(sources: Sequence[str], config: ImportConfig, passed_over: list[str] | None = None) -> list[Shard]:
    """Parquet files in ``sources``, files or folders, of the selected configuration. DataError if there is none."""
    other_subsets = set(CORPORA[config.corpus].subsets if config.corpus in CORPORA else ()) - {config.subset}
    shards = []
    for source in map(Path, sources):
        if not source.exists():
            raise DataError("no such file or folder", subject=source)
        for path in sorted(source.rglob("*.parquet")) if source.is_dir() else [source]:
            relative = path.relative_to(source) if source.is_dir() else Path(path.name)
            if other_subsets & set(path.absolute().parts[-4:-1]):
                passed_over = [] if passed_over is None else passed_over
                passed_over.append(str(path))
            else:
                shards.append(Shard(path, _safe(relative.with_suffix("").as_posix()), _split(path)))
    if not shards:
        raise DataError(f"{', '.join(sources)}: no Parquet files" + (f" of {config.subset}" if config.subset else ""))
    if len({shard.name for shard in shards}) < len(shards):
        raise DataError(f"{', '.join(sources)}: two files have the same relative name; name a common folder instead")
    return shards


def _split(path: Path) -> str:
    """The split of a file by its name, else by the nearest of its folders; "all" if neither names one."""
    if match := SPLIT.search(path.stem.lower()):
        return SPLITS[match.group(1)]
    folders = (part.lower().removeprefix("partial-") for part in path.absolute().parts[-2:-4:-1])
    return next((SPLITS[part] for part in folders if part in SPLITS), "all")


def import_corpus(
    sources: Sequence[str],
    folder: Path,
    config: ImportConfig,
    *,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Imported:
    """Write sound files and manifests of a corpus to ``folder``, and continue an interrupted import.

    ``progress`` is called with the name of a shard, the number of its rows that are done, and that of all its rows.
    Raises DataError, and ConfigError if the folder contains an import with other settings.
    """
    result = Imported()
    shards = find_shards(sources, config, result.passed_over)
    _check_settings(folder / SETTINGS_FILE, config)
    for shard in shards:
        shard_list = folder / LISTS / f"{shard.name}.{_digest(shard)}.jsonl"
        if not shard_list.exists():
            entries = list(_rows(shard, folder, config, result.problems, progress))
            if not entries:
                raise DataError("nothing to use" + "".join(f": {p}" for p in result.problems[-1:]), subject=shard.path)
            write_manifest(shard_list, entries)
        result.manifests.setdefault(shard.split, []).extend(read_manifest(shard_list))
    for split, entries in result.manifests.items():
        write_manifest(folder / f"{split}.jsonl", entries, overwrite=True)
    return result


def _check_settings(path: Path, config: ImportConfig) -> None:
    settings = parse_json(json.dumps(asdict(config)))
    if path.exists():
        try:
            stored = parse_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"not JSON: {error}", subject=path) from None
        for name, value in settings.items():
            if not isinstance(stored, dict) or stored.get(name) != value:
                stored_value = stored.get(name) if isinstance(stored, dict) else stored
                raise ConfigError(f"{path.parent} holds another import ({name}: {stored_value} there, {value} here)")
        return
    with replacing(path) as partial:
        partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _rows(
    shard: Shard,
    folder: Path,
    config: ImportConfig,
    problems: list[str],
    progress: Callable[[str, int, int], None],
) -> Iterator[Entry]:
    rows = ParquetRows(shard.path)
    corpus = CORPORA.get(config.corpus, Corpus(config.corpus, config.air, config.sensors))
    sounds = (config.air, *config.sensors)
    missing = [name for name in sounds if name not in rows.columns]
    if missing:
        raise DataError(f"no column {', '.join(missing)}; there are {', '.join(rows.columns)}", subject=shard.path)
    speaker, text = (next((n for n in names if n in rows.columns), "") for names in (corpus.speaker, corpus.text))
    try:
        for number, row in enumerate(rows.read([*sounds, *filter(None, (speaker, text))])):
            speaker_name = str(row[speaker]) if speaker and row[speaker] is not None else ""
            base = Entry(None, None, speaker_name, 0.0, text=str(row.get(text) or ""))
            stem = folder / SOUNDS / shard.split / (_safe(speaker_name) or "unknown") / f"{shard.name}-{number:05d}"
            try:
                yield from _pairs(row, base, stem, config)
            except TwoStageError as error:
                problems.append(f"{shard.path}: row {number}: {error}")
            progress(shard.path.name, number + 1, rows.length)
    finally:
        rows.close()


def _pairs(row: dict[str, Any], base: Entry, stem: Path, config: ImportConfig) -> Iterator[Entry]:
    """Write the files of a row that do not exist yet, and yield an entry for every sensor."""
    columns = (config.air, *config.sensors)
    names = [column.removeprefix(PREFIX) for column in columns]
    paths = [stem.with_name(f"{stem.name}.{_safe(name)}.flac") for name in names]
    for column, path in zip(columns, paths, strict=True):
        if not path.exists():
            _write(path, row[column], column, config.sample_rate)
    seconds = [sound_files.info(path).seconds for path in paths]
    for name, path, length in list(zip(names, paths, seconds, strict=True))[1:]:
        corpus = f"{config.corpus}-{name}" if len(names) > 2 else config.corpus
        yield replace(
            base,
            clean=str(paths[0].absolute()),
            degraded=str(path.absolute()),
            seconds=round(min(seconds[0], length), 4),
            corpus=corpus,
        )


def _write(path: Path, cell: Any, column: str, sample_rate: int) -> None:
    audio, rate, subtype = _decoded(cell, column)
    if not np.isfinite(audio).all() or not len(audio):
        raise DataError(("holds samples that are not finite" if len(audio) else "holds no samples"), subject=column)
    target_rate = sample_rate or rate
    audio = sound_files.resample(audio, rate, target_rate).clip(-1, 1)
    sound_files.write(path, audio, target_rate, subtype="PCM_16" if subtype == "PCM_16" else "PCM_24", overwrite=True)


def _decoded(cell: Any, column: str) -> tuple[Audio, int, str]:
    """The first channel (T,), sample rate and coding of a cell: the bytes of a file, or samples and their rate."""
    if isinstance(cell, bytes):
        cell = {"bytes": cell}
    if isinstance(cell, dict) and cell.get("bytes"):
        sound, info = sound_files.decode(cell["bytes"], column)
        return sound[0], info.sample_rate, info.subtype
    if isinstance(cell, dict) and cell.get("array") is not None and cell.get("sampling_rate"):
        samples = np.asarray(cell["array"], np.float32)
        return samples if samples.ndim == 1 else samples.reshape(-1, samples.shape[-1])[0], cell["sampling_rate"], ""
    file_name = cell.get("path") if isinstance(cell, dict) else None
    raise DataError("holds no sound" + (f", only the name {file_name!r}" if file_name else ""), subject=column)


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).lstrip(".")


def _digest(shard: Shard) -> str:
    return blake2b(f"{shard.split} {shard.path.stat().st_size}".encode(), digest_size=4).hexdigest()
