"""Finds sound files below folders and by patterns: by their extensions, or by their first bytes if they have none."""

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from twostage.audio import media_files, mpeg
from twostage.utils.errors import AudioError

# extensions of formats that libsndfile reads but this package does not write
READ: tuple[str, ...] = (
    "aifc",
    "bwf",
    "wave",
    "wavex",
    "sph",
    "nist",
    "nst",
    "snd",
    "voc",
    "mp2",
    "mpga",
    "ogx",
    "avr",
    "paf",
    "pvf",
)
READ += ("sf", "ircam", "sd2", "sds", "svx", "iff", "8svx", "htk")
# extensions of formats that the extra ``media`` reads
MEDIA: tuple[str, ...] = (
    "m4a",
    "m4b",
    "aac",
    "adts",
    "amr",
    "awb",
    "wma",
    "asf",
    "webm",
    "weba",
    "mka",
    "mkv",
    "mp4",
    "mov",
    "3gp",
)
MEDIA += ("3g2", "ac3", "ape", "wv", "tta", "flv", "spx")
MAGIC = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"fLaC", b"OggS", b".snd", b"caff", b"NIST_1A", b"Creative Voice", b"ID3")


def find(
    paths: Iterable[str | Path], suffixes: Iterable[str], passed_over: list[Path] | None = None
) -> list[tuple[Path, Path]]:
    """Sound files in ``paths``: files, folders (recursively) and glob patterns; as (file, path relative to that entry).

    A file that is named explicitly is always included, whatever its suffix. Hidden files in folders are skipped. Files
    without a suffix in folders are recognized by their first bytes. All other files are added to ``passed_over`` if it
    is given.

    Raises:
        AudioError: a folder or pattern without a sound file. Named files are checked only when they are read.
    """
    extensions = {"." + suffix.lower().lstrip(".") for suffix in suffixes}
    skipped = [] if passed_over is None else passed_over
    return [pair for path in paths for pair in _find_one(str(path), extensions, skipped)]


def _find_one(name: str, suffixes: set[str], skipped: list[Path]) -> list[tuple[Path, Path]]:
    path = Path(name)
    if path.is_dir():
        files = [(file, file.relative_to(path)) for file in _below(path, suffixes, skipped)]
    elif path.exists() or not any(c in name for c in "*?["):
        files = [(path, Path(path.name))]
    else:
        files = _glob(path, suffixes, skipped)
    if not files:
        raise AudioError("no sound files found", subject=name)
    return files


def _below(folder: Path, suffixes: set[str], skipped: list[Path]) -> list[Path]:
    files = sorted(file for file in _walk(folder) if not _hidden(file.relative_to(folder)))
    kept = [file for file in files if _is_sound(file, suffixes)]
    skipped += sorted(set(files) - set(kept))
    return kept


def _walk(folder: Path) -> Iterator[Path]:
    """All files, also those in linked folders; each folder is visited once, however many links lead to it."""
    root = os.path.realpath(folder)
    visited = {root, *map(str, Path(root).parents)}  # a link to a parent folder would add files that were not named
    for parent, folders, names in os.walk(folder, followlinks=True):
        targets = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders)}
        folders[:] = [name for name, target in targets.items() if target not in visited and not name.startswith(".")]
        visited.update(targets.values())
        yield from (Path(parent) / name for name in names)


def _is_sound(file: Path, suffixes: set[str]) -> bool:
    suffix = file.suffix.lower()
    return suffix in suffixes or ((not suffix or suffix[1:].isdigit()) and _has_sound_signature(file))


def _has_sound_signature(file: Path) -> bool:
    """Whether the first bytes of a file are those of a sound file."""
    if not file.is_file():
        return False
    try:
        with open(file, "rb") as opened:
            head = opened.read(16)
            frame = mpeg.parse(head[:4])
            opened.seek(frame.length if frame else 0)
            return head.startswith(MAGIC) or bool(frame and mpeg.parse(opened.read(4))) or bool(media_files.kind(file))
    except OSError:
        return False


def _glob(pattern: Path, suffixes: set[str], skipped: list[Path]) -> list[tuple[Path, Path]]:
    fixed = next(i for i, part in enumerate(pattern.parts) if any(c in part for c in "*?["))
    base, pattern_parts = Path(*pattern.parts[:fixed]), pattern.parts[fixed:]
    if "**" in pattern_parts:
        candidates = _matching(base, pattern_parts)
    else:
        matches = sorted(base.glob(str(Path(*pattern_parts))))
        candidates = [(match, False) for match in matches if not match.is_dir()]
        candidates += [(file, True) for match in matches if match.is_dir() for file in _walk(match)]
    listed = [(file, file.relative_to(base), inside) for file, inside in sorted(set(candidates))]
    matched = []
    for file, below, inside in listed:
        if _hidden(below):
            continue
        if _is_sound(file, suffixes) or (pattern.suffix and not inside):
            matched.append((file, below))  # "*.raw" selects any file of that suffix, "*" only sound files
        else:
            skipped.append(file)
    return matched


def _matching(base: Path, parts: tuple[str, ...]) -> list[tuple[Path, bool]]:
    """Files below ``base`` that a pattern with "**" matches, and whether it matches one of their folders instead.

    Path.glob does not follow links to folders here, and glob.glob never ends if such links form a circle.
    """
    expression = re.compile(_expression(parts))
    matches = []
    for file in _walk(base):
        below = file.relative_to(base)
        if expression.fullmatch(f"{below.as_posix()}/"):
            matches.append((file, False))
        elif any(expression.fullmatch("" if parent == Path() else f"{parent.as_posix()}/") for parent in below.parents):
            matches.append((file, True))
    return matches


def _expression(parts: tuple[str, ...]) -> str:
    """The regular expression for the parts of a pattern; it matches paths that end in a slash."""
    inner = (fnmatch.translate(part).removesuffix(r"\Z").replace(".*", "[^/]*") for part in parts if part != "**")
    return "".join("(?:[^/]+/)*" if part == "**" else f"{next(inner)}/" for part in parts)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
