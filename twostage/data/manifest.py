"""Manifests: lists of files, their speakers, and which files form pairs.

A manifest is JSONL with one `Entry` in each line, or a CSV with the columns `path` or `bone` and `air`, and `speaker`.
Its paths are relative to the manifest itself, so that a corpus can be moved as a whole.
"""

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from hashlib import blake2b
from io import StringIO
from pathlib import Path
from typing import Any

from twostage.audio import sound_files
from twostage.utils.errors import AudioError, ConfigError, DataError, TwoStageError, reason_of
from twostage.utils.files import replacing
from twostage.utils.schema import build, parse_json

ESCAPED = "backslashreplace"  # file names that are not UTF-8 are stored with escaped bytes
YES, NO = ("true", "yes", "1"), ("", "false", "no", "0")
MOST_DRIFT = 10000.0  # ppm: more is not plausible for two clocks
Sides = dict[str, dict[str, Path]]  # utterance -> bone, air or clean -> file


@dataclass(frozen=True)
class Entry:
    """One utterance: a clean file, a body-conducted file, or both.

    ``delay``: seconds by which the degraded file lags behind the clean one, at the start of the clean one.
    ``drift``: parts per million by which the clock of the degraded file is faster than that of the clean one.
    ``inverted``: the polarities are opposite. ``text``: the transcript.
    """

    clean: str | None
    degraded: str | None
    speaker: str
    seconds: float
    corpus: str = ""
    delay: float = 0.0
    drift: float = 0.0
    inverted: bool = False
    text: str = ""

    @property
    def paired(self) -> bool:
        return self.clean is not None and self.degraded is not None

    @property
    def name(self) -> str:
        """The path that identifies the entry in messages: that of the degraded file, else of the clean one."""
        return self.degraded or self.clean or ""


def read_manifest(
    *paths: str | os.PathLike[str], exclude_speakers: Iterable[str] = (), problems: list[str] | None = None
) -> list[Entry]:
    """Read the entries of one or more manifests (.jsonl or .csv), without those of ``exclude_speakers``.

    For a CSV without a column ``seconds``, the sound files are opened. Unreadable files are skipped and named in
    ``problems`` if it is given, otherwise they raise AudioError.

    Raises DataError if a file is missing or malformed, if no entries are left, or if a speaker to exclude is in none of
    them: a mistyped name must not let a held-out speaker into a training.
    """
    entries = [entry for path in paths for entry in _read_one(Path(path), problems)]
    excluded = set(exclude_speakers)
    unknown = excluded - {entry.speaker for entry in entries}
    names = ", ".join(map(str, paths))
    if unknown:
        raise DataError(f"no speaker {', '.join(sorted(unknown))} to exclude", subject=names)
    kept = [entry for entry in entries if entry.speaker not in excluded]
    if not kept:
        raise DataError("no entries" + (" left after exclude_speakers" if excluded else ""), subject=names)
    return kept


def write_manifest(path: str | os.PathLike[str], entries: Iterable[Entry], *, overwrite: bool = False) -> None:
    """Write entries as CSV if the path ends in ``.csv``, else as JSONL; their paths are relative to its folder."""
    path = Path(path)
    text = _to_csv if path.suffix.lower() == ".csv" else _to_jsonl
    relative = _relative_to(path.parent)
    content = text(_with_paths(entry, relative) for entry in entries)
    try:
        encoded = content.encode("utf-8", "strict" if text is _to_csv else ESCAPED)
    except UnicodeEncodeError:
        raise DataError("contains a name that is not UTF-8, which only JSONL can hold", subject=path) from None
    with replacing(path, overwrite=overwrite) as partial:
        partial.write_bytes(encoded)


def read_paths(text: str, name: str) -> list[str]:
    """The path that identifies each entry in the ``text`` of a manifest, unresolved; see ``Entry.name``.

    ``name`` is that of the manifest: CSV, or else JSONL, which may also have the fields of CSV. No file is opened, and
    neither speaker nor length is required. Raises DataError.
    """
    rows: Iterable[tuple[int, Any]] = _csv_rows(text, name)
    if not name.lower().endswith(".csv"):
        lines = enumerate(text.split("\n"), 1)
        rows = ((number, _object(line, f"{name}:{number}")) for number, line in lines if line.strip())
    paths = []
    for number, row in rows:
        clean, degraded = _named(row, f"{name}:{number}")
        if not isinstance(path := degraded or clean, str):
            raise DataError(f"{name}:{number}: path is {path!r}, must be text")
        paths.append(path)
    if not paths:
        raise DataError("no entries", subject=name)
    return paths


def split_by_speaker(entries: Sequence[Entry], fraction: float, seed: int = 0) -> tuple[list[Entry], list[Entry]]:
    """Split into (training, held out) with no speaker in both; the held-out side has about ``fraction`` of the time.

    The order of the speakers depends only on the seed and their names, so that adding a speaker to the corpus moves few
    others to the other side.
    """
    if not 0 < fraction < 1:
        raise DataError(f"fraction is {fraction}, must be between 0 and 1")
    seconds: dict[str, float] = {}
    for entry in entries:
        seconds[entry.speaker] = seconds.get(entry.speaker, 0.0) + entry.seconds
    if len(seconds) < 2:
        raise DataError(f"a split needs two speakers or more, there is {len(seconds)}: {', '.join(seconds) or 'none'}")
    order = sorted(seconds, key=lambda name: blake2b(f"{seed}/{name}".encode()).digest())
    target = fraction * sum(seconds.values())
    held_out, total = [order[0]], seconds[order[0]]
    for speaker in order[1:-1]:
        if abs(total + seconds[speaker] - target) < abs(total - target):
            held_out.append(speaker)
            total += seconds[speaker]
    return [e for e in entries if e.speaker not in held_out], [e for e in entries if e.speaker in held_out]


def scan(
    root: str | os.PathLike[str],
    *,
    bone: str = "bone",
    air: str = "air",
    speaker: str | None = None,
    corpus: str = "",
    problems: list[str] | None = None,
) -> list[Entry]:
    """List the speech below a folder, as pairs where files pair up and as clean files otherwise.

    Three layouts are recognized: folders named ``bone`` and ``air`` anywhere on the path, with the same path otherwise;
    names that end in ``_bone`` and ``_air``; or neither, in which case every file is clean speech.
    ``speaker``: a regular expression searched for in the relative path; its first group (or the whole match) is the
    speaker. Without it the speaker is the name of the file's folder.
    Files without a partner and unreadable files are skipped and named in ``problems``.
    """
    root = Path(root)
    sides: Sides = {}
    problems = [] if problems is None else problems
    for file in _files(root, problems):
        key, side = _side(file, bone, air)
        _add(sides.setdefault(key, {}), side, root / file, problems)
    if any(files.keys() & {"bone", "air"} for files in sides.values()):
        sides = _partnered(sides, problems)
    return _entries(sides, root, _compile(speaker), corpus, problems)


def pair(
    bone: str | os.PathLike[str],
    air: str | os.PathLike[str],
    *,
    speaker: str | None = None,
    corpus: str = "",
    problems: list[str] | None = None,
) -> list[Entry]:
    """Pair the files of two folders that have the same path below them, whatever their suffix; see `scan`."""
    sides: Sides = {}
    problems = [] if problems is None else problems
    for side, folder in (("bone", Path(bone)), ("air", Path(air))):
        for file in _files(folder, problems):
            _add(sides.setdefault(file.with_suffix("").as_posix(), {}), side, folder / file, problems)
    return _entries(_partnered(sides, problems), Path(air), _compile(speaker), corpus, problems)


def _files(root: Path, problems: list[str]) -> list[Path]:
    if not root.is_dir():
        raise DataError("no such folder", subject=root)
    passed_over: list[Path] = []
    relative_paths = [relative for _, relative in sound_files.find([root], passed_over=passed_over)]
    if passed_over:
        problems.append(f"{root}: {len(passed_over)} files are not sound by their names, such as {passed_over[0].name}")
    return relative_paths


def _add(files: dict[str, Path], side: str, file: Path, problems: list[str]) -> None:
    """Add ``file`` as a side of an utterance; of two files for one side, the first readable one is used."""
    existing = files.setdefault(side, file)
    if existing == file:
        return
    try:
        sound_files.info(existing)
        problems.append(f"{file}: a second file for what {existing} is")
    except AudioError as error:
        problems.append(str(error))
        files[side] = file


def _side(file: Path, bone: str, air: str) -> tuple[str, str]:
    """The utterance of a file (its path without the side and the extension) and its side: bone, air or clean."""
    *folders, stem = file.with_suffix("").parts
    for side, name in (("bone", bone), ("air", air)):
        if name in folders:
            folders.remove(name)
            return "/".join([*folders, stem]), side
        if stem.endswith(f"_{name}"):
            return "/".join([*folders, stem.removesuffix(f"_{name}")]), side
    return file.as_posix(), "clean"


def _partnered(sides: Sides, problems: list[str]) -> Sides:
    unpaired = {key: files for key, files in sides.items() if not files.keys() >= {"bone", "air"}}
    problems.extend(f"{next(iter(files.values()))}: no partner" for files in unpaired.values())
    return {key: files for key, files in sides.items() if key not in unpaired}


def _entries(
    sides: Sides, root: Path, pattern: re.Pattern[str] | None, corpus: str, problems: list[str]
) -> list[Entry]:
    entries = []
    for key, files in sorted(sides.items()):
        try:
            entries.append(_entry(Path(key), files, root, pattern, corpus))
        except TwoStageError as error:
            problems.append(str(error))
    if not entries:
        raise DataError("nothing to use" + (f": {problems[0]}" if problems else ""), subject=root)
    return entries


def _entry(key: Path, paths: dict[str, Path], root: Path, pattern: re.Pattern[str] | None, corpus: str) -> Entry:
    files = {side: str(path.absolute()) for side, path in paths.items()}
    seconds = min(_seconds(path) for path in files.values())
    name = key.parent.name or root.absolute().name
    if pattern:
        match = pattern.search(key.as_posix())
        if not match:
            raise DataError(f"the speaker's pattern {pattern.pattern!r} does not match", subject=key)
        name = match.group(1) if pattern.groups else match.group()
    return Entry(files.get("air", files.get("clean")), files.get("bone"), name, seconds, corpus)


def _compile(speaker: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(speaker) if speaker else None
    except re.error as error:
        raise DataError(f"speaker pattern {speaker!r}: {error}") from None


def _seconds(path: str) -> float:
    return round(sound_files.info(path).seconds, 4)


def _read_one(path: Path, problems: list[str] | None) -> list[Entry]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else "not a text file"
        raise DataError(f"{reason}", subject=path) from None
    if path.suffix.lower() == ".csv":
        entries = []
        for line, row in _csv_rows(text, str(path)):
            try:
                entries.append(_from_csv(row, f"{path}:{line}", path.parent))
            except AudioError as error:
                if problems is None:
                    raise
                problems.append(str(error))
        return entries
    return [
        _from_json(line, f"{path}:{number}", path.parent)
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]


def _csv_rows(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a CSV with the numbers of their lines."""
    reader = csv.DictReader(StringIO(text, newline=""))
    try:
        yield from enumerate(reader, 2)
    except csv.Error as error:
        raise DataError(f"{name}:{reader.line_num}: not CSV: {error}") from None


def _from_csv(row: dict[str, str | None], where: str, folder: Path) -> Entry:
    clean, degraded = _named(row, where)
    entry = Entry(clean, degraded, row.get("speaker") or "", 0.0, row.get("corpus") or row.get("sensor") or "")
    entry = _absolute(entry, folder)
    try:
        seconds, delay, drift = row.get("seconds"), float(row.get("delay") or 0.0), float(row.get("drift") or 0.0)
        duration = float(seconds) if seconds else min(_seconds(p) for p in (entry.clean, entry.degraded) if p)
    except ValueError as error:
        raise DataError(f"{error}", subject=where) from None
    inverted = _truth(row.get("inverted") or "", where)
    return _checked(
        replace(entry, seconds=duration, delay=delay, drift=drift, inverted=inverted, text=row.get("text") or ""), where
    )


def _truth(text: str, where: str) -> bool:
    if text.strip().lower() not in (*YES, *NO):
        raise DataError(f"inverted is {text!r}, must be true or false", subject=where)
    return text.strip().lower() in YES


def _named(row: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    """The clean and the degraded file of a row."""
    clean = row.get("air") or row.get("clean") or row.get("path")
    degraded = row.get("bone") or row.get("degraded")
    if not clean and not degraded:
        raise DataError("needs a column path, or bone and air", subject=where)
    return clean, degraded


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        values = parse_json(line)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", subject=where) from None
    if not isinstance(values, dict):
        raise DataError("not a JSON object", subject=where)
    return values


def _from_json(line: str, where: str, folder: Path) -> Entry:
    values = {"clean": None, "degraded": None} | _object(line, where)
    try:
        entry = build(Entry, values, where)
    except ConfigError as error:
        raise DataError(str(error)) from None
    return _absolute(_checked(entry, where), folder)


def _checked(entry: Entry, where: str) -> Entry:
    if not (entry.clean or entry.degraded):
        raise DataError("neither clean nor degraded", subject=where)
    for field in ("seconds", "delay", "drift"):
        value = getattr(entry, field)
        if not math.isfinite(value) or (field == "seconds" and value <= 0):
            raise DataError(f"{field} is {value!r}", subject=where)
    if abs(entry.drift) > MOST_DRIFT:
        raise DataError(
            f"drift is {entry.drift!r} ppm, must lie between {-MOST_DRIFT:g} and {MOST_DRIFT:g}", subject=where
        )
    return entry


def _to_csv(rows: Iterable[dict[str, Any]]) -> str:
    text = StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Entry)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _to_jsonl(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _absolute(entry: Entry, folder: Path) -> Entry:
    clean, degraded = (str((folder / path).absolute()) if path else None for path in (entry.clean, entry.degraded))
    return replace(entry, clean=clean, degraded=degraded)


def _relative_to(folder: Path) -> Callable[[str], str]:
    """A function that makes paths relative to ``folder``, through links to folders, out of whose targets `..` leads."""
    resolved, home = cache(os.path.realpath), os.path.realpath(folder)

    def relative(path: str) -> str:
        parent, name = os.path.split(path)
        return Path(os.path.relpath(os.path.join(resolved(parent), name), home)).as_posix()

    return relative


def _with_paths(entry: Entry, change: Callable[[str], str]) -> dict[str, Any]:
    values = asdict(entry)
    for side in ("clean", "degraded"):
        if values[side]:
            values[side] = change(values[side])
    return values
