"""``twostage manifest``: list a corpus, pair it, align it, import a published one, split it by speaker."""

import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.commands.options import is_quiet
from twostage.utils.errors import DataError

if TYPE_CHECKING:
    from twostage.data.align import Verdict
    from twostage.data.manifest import Entry

HELP = "make manifests for training: scan or pair folders, align pairs, import published corpora, split by speaker"
EXAMPLE = """
twostage manifest scan corpus/ -o all.jsonl --speaker-regex "p[0-9]+"
twostage manifest pair throat/ mic/ -o pairs.jsonl
twostage manifest align pairs.jsonl -o good.jsonl --report report.json
twostage manifest import vibravox/ --corpus vibravox -o corpora/vibravox
twostage manifest split all.jsonl -o train.jsonl dev.jsonl --fraction 0.1
"""
SHOWN = 20  # problems that are printed; the report contains all


def add_arguments(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    scan = actions.add_parser(
        "scan", help="list a folder: bone/ and air/ folders, _bone and _air names, or clean files"
    )
    scan.add_argument("root", metavar="FOLDER")
    scan.add_argument("--bone", default="bone", help="name of the folder or suffix of the sensor (default: bone)")
    scan.add_argument("--air", default="air", help="name of the folder or suffix of the microphone (default: air)")
    pair = actions.add_parser("pair", help="pair the files of two folders that have the same names")
    pair.add_argument("bone", metavar="BONE_DIR")
    pair.add_argument("air", metavar="AIR_DIR")
    for action in (scan, pair):
        action.add_argument(
            "--speaker-regex",
            help="regular expression whose first group in the path is the speaker (default: the folder)",
        )
        action.add_argument("--corpus", default="", help="a name for the corpus")
    align = actions.add_parser("align", help="measure delays, keep usable pairs, report on all pairs")
    align.add_argument("manifest", metavar="MANIFEST")
    align.add_argument(
        "--max-delay", type=float, metavar="MS", help="largest delay to search (default: any that leaves an overlap)"
    )
    align.add_argument("--min-peak", type=float, default=0.2, help="smallest correlation to accept (default: 0.2)")
    align.add_argument(
        "--min-overlap", type=float, default=0.5, metavar="S", help="shortest overlap to accept (default: 0.5)"
    )
    align.add_argument(
        "--max-drift", type=float, default=1000.0, metavar="PPM", help="largest clock drift (default: 1000)"
    )
    _add_import(
        actions.add_parser("import", help="convert a published corpus in Parquet files to sound files and manifests")
    )
    split = actions.add_parser("split", help="split by speaker: no speaker is in both parts")
    split.add_argument("manifest", metavar="MANIFEST")
    split.add_argument("--fraction", type=float, default=0.1, help="share of the duration to hold out (default: 0.1)")
    split.add_argument("--seed", type=int, default=0)
    for action, outputs in ((scan, 1), (pair, 1), (align, 1), (split, 2)):
        names = ("TRAIN.jsonl", "HELD_OUT.jsonl") if outputs == 2 else ("OUT.jsonl",)
        action.add_argument("-o", "--out", nargs=outputs, required=True, metavar=names)
        action.add_argument("--report", metavar="FILE.json", help="write what was found, for machines")
        action.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    scan.set_defaults(action=_scan)
    pair.set_defaults(action=_pair)
    align.set_defaults(action=_align)
    split.set_defaults(action=_split)


def _add_import(action: ArgumentParser) -> None:
    action.add_argument("sources", nargs="+", metavar="FOLDER_OR_PARQUET", help="Parquet files, or folders of them")
    action.add_argument("--corpus", required=True, help="vibravox, taps, or a name of your own with --air and --sensor")
    action.add_argument(
        "--sensor", nargs="+", default=[], help="columns of the sensors, or all (default: the throat microphone)"
    )
    action.add_argument("--air", default="", help="column of the air microphone")
    action.add_argument("--subset", default="", help="subset of Vibravox (default: speech_clean)")
    action.add_argument(
        "--sample-rate",
        type=int,
        default=16000,
        metavar="HZ",
        help="sample rate of the files to write (default: 16000; 0: unchanged)",
    )
    action.add_argument(
        "-o",
        "--out",
        dest="folder",
        required=True,
        metavar="FOLDER",
        help="output folder; existing files are kept and the import continues",
    )
    action.add_argument("--report", metavar="FILE.json", help="write what was found, for machines")
    action.add_argument("--overwrite", action="store_true", help="replace a report that exists")
    action.set_defaults(action=_import, out=[])


def run(args: Namespace) -> int:
    for path in filter(None, (*args.out, args.report)):
        if Path(path).exists() and not args.overwrite:
            raise DataError("exists already (--overwrite replaces it)", subject=path)
    return int(args.action(args))


def _scan(args: Namespace) -> int:
    from twostage.data.manifest import scan

    problems: list[str] = []
    entries = scan(
        args.root, bone=args.bone, air=args.air, speaker=args.speaker_regex, corpus=args.corpus, problems=problems
    )
    return _listed(args, entries, problems)


def _pair(args: Namespace) -> int:
    from twostage.data.manifest import pair

    problems: list[str] = []
    entries = pair(args.bone, args.air, speaker=args.speaker_regex, corpus=args.corpus, problems=problems)
    return _listed(args, entries, problems)


def _listed(args: Namespace, entries: "Sequence[Entry]", problems: Sequence[str]) -> int:
    _write(args.out[0], entries, args)
    for problem in problems[:SHOWN]:
        print(f"left out: {problem}")
    if len(problems) > SHOWN:
        print(f"... and {len(problems) - SHOWN} more")
    _report(args, {"entries": len(entries), **_summary(entries), "problems": list(problems)})
    return 0


def _align(args: Namespace) -> int:
    from tqdm import tqdm

    from twostage.data.align import AlignConfig, agree_on_polarity, align
    from twostage.data.manifest import read_manifest

    max_delay = inf if args.max_delay is None else args.max_delay / 1000
    limits = AlignConfig(max_delay, args.min_peak, args.min_overlap, max_drift=args.max_drift)
    problems: list[str] = []
    entries = read_manifest(args.manifest, problems=problems)
    silent = is_quiet(args) or len(entries) < 20 or None
    progress = tqdm(align(entries, limits), total=len(entries), disable=silent, unit="pair")
    verdicts = agree_on_polarity(list(progress))
    if not verdicts and not problems:
        raise DataError("no pairs", subject=args.manifest)
    kept = [entry for entry, verdict in verdicts if not verdict.problem]
    print(_table([verdict for _, verdict in verdicts]))
    for problem in problems:
        print(f"left out: {problem}")
    _report(args, {"kept": len(kept), "pairs": [asdict(verdict) for _, verdict in verdicts], "problems": problems})
    if not kept:
        raise DataError(f"none of the {len(verdicts)} pairs is fit for use", subject=args.manifest)
    _write(args.out[0], kept, args)
    return 0


def _import(args: Namespace) -> int:
    from tqdm import tqdm

    from twostage.data.corpora import import_config, import_corpus

    settings = {"air": args.air, "sensors": args.sensor, "subset": args.subset, "sample_rate": args.sample_rate}
    config = import_config(args.corpus, **settings)
    with tqdm(unit="row", disable=None) as bar:

        def progress(name: str, done: int, total: int) -> None:
            bar.set_description(f"{name} {done}/{total}", refresh=False)
            bar.update()

        result = import_corpus(args.sources, Path(args.folder), config, progress=progress)
    for problem in result.problems[:SHOWN]:
        print(f"left out: {problem}")
    if result.passed_over:
        print(f"passed over: {len(result.passed_over)} files of other subsets than {config.subset}")
    if shared := result.in_two_splits:
        print(f"warning: {len(shared)} speakers are in more than one split: {', '.join(shared[:SHOWN])}")
    summary = {split: _summary(entries) for split, entries in result.manifests.items()}
    for split, numbers in summary.items():
        print(
            f"{Path(args.folder) / split}.jsonl: {numbers['pairs']} pairs of {len(numbers['speakers'])} speakers, "
            f"{numbers['seconds'] / 3600:.2f} hours"
        )
    _report(args, {"splits": summary, "problems": result.problems, "passed_over": result.passed_over})
    return 1 if result.problems else 0


def _split(args: Namespace) -> int:
    from twostage.data.manifest import read_manifest, split_by_speaker

    parts = split_by_speaker(read_manifest(args.manifest), args.fraction, args.seed)
    for path, entries in zip(args.out, parts, strict=True):
        _write(path, entries, args)
    _report(args, {path: _summary(entries) for path, entries in zip(args.out, parts, strict=True)})
    return 0


def _write(path: str, entries: "Sequence[Entry]", args: Namespace) -> None:
    from twostage.data.manifest import write_manifest

    write_manifest(path, entries, overwrite=args.overwrite)
    summary = _summary(entries)
    print(
        f"{path}: {summary['pairs']} pairs and {summary['clean']} clean files of {len(summary['speakers'])} speakers, "
        f"{summary['seconds'] / 60:.1f} minutes"
    )


def _summary(entries: "Sequence[Entry]") -> dict[str, Any]:
    pairs = sum(entry.paired for entry in entries)
    return {
        "pairs": pairs,
        "clean": len(entries) - pairs,
        "seconds": round(sum(entry.seconds for entry in entries), 3),
        "speakers": sorted({entry.speaker for entry in entries}),
    }


def _table(verdicts: "Sequence[Verdict]") -> str:
    lines = [
        f"{'pair':40} {'s':>7} {'delay ms':>10} {'drift ppm':>9} {'peak':>6} {'polarity':>8} "
        f"{'bone dB':>8} {'air dB':>8}  verdict"
    ]
    shared = os.path.commonpath([Path(v.name).parent for v in verdicts]) if verdicts else ""
    lines += [
        f"{Path(v.name).relative_to(shared).as_posix()[-40:]:40} "
        f"{v.seconds:7.2f} {v.delay * 1000:+10.3f} {v.drift:+9.1f} {abs(v.peak):6.2f} "
        f"{'inverted' if v.inverted else 'same':>8} "
        f"{v.bone_level:8.1f} {v.air_level:8.1f}  {v.problem or 'good'}"
        for v in verdicts
    ]
    good = [verdict for verdict in verdicts if not verdict.problem]
    return "\n".join([*lines, f"{len(good)} of {len(verdicts)} pairs are fit for use"])


def _report(args: Namespace, values: dict[str, Any]) -> None:
    if not args.report:
        return
    from twostage.utils.files import replacing

    # JSON has no infinity, which is the level of silence
    text = json.dumps(values, indent=2, ensure_ascii=False).replace("-Infinity", "null")
    with replacing(args.report, overwrite=args.overwrite) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
