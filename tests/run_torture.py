"""Test twostage by fault injection, and write a table of the results, which docs/RELIABILITY.md contains.

    python tests/run_torture.py -o results/torture                              # all parts, an hour or more
    python tests/run_torture.py -o results/torture --parts audio,kills --seed 1
    python tests/run_torture.py -o results/torture --report docs/RELIABILITY.md # the table between its markers
    python tests/run_torture.py --replay results/torture/failures/audio/017     # repeat a case in its folder

A complete part is not run again, except with --again. The folder of a case that breaks the contract is kept with its
input files below OUT/failures. It needs Linux: it forks, mounts a small disk if it may, and reads /proc.
"""

import argparse
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torture import inputs, kills, pickles, places, volume
from torture.assets import QUICK, Assets, preload
from torture.harness import Limits, Place, Session, violations

from twostage.utils.files import replacing

Part = Callable[[Session, Assets], None]

PARTS: dict[str, Part] = {
    "audio": inputs.audio,
    "weights": inputs.weights,
    "pickles": pickles.pickles,
    "kills": kills.kills,
    "disk": places.disk,
    "signals": places.signals,
    "many": volume.many,
    "long": volume.long,
}
# the kinds of files and of names in a short run
KINDS: tuple[str, ...] = (
    *("weights, restore", "restorer and vocoder, restore", "weights, stream", "weights, init", "state, resume"),
    *("log of a run, resume", "settings of a run, resume", "generator, import-hifigan", "sensor, simulate"),
    *("generator's JSON, import-hifigan", "settings, train-restorer", "settings, train-vocoder", "JSONL, split"),
    *("JSONL, align", "CSV, split", "CSV, fit-sensor"),
)
NAMES = ("no UTF-8", "83 letters of three bytes", "escape", "suffix of raw sound", "link to itself", "endless device")
ESCAPES = ("restore, pattern", "restore, folder above", "simulate, folder", "manifest align")
SHORT: dict[str, Part] = {
    "audio": lambda session, assets: inputs.audio(session, assets, 20, NAMES),
    "weights": lambda session, assets: inputs.weights(session, assets, 0, KINDS),
    "pickles": lambda session, assets: pickles.pickles(session, assets, ("torch",), ESCAPES),
    "kills": lambda session, assets: kills.kills(session, assets, 3, ("train-vocoder",), most=3),
    "disk": places.briefly,
}
BEGIN, END = "<!-- torture: begin -->", "<!-- torture: end -->"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("results/torture"), help="folder for the results")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"only these parts (default: {','.join(PARTS)})")
    parser.add_argument("--seed", type=int, default=0, help="seed of damage and of moments (default: 0)")
    parser.add_argument("--short", action="store_true", help="a few cases of the quick parts, as in the tests")
    parser.add_argument("--again", action="store_true", help="also run complete parts")
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="only write the table there")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="only repeat a kept case")
    args = parser.parse_args(arguments)
    args.parts = args.parts.split(",")
    if args.short:
        args.parts = [part for part in args.parts if part in SHORT]
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return args


def run(args: argparse.Namespace) -> int:
    preload(QUICK if args.short else ())
    session, assets = Session(args.out.absolute(), args.seed), Assets(args.out.absolute() / "assets")
    for part in args.parts:
        result_path = session.out / f"{part}.json"
        if result_path.exists() and not args.again and json.loads(result_path.read_text())["seed"] == args.seed:
            session.say(f"{part}: complete, skipped")
            continue
        session.begin(part)
        (SHORT if args.short else PARTS)[part](session, assets)
        result = session.result() | {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
        with replacing(result_path) as partial:
            partial.write_text(json.dumps(result, indent=1) + "\n")
        session.say(line(result))
    results = read(session.out)
    with replacing(session.out / "table.md") as partial:
        partial.write_text(table(results))
    return int(any(row["problems"] for result in results for row in result["rows"]))


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"{part}.json").read_text()) for part in PARTS if (out / f"{part}.json").exists()]


def machine() -> str:
    import torch

    return f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"


def line(result: dict[str, Any]) -> str:
    rows = result["rows"]
    broken = sum(bool(row["problems"]) for row in rows)
    return f"{result['part']}: {len(rows)} cases, {broken} broken, {result['seconds']:.0f} s"


def table(results: Sequence[dict[str, Any]]) -> str:
    """A Markdown table with a line per kind of case, and a list of the broken cases."""
    lines = ["| part | cases | went through | refused in a line | stopped | broken | slowest | most memory |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    lines += [_cells(result["part"], result["rows"]) for result in results]
    for result in results:
        lines += ["", f"`{result['part']}`, {result['seconds'] / 60:.1f} minutes, by kind:", ""]
        lines += ["| | cases | went through | refused in a line | stopped | broken | slowest | most memory |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
        kinds = dict.fromkeys(_kind(row) for row in result["rows"])
        lines += [_cells(kind, [row for row in result["rows"] if _kind(row) == kind]) for kind in kinds]
        lines += [f"\n{note}" for note in result["notes"]]
    broken = [(result["part"], row) for result in results for row in result["rows"] if row["problems"]]
    lines += ["", *(f"- {part} {row['name']}, {row['kind']}: {'; '.join(row['problems'])}" for part, row in broken)]
    return "\n".join(lines).rstrip() + "\n"


def _kind(row: dict[str, Any]) -> str:
    return (
        str(row["kind"]).partition(":")[0].partition(",")[0]
        if ":" not in row["kind"]
        else row["kind"].partition(":")[0]
    )


def _cells(name: str, rows: Sequence[dict[str, Any]]) -> str:
    ends = Counter("broken" if r["problems"] else {0: "through", 1: "refused"}.get(r["code"], "stopped") for r in rows)
    figures = (len(rows), *(ends[end] for end in ("through", "refused", "stopped", "broken")))
    slowest, most = max(r["seconds"] for r in rows), max(r["megabytes"] for r in rows)
    return f"| {name} | {' | '.join(map(str, figures))} | {slowest:.1f} s | {most:.0f} MB |"


def report(out: Path, path: Path) -> None:
    """Put the table between the markers of a Markdown file."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path}: lacks the lines {BEGIN} and {END}")
    with replacing(path) as partial:
        partial.write_text(f"{before}{begin}\n\n{table(read(out))}\n{end}{after}", encoding="utf-8")
    print(path)


def replay(folder: Path) -> int:
    """Run the commands of a kept case in its folder; return 1 if one of them still breaks the contract."""
    preload()
    case, place = json.loads((folder / "case.json").read_text()), Place(folder.absolute())
    broken = False
    for arguments in case["commands"]:
        outcome = place.run(arguments, Limits())
        problems = violations(outcome)
        broken |= bool(problems)
        print(f"$ twostage {' '.join(arguments)}\n{outcome.out}{outcome.err}-> {outcome.code}", end=", ")
        print(f"{outcome.seconds:.1f} s, {outcome.megabytes:.0f} MB; {'; '.join(problems) or 'fine'}")
    return int(broken)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    if args.replay:
        return replay(args.replay)
    if args.report:
        report(args.out, args.report)
        return 0
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
