"""``twostage evaluate``: scores models on pairs, or on simulated recordings of clean speech."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.commands.options import (
    PRECISION_HELP,
    PRECISIONS,
    add_air_arguments,
    air_for,
    is_quiet,
    models_by_label,
    precision_for,
)
from twostage.utils.devices import DEVICE_HELP, DEVICES, device_for
from twostage.utils.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from twostage.data.manifest import Entry
    from twostage.evaluation.costs import Costs
    from twostage.evaluation.pairs import PairSource
    from twostage.evaluation.results import EvaluationResults

HELP = "score the raw input, restored speech and copy-synthesis against clean speech"
EXAMPLE = """
twostage evaluate --pairs pairs.csv -o scores
twostage evaluate --clean dev.csv --simulate throat --model default --model mine=runs/restorer vocoder.safetensors
twostage evaluate --clean dev.csv --simulate throat --air-snr -5 --noise noise/ --model runs/fusion vocoder.safetensors
twostage evaluate --merge scores/p02 scores/p21 scores/p32 -o scores/all
"""


def add_arguments(parser: ArgumentParser) -> None:
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--pairs", metavar="MANIFEST", help="CSV or JSONL manifest of pairs: columns bone, air, speaker")
    data.add_argument("--clean", metavar="MANIFEST", help="manifest of clean speech, degraded by --simulate")
    data.add_argument("--merge", metavar="DIR", nargs="+", type=Path, help="join the scores of these folders instead")
    parser.add_argument("--simulate", metavar="SENSOR", help="preset or YAML file of the sensor, with --clean")
    add_air_arguments(parser)
    parser.add_argument(
        "--model",
        metavar="[LABEL=]MODEL",
        nargs="+",
        action="append",
        help="name, folder or file; two files are a restorer and a vocoder, a vocoder alone gives copy-synthesis; "
        "repeat for several models; 'none' scores the raw input alone (default: the default model)",
    )
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, help="folder for CSV, tables, summary and pictures")
    parser.add_argument(
        "--metrics",
        metavar="NAME",
        nargs="+",
        help="metrics to compute: pesq, stoi, estoi, lsd, mel_l1, mcd, mos, dnsmos; the last two need no "
        "reference and take seconds per file (default: all)",
    )
    parser.add_argument("--limit", metavar="N", type=_positive, help="score N utterances, evenly spread")
    parser.add_argument(
        "--only-speaker", metavar="S", action="append", default=[], help="score only speaker S; repeatable"
    )
    parser.add_argument("--group-by", choices=("corpus", "speaker"), help="add one table for each group")
    parser.add_argument("--keep-low-band", metavar="HZ", type=float, default=0.0, help="as in `twostage restore`")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the simulation, combined with the name of each file (default: 0)"
    )
    parser.add_argument(
        "--jobs", metavar="N", type=_positive, default=1, help="number of scoring processes (default: 1)"
    )
    parser.add_argument(
        "--pictures", metavar="N", type=int, default=3, help="utterances to plot and save as sound (default: 3)"
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help=DEVICE_HELP)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help=PRECISION_HELP)
    parser.add_argument(
        "--costs",
        metavar="JSON",
        type=Path,
        help="take costs from this summary of another evaluation of the same models",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="start over in a folder that already holds an evaluation"
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def run(args: Namespace) -> int:
    if args.merge:
        return _merge(args)
    from tqdm import tqdm

    from twostage.evaluation import pairs, pictures, report, results, runner, systems

    _check(args)
    names = _metrics(args.metrics)
    source, entries, problems = _entries(args)
    device = device_for(args.device, "--device")
    args.precision = precision_for(args.precision, device)
    compared = systems.load_systems(models_by_label(args.model), device, args.precision)
    systems.check_inputs(compared, source)
    fingerprints = systems.fingerprint(compared)
    stored_costs = results.known_costs(args.costs, fingerprints) if args.costs else {}
    settings = _settings(args) | {"models": fingerprints}
    scored = results.resume(args.out, settings, overwrite=args.overwrite) if args.out else results.EvaluationResults()
    scored.failures += problems
    costs = stored_costs or systems.measure_costs(compared)
    with tqdm(total=len(entries), unit="file", disable=is_quiet(args) or None) as bar:
        runner.evaluate(
            entries,
            source,
            compared,
            scored,
            names=names,
            keep_low_band=args.keep_low_band,
            jobs=args.jobs,
            save=lambda: report.write_rows(args.out / results.ROWS, scored.rows) if args.out else None,
            progress=bar.update,
        )
    code = _publish(args, scored, costs, settings)
    if args.out and args.pictures:
        illustrated = pairs.select(entries, paired=bool(args.pairs), limit=args.pictures)
        pictures.show(args.out, illustrated, source, compared, args.keep_low_band)
    return code


def _check(args: Namespace) -> None:
    from twostage.utils.errors import ConfigError

    if bool(args.clean) != bool(args.simulate):
        raise ConfigError("--clean and --simulate belong together: the sensor that degrades the clean speech")


def _metrics(names: Sequence[str] | None) -> tuple[str, ...]:
    """The metrics to measure, in the order of the table."""
    from twostage.evaluation.report import COLUMNS
    from twostage.utils.errors import ConfigError

    for name in names or ():
        if name not in COLUMNS:
            raise ConfigError(f"--metrics: no metric {name!r}; there are {', '.join(COLUMNS)}")
    return tuple(name for name in COLUMNS if not names or name in names)


def _entries(args: Namespace) -> tuple[PairSource, list[Entry], list[str]]:
    from twostage.data.manifest import read_manifest
    from twostage.data.sensors import load_sensor
    from twostage.evaluation.pairs import PairSource, select

    manifest, problems = args.pairs or args.clean, list[str]()
    sensor = load_sensor(args.simulate) if args.simulate else None
    entries = read_manifest(manifest, problems=problems)
    chosen = select(entries, paired=bool(args.pairs), speakers=args.only_speaker, limit=args.limit)
    return PairSource(Path(manifest).absolute().parent, sensor, args.seed, air_for(args)), chosen, problems


def _settings(args: Namespace) -> dict[str, Any]:
    """The settings that affect the scores; a resumed evaluation must have the same."""
    names = ("pairs", "clean", "simulate", "limit", "only_speaker", "keep_low_band", "seed", "precision")
    settings = {name: getattr(args, name) for name in (*names, "air_snr", "noise")}
    return settings | {"metrics": list(_metrics(args.metrics))}


def _merge(args: Namespace) -> int:
    from twostage.evaluation import report, results
    from twostage.utils.errors import ConfigError

    if args.out and args.out.resolve() in [folder.resolve() for folder in args.merge]:
        raise ConfigError(f"--out {args.out}: is one of the folders to join")
    scored, costs = results.merge(args.merge)
    settings = {"merge": [str(folder) for folder in args.merge]}
    if args.out:
        results.resume(args.out, settings, overwrite=args.overwrite)
        report.write_rows(args.out / results.ROWS, scored.rows)
    return _publish(args, scored, costs, settings)


def _publish(
    args: Namespace, scored: EvaluationResults, costs: Mapping[str, Costs], settings: Mapping[str, Any]
) -> int:
    """Print the tables, write them and the summary, and report failures; returns the exit code."""
    from twostage.evaluation import report, results

    title = Path(args.pairs or args.clean or "merged").name + (f", simulated: {args.simulate}" if args.simulate else "")
    text = report.markdown(scored.rows, costs, scored.failures, title=title, group_by=args.group_by)
    print(text)
    if args.out:
        report.write_text(args.out / results.TABLE, text)
        summary = report.as_json(scored.rows, costs, scored.failures, settings)
        report.write_json(args.out / results.SUMMARY, summary)
    for failure in scored.failures:
        print(f"twostage: failed: {one_line(failure)}", file=sys.stderr)
    return 1 if scored.failures else 0
