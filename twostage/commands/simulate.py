"""``twostage simulate``: simulates body-conducted speech from clean speech."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from twostage.commands.options import FORMATS, add_air_arguments, air_for, is_quiet
from twostage.utils.errors import AudioError, one_line

if TYPE_CHECKING:
    from twostage.data.manifest import Entry

HELP = "make body-conducted speech from clean speech, as a sensor would pick it up"
EXAMPLE = """
twostage simulate clean/ bone/ --sensor throat --seed 1
twostage simulate clean/ bone/ --sensor my_sensor.yaml --manifest pairs.jsonl
twostage simulate clean/ headset/ --air-snr 0 --noise noise/
"""


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("clean", metavar="CLEAN_DIR", help="a folder (with all below it), a sound file, or a quoted pattern")
    add("out", metavar="OUT_DIR", help="output folder; subfolders are kept")
    add("--sensor", default="throat", help="eben, throat, in-ear, forehead, temple or a YAML file (default: throat)")
    add("--seed", type=int, default=0, help="random seed; the same seed and file name give the same sound (default: 0)")
    add_air_arguments(parser)
    add("--format", choices=FORMATS, help="format of the outputs (default: that of the input)")
    add("--manifest", metavar="FILE", help="write a manifest of the resulting pairs (.jsonl or .csv)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    existing.add_argument("--skip-existing", action="store_true", help="skip inputs whose output exists")


def run(args: Namespace) -> int:
    import sys

    from tqdm import tqdm

    from twostage.audio import sound_files
    from twostage.data.manifest import write_manifest
    from twostage.data.recordings import simulate_recording
    from twostage.data.sensors import load_sensor
    from twostage.inference.failures import Failure, one_by_one

    sensor, air = load_sensor(args.sensor), air_for(args)
    files = sound_files.find([args.clean])
    _check(args, files)
    entries: list[Entry] = []
    written = failed = 0

    def work(file: tuple[Path, Path]) -> "tuple[Entry, bool]":
        source, relative = file
        target = _target(args, relative)
        needed = not (args.skip_existing and target.exists())
        if needed:
            name = relative.as_posix()
            simulate_recording(source, target, sensor, args.seed, name, air=air, overwrite=args.overwrite)
        return _pair(source, target, relative), needed

    progress = tqdm(files, disable=is_quiet(args) or len(files) < 20 or None, unit="file")
    for _, outcome in one_by_one(progress, work, name=lambda file: file[0]):
        if isinstance(outcome, Failure):
            failed += 1
            print(f"twostage: error: {one_line(outcome.error)}", file=sys.stderr)
        else:
            entries.append(outcome[0])
            written += outcome[1]
    if args.manifest and entries:
        write_manifest(args.manifest, entries, overwrite=args.overwrite)
    print(f"{written} of {len(files)} files simulated in {args.out}" + (f", {failed} failed" if failed else ""))
    return int(failed > 0)


def _check(args: Namespace, files: list[tuple[Path, Path]]) -> None:
    """Check the outputs before the work begins."""
    out, source = Path(args.out).absolute(), Path(args.clean).absolute()
    if out == source or (source.is_dir() and source in out.parents):
        raise AudioError(f"lies in {args.clean}; simulated speech would be taken for clean speech", subject=args.out)
    if args.manifest and Path(args.manifest).exists() and not args.overwrite:
        raise AudioError("exists already (--overwrite replaces it)", subject=args.manifest)
    targets: dict[Path, Path] = {}
    for file, relative in files:
        if not file.exists():
            raise AudioError("no such file or folder", subject=file)
        target = _target(args, relative)
        earlier = targets.setdefault(target, file)
        if earlier != file and all(map(_can_be_read, (file, earlier))):
            raise AudioError(f"has the same output as {earlier}: {target}", subject=file)


def _can_be_read(file: Path) -> bool:
    from twostage.audio import sound_files

    try:
        sound_files.info(file)
    except AudioError:
        return False
    return True


def _target(args: Namespace, relative: Path) -> Path:
    from twostage.inference.jobs import renamed

    return Path(args.out, renamed(relative, args.format))


def _pair(source: Path, target: Path, relative: Path) -> "Entry":
    from twostage.audio import sound_files
    from twostage.data.manifest import Entry

    speaker = relative.parent.name or source.absolute().parent.name
    seconds = round(sound_files.info(source).seconds, 4)
    return Entry(str(source.absolute()), str(target.absolute()), speaker, seconds, corpus="simulated")
