"""Finds sound files below folders and by patterns: by their extensions, or by their first bytes if they have none."""

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from twostage.audio import media_files, mpeg
from twostage.utils.errors import AudioError

# of files that libsndfile reads, beside those that it writes too
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
# of files that the extra ``media`` reads
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
    """Sound files under files, folders (recursively) and glob patterns, as (file, its path below what was named).

    A file that is named stands for itself, whatever its suffix; hidden files in folders are left out. Of files in a
    folder without a suffix the first bytes decide; all that is not taken is added to ``passed_over`` where it is given.

    Raises:
        AudioError: a folder or pattern without a sound file. Whether a named file exists is seen when it is read.
    """
    wanted = {"." + suffix.lower().lstrip(".") for suffix in suffixes}
    rest = [] if passed_over is None else passed_over
    return [pair for path in paths for pair in _find_one(str(path), wanted, rest)]


def _find_one(name: str, suffixes: set[str], rest: list[Path]) -> list[tuple[Path, Path]]:
    path = Path(name)
    if path.is_dir():
        files = [(file, file.relative_to(path)) for file in _below(path, suffixes, rest)]
    elif path.exists() or not any(c in name for c in "*?["):
        files = [(path, Path(path.name))]
    else:
        files = _glob(path, suffixes, rest)
    if not files:
        raise AudioError("no sound files there", subject=name)
    return files


def _below(folder: Path, suffixes: set[str], rest: list[Path]) -> list[Path]:
    files = sorted(file for file in _walk(folder) if not _hidden(file.relative_to(folder)))
    kept = [file for file in files if _is_sound(file, suffixes)]
    rest += sorted(set(files) - set(kept))
    return kept


def _walk(folder: Path) -> Iterator[Path]:
    """All files, those of linked folders too, each folder once however links lead to it."""
    here = os.path.realpath(folder)
    seen = {here, *map(str, Path(here).parents)}  # a link upwards would bring in what was not named
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders)}
        folders[:] = [name for name, place in real.items() if place not in seen and not name.startswith(".")]
        seen.update(real.values())
        yield from (Path(parent) / name for name in names)


def _is_sound(file: Path, suffixes: set[str]) -> bool:
    suffix = file.suffix.lower()
    return suffix in suffixes or ((not suffix or suffix[1:].isdigit()) and _sounds(file))


def _sounds(file: Path) -> bool:
    """Whether a file begins as sound files do."""
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


def _glob(pattern: Path, suffixes: set[str], rest: list[Path]) -> list[tuple[Path, Path]]:
    fixed = next(i for i, part in enumerate(pattern.parts) if any(c in part for c in "*?["))
    base, wanted = Path(*pattern.parts[:fixed]), pattern.parts[fixed:]
    if "**" in wanted:
        named = _matching(base, wanted)
    else:
        matches = sorted(base.glob(str(Path(*wanted))))
        named = [(match, False) for match in matches if not match.is_dir()]
        named += [(file, True) for match in matches if match.is_dir() for file in _walk(match)]
    shown = [(file, file.relative_to(base), inside) for file, inside in sorted(set(named))]
    matched = []
    for file, below, inside in shown:
        if _hidden(below):
            continue
        if _is_sound(file, suffixes) or (pattern.suffix and not inside):
            matched.append((file, below))  # "*.raw" means what it says, "*" means sound
        else:
            rest.append(file)
    return matched


def _matching(base: Path, parts: tuple[str, ...]) -> list[tuple[Path, bool]]:
    """Files below ``base`` that a pattern with "**" names, and whether it names a folder above them instead.

    Path.glob does not go into linked folders here, and glob.glob goes round in circles of links without end.
    """
    one = re.compile(_expression(parts))
    matches = []
    for file in _walk(base):
        below = file.relative_to(base)
        if one.fullmatch(f"{below.as_posix()}/"):
            matches.append((file, False))
        elif any(one.fullmatch("" if parent == Path() else f"{parent.as_posix()}/") for parent in below.parents):
            matches.append((file, True))
    return matches


def _expression(parts: tuple[str, ...]) -> str:
    """The regular expression of a pattern's parts for paths that end in a slash: "**" is any number of folders."""
    inner = (fnmatch.translate(part).removesuffix(r"\Z").replace(".*", "[^/]*") for part in parts if part != "**")
    return "".join("(?:[^/]+/)*" if part == "**" else f"{next(inner)}/" for part in parts)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
