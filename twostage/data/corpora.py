"""Published corpora of paired speech: Parquet shards as they lie on a disk become sound files and manifests.

Vibravox: J. Hauret et al., "Vibravox: A Dataset of French Speech Captured with Body-conduction Audio Sensors", 2024.
TAPS: Y. Kim, Y. Song and Y. Chung, "TAPS: Throat and Acoustic Paired Speech Dataset", 2025.

A shard is done when its list lies in the folder of lists; what is interrupted goes on behind the last sound file that
was complete. The manifests are joined from the lists at the end.
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
PREFIX = "audio."  # of the columns that hold sound


@dataclass(frozen=True)
class Corpus:
    """The columns of a corpus; ``subsets`` are folders of its configurations, of which one is taken."""

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
    air: str  # column of the microphone in the air
    sensors: tuple[str, ...]  # columns of the sensors on the body
    subset: str = ""  # folder of the configuration that is taken
    sample_rate: int = 16000  # Hz of what is written; 0: as it comes

    def __post_init__(self) -> None:
        if not self.air or not self.sensors:
            raise ConfigError(f"corpus {self.corpus!r} is none of {', '.join(CORPORA)}: name its columns")
        if self.sample_rate and not sound_files.SLOWEST <= self.sample_rate <= sound_files.FASTEST:
            raise ConfigError(f"sample rate is {self.sample_rate}, must be 0 or {sound_files.SLOWEST} and more")


def import_config(
    name: str, *, air: str = "", sensors: Sequence[str] = (), subset: str = "", sample_rate: int = 16000
) -> ImportConfig:
    """Settings for the corpus ``name``, whose known columns stand in for those that are not given.

    Sensors may be named without the prefix "audio."; "all" are all that the corpus has. Raises ConfigError.
    """
    known = CORPORA.get(name)
    if known is None:
        return ImportConfig(name, air, tuple(sensors), subset, sample_rate)
    short = {column.removeprefix(PREFIX): column for column in known.sensors}
    columns = [short.get(sensor, sensor) for sensor in sensors] or [known.sensors[0]]
    columns = list(known.sensors) if list(sensors) == ["all"] else columns
    for column in columns:
        if column not in known.sensors:
            raise ConfigError(f"{name} has no sensor {column!r}; there are {', '.join(short)}")
    if subset and subset not in known.subsets:
        raise ConfigError(
            f"{name} has no subset {subset!r}" + f"; there are {', '.join(known.subsets)}" * bool(known.subsets)
        )
    return ImportConfig(name, air or known.air, tuple(columns), subset or next(iter(known.subsets), ""), sample_rate)


class Shard(NamedTuple):
    path: Path
    name: str  # unlike that of any other
    split: str


@dataclass
class Imported:
    """The result of an import: manifests by split, rows that could not be used, files that were passed over."""

    manifests: dict[str, list[Entry]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    @property
    def in_two_splits(self) -> list[str]:
        """Speakers of more than one split."""
        speakers = [{entry.speaker for entry in entries} for entries in self.manifests.values()]
        return sorted(name for name in set().union(*speakers) if sum(name in one for one in speakers) > 1)


def find_shards(sources: Sequence[str], config: ImportConfig, passed_over: list[str] | None = None) -> list[Shard]:
    """Parquet files named, or below folders named, of the configuration that is taken. Raises DataError if none is."""
    others = set(CORPORA[config.corpus].subsets if config.corpus in CORPORA else ()) - {config.subset}
    shards = []
    for source in map(Path, sources):
        if not source.exists():
            raise DataError("no such file or folder", subject=source)
        for path in sorted(source.rglob("*.parquet")) if source.is_dir() else [source]:
            below = path.relative_to(source) if source.is_dir() else Path(path.name)
            if others & set(path.absolute().parts[-4:-1]):
                passed_over = [] if passed_over is None else passed_over
                passed_over.append(str(path))
            else:
                shards.append(Shard(path, _safe(below.with_suffix("").as_posix()), _split(path)))
    if not shards:
        raise DataError(f"{', '.join(sources)}: no Parquet files" + (f" of {config.subset}" if config.subset else ""))
    if len({shard.name for shard in shards}) < len(shards):
        raise DataError(f"{', '.join(sources)}: two files have one name below what was named; name their folder")
    return shards


def _split(path: Path) -> str:
    """The split that a file is of, by its name, else by the nearest of its folders; "all" where none says."""
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
    """Write sound files and manifests of a corpus to ``folder``, going on where an earlier import stopped.

    ``progress`` is called with a shard, the rows of it that are done, and all of its rows. Raises DataError, and
    ConfigError if the folder holds an import of other settings.
    """
    result = Imported()
    shards = find_shards(sources, config, result.passed_over)
    _check_settings(folder / SETTINGS_FILE, config)
    for shard in shards:
        part = folder / LISTS / f"{shard.name}.{_digest(shard)}.jsonl"
        if not part.exists():
            entries = list(_rows(shard, folder, config, result.problems, progress))
            if not entries:
                raise DataError("nothing to use" + "".join(f": {p}" for p in result.problems[-1:]), subject=shard.path)
            write_manifest(part, entries)
        result.manifests.setdefault(shard.split, []).extend(read_manifest(part))
    for split, entries in result.manifests.items():
        write_manifest(folder / f"{split}.jsonl", entries, overwrite=True)
    return result


def _check_settings(path: Path, config: ImportConfig) -> None:
    settings = parse_json(json.dumps(asdict(config)))
    if path.exists():
        try:
            before = parse_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"not JSON: {error}", subject=path) from None
        for name, value in settings.items():
            if not isinstance(before, dict) or before.get(name) != value:
                there = before.get(name) if isinstance(before, dict) else before
                raise ConfigError(f"{path.parent} holds another import ({name}: {there} there, {value} here)")
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
    lacking = [name for name in sounds if name not in rows.columns]
    if lacking:
        raise DataError(f"no column {', '.join(lacking)}; there are {', '.join(rows.columns)}", subject=shard.path)
    speaker, text = (next((n for n in names if n in rows.columns), "") for names in (corpus.speaker, corpus.text))
    try:
        for number, row in enumerate(rows.read([*sounds, *filter(None, (speaker, text))])):
            who = str(row[speaker]) if speaker and row[speaker] is not None else ""
            base = Entry(None, None, who, 0.0, text=str(row.get(text) or ""))
            place = folder / SOUNDS / shard.split / (_safe(who) or "unknown") / f"{shard.name}-{number:05d}"
            try:
                yield from _pairs(row, base, place, config)
            except TwoStageError as error:
                problems.append(f"{shard.path}: row {number}: {error}")
            progress(shard.path.name, number + 1, rows.length)
    finally:
        rows.close()


def _pairs(row: dict[str, Any], base: Entry, place: Path, config: ImportConfig) -> Iterator[Entry]:
    """An entry for every sensor of a row, whose files are written if they are not there."""
    columns = (config.air, *config.sensors)
    names = [column.removeprefix(PREFIX) for column in columns]
    paths = [place.with_name(f"{place.name}.{_safe(name)}.flac") for name in names]
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
    wanted = sample_rate or rate
    audio = sound_files.resample(audio, rate, wanted).clip(-1, 1)
    sound_files.write(path, audio, wanted, subtype="PCM_16" if subtype == "PCM_16" else "PCM_24", overwrite=True)


def _decoded(cell: Any, column: str) -> tuple[Audio, int, str]:
    """The first channel (T,), rate and coding of what a cell holds: a file's bytes, or samples and their rate."""
    if isinstance(cell, bytes):
        cell = {"bytes": cell}
    if isinstance(cell, dict) and cell.get("bytes"):
        sound, info = sound_files.decode(cell["bytes"], column)
        return sound[0], info.sample_rate, info.subtype
    if isinstance(cell, dict) and cell.get("array") is not None and cell.get("sampling_rate"):
        samples = np.asarray(cell["array"], np.float32)
        return samples if samples.ndim == 1 else samples.reshape(-1, samples.shape[-1])[0], cell["sampling_rate"], ""
    where = cell.get("path") if isinstance(cell, dict) else None
    raise DataError("holds no sound" + (f", only the name {where!r}" if where else ""), subject=column)


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).lstrip(".")


def _digest(shard: Shard) -> str:
    return blake2b(f"{shard.split} {shard.path.stat().st_size}".encode(), digest_size=4).hexdigest()
