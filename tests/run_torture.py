"""Try to break twostage, and write down what held: docs/RELIABILITY.md has the table.

    python tests/run_torture.py -o results/torture                              # all parts: an hour or more
    python tests/run_torture.py -o results/torture --parts audio,kills --seed 1
    python tests/run_torture.py -o results/torture --report docs/RELIABILITY.md # the table between its markers
    python tests/run_torture.py --replay results/torture/failures/audio/017     # a case again, in its folder

A part that is complete is not run again, unless --again. A case that breaks the contract keeps its folder, with the
files that it was given, below OUT/failures. Linux alone: it forks, mounts a small disk if it may, and reads /proc.
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
from torture.harness import Limits, Place, Session, complaints

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
# kinds of files that read, and of names, which a short run has
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


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("results/torture"), help="folder of results")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of them (default: {','.join(PARTS)})")
    parser.add_argument("--seed", type=int, default=0, help="other damage, other moments (default: 0)")
    parser.add_argument("--short", action="store_true", help="a few cases of the quick parts, which tests run")
    parser.add_argument("--again", action="store_true", help="run parts that are complete, too")
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="write the table there and run nothing")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="run a kept case again, and nothing else")
    args = parser.parse_args(words)
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
        done = session.out / f"{part}.json"
        if done.exists() and not args.again and json.loads(done.read_text())["seed"] == args.seed:
            session.say(f"{part}: complete, skipped")
            continue
        session.begin(part)
        (SHORT if args.short else PARTS)[part](session, assets)
        result = session.result() | {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
        with replacing(done) as partial:
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
    """Markdown: a line a kind of case, and what broke."""
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
    """Run the commands of a kept case in its folder; 1 if one of them breaks the contract still."""
    preload()
    case, place = json.loads((folder / "case.json").read_text()), Place(folder.absolute())
    broken = False
    for words in case["commands"]:
        outcome = place.run(words, Limits())
        problems = complaints(outcome)
        broken |= bool(problems)
        print(f"$ twostage {' '.join(words)}\n{outcome.out}{outcome.err}-> {outcome.code}, {outcome.seconds:.1f} s, "
              f"{outcome.megabytes:.0f} MB; {'; '.join(problems) or 'fine'}")  # fmt: skip
    return int(broken)


def main(words: Sequence[str] | None = None) -> int:
    args = arguments(words)
    if args.replay:
        return replay(args.replay)
    if args.report:
        report(args.out, args.report)
        return 0
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
