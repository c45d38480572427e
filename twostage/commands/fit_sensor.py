"""``twostage fit-sensor``: fits the simulator to a sensor, from a few minutes of pairs."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from twostage.utils.errors import DataError

if TYPE_CHECKING:
    from twostage.data.manifest import Entry
    from twostage.data.sensor_fit import FittedSensor

HELP = "fit the simulator to a sensor, from a few minutes of pairs recorded with it and with a microphone"
EXAMPLE = """
twostage fit-sensor recordings/ -o my_sensor.yaml --plot
twostage fit-sensor pairs.csv -o sensor.yaml --exclude-speaker p02
"""


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "pairs", metavar="PAIRS", help="a manifest of pairs (.jsonl, .csv), or a folder of them (see twostage manifest)"
    )
    add("-o", "--out", required=True, metavar="SENSOR.yaml", help="file to write, for --sensor and data.sensors")
    add("--plot", nargs="?", const="", metavar="FILE.png", help="plot pairs and simulation (default: beside OUT)")
    add("--exclude-speaker", action="append", default=[], metavar="NAME", help="leave a speaker out; may be repeated")
    add("--sample-rate", type=int, default=16000, help="rate at which to compare the channels (default: 16000)")
    add("--seed", type=int, default=0, help="seed of the simulations that check the fit (default: 0)")
    add("--overwrite", action="store_true", help="replace outputs that exist")


def run(args: Namespace) -> int:
    import sys

    from twostage.audio.plots import optional
    from twostage.data.sensor_fit import fit_sensor, load_recordings
    from twostage.data.sensor_plot import draw_sensor
    from twostage.data.sensors import save_sensor

    out = Path(args.out)
    plot = None if args.plot is None else Path(args.plot or out.with_suffix(".png"))
    for path in filter(None, (out, plot)):
        if path.exists() and not args.overwrite:
            raise DataError("exists already (--overwrite replaces it)", subject=path)
    if args.sample_rate < 4000:
        raise DataError(f"--sample-rate is {args.sample_rate}, must be at least 4000")
    entries = _usable(args)
    fitted = fit_sensor(load_recordings(entries, args.sample_rate), args.sample_rate, seed=args.seed)
    speakers = sorted({entry.speaker for entry in entries})
    comment = f"fitted to {len(entries)} pairs, {fitted.measured.seconds:.0f} s, speakers: {', '.join(speakers)}"
    save_sensor(out, fitted.sensor, overwrite=args.overwrite, comment=comment)
    if plot:
        with optional(plot, lambda text: print(f"twostage: warning: {text}", file=sys.stderr)):
            draw_sensor(plot, fitted, overwrite=args.overwrite)
    print(_table(fitted))
    print(f"{out}: {comment}")
    return 0


def _usable(args: Namespace) -> "list[Entry]":
    """Usable pairs, aligned; the others are reported."""
    from twostage.data.align import AlignConfig, align
    from twostage.data.manifest import read_manifest, scan

    if Path(args.pairs).is_dir():
        scanned = scan(args.pairs)
        unknown = set(args.exclude_speaker) - {entry.speaker for entry in scanned}
        if unknown:
            raise DataError(f"no speaker {', '.join(sorted(unknown))} to exclude", subject=args.pairs)
        entries = [entry for entry in scanned if entry.speaker not in args.exclude_speaker]
    else:
        entries = read_manifest(args.pairs, exclude_speakers=args.exclude_speaker)
    verdicts = list(align(entries, AlignConfig()))
    if not verdicts:
        raise DataError("no pairs", subject=args.pairs)
    for _, verdict in verdicts:
        if verdict.problem:
            print(f"left out: {verdict.name}: {verdict.problem}")
    kept = [entry for entry, verdict in verdicts if not verdict.problem]
    if not kept:
        raise DataError(
            f"none of the {len(verdicts)} pairs is fit for use: {verdicts[0][1].problem}", subject=args.pairs
        )
    return kept


def _table(fitted: "FittedSensor") -> str:
    """Measured and simulated statistics in selected bands."""
    import numpy as np

    lines = ["      Hz  response dB  (simulated)  coherence  (simulated)  noise dB/Hz  (simulated)"]
    real, simulated = fitted.measured, fitted.simulated
    for hz in (125, 250, 500, 1000, 2000, 3000, 4000, 6000):
        if hz < real.frequencies[-1]:
            k = int(np.abs(real.frequencies - hz).argmin())
            lines.append(
                f"{real.frequencies[k]:8.0f}  {real.response_db[k]:11.1f}  {simulated.response_db[k]:11.1f}"
                f"  {real.coherence[k]:9.2f}  {simulated.coherence[k]:11.2f}"
                f"  {real.noise_db[k]:11.1f}  {simulated.noise_db[k]:11.1f}"
            )
    limit = f"band limit {real.band_limit:.0f} Hz (simulated {simulated.band_limit:.0f})"
    return "\n".join([*lines, limit if real.band_limit else "no band limit"])
