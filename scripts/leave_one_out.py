"""Score a restorer's adaptation to a sensor on speakers that are not in its training, with one training per speaker.

    python scripts/leave_one_out.py --pairs pairs.csv --clean train.csv --init base --vocoder default -o results/loo

For each speaker of the pairs: fit the sensor to the other speakers, adapt the restorer to it (configs/adapt.yaml), and
evaluate on the speaker that was left out. The last step is one table of all. It continues where it was stopped.
`--at-a-time 3` leaves out three speakers in each training, which takes a third of the time and scores a little less.
"""

import argparse
import sys
from pathlib import Path

from twostage.cli import step
from twostage.data.manifest import read_manifest
from twostage.models import checkpoint
from twostage.utils.errors import TwoStageError


def groups(speakers: list[str], size: int) -> list[list[str]]:
    """The speakers in groups of ``size`` at most, as many groups as necessary."""
    count = -(-len(speakers) // size)
    return [speakers[first::count] for first in range(count)]


def left_out(speakers: list[str], vocoder: Path, options: argparse.Namespace) -> Path:
    """Train without ``speakers`` and score on them; return the folder of the scores."""
    folder: Path = options.output / "+".join(speakers)
    sensor, weights = folder / "sensor.yaml", folder / "run" / "last.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    if not sensor.exists():
        step("fit-sensor", options.pairs, *repeated("--exclude-speaker", speakers), "-o", sensor)
    excluded = ",".join(f"'{speaker}'" for speaker in speakers)
    step(
        *(
            "train-restorer",
            "restorer",
            *options.overlay,
            "adapt",
            f"init_from={options.init}",
            f"run_dir={folder / 'run'}",
        ),
        *(f"data.train=[{options.clean},{options.pairs}]", f"data.exclude_speakers=[{excluded}]"),
        *(f"data.valid=[{options.clean}]", f"data.sensors=[{sensor},any,eben]", *options.settings),
        *["--resume"] * (folder / "run" / "config.yaml").exists(),
    )
    scores = folder / "scores"
    step(
        *("evaluate", "--pairs", options.pairs, *repeated("--only-speaker", speakers), "-o", scores),
        *("--model", f"{options.label}={weights}", vocoder, *options.evaluate.split()),
    )
    return scores


def repeated(option: str, values: list[str]) -> list[str]:
    return [argument for value in values for argument in (option, value)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="manifest of pairs")
    parser.add_argument("--clean", required=True, help="manifest of clean speech")
    parser.add_argument("--init", required=True, help="the restorer to adapt: a model's name, folder or file")
    parser.add_argument("--vocoder", required=True, help="the vocoder: a model's name, folder or file")
    parser.add_argument(
        "--overlay", action="append", default=[], help="overlay that the restorer needs, such as causal"
    )
    parser.add_argument("--at-a-time", type=int, default=1, help="speakers that a training leaves out (default: 1)")
    parser.add_argument("--label", default="two-stage", help="name of the system in the table")
    parser.add_argument("--evaluate", default="", help="further arguments of twostage evaluate, in one string")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of trainings and scores")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the adaptation")
    options = parser.parse_args()
    speakers = sorted({entry.speaker for entry in read_manifest(options.pairs)})
    if not 1 <= options.at_a_time < len(speakers):
        parser.error(
            f"--at-a-time is {options.at_a_time}, must be at least 1 and less than the speakers, {len(speakers)}"
        )
    vocoder = options.output / "vocoder.safetensors"  # only the vocoder, since the given path may contain both stages
    stage = checkpoint.load_stage(options.vocoder, "vocoder")
    checkpoint.save(vocoder, stage, provenance={"taken_from": options.vocoder})
    scores = [left_out(group, vocoder, options) for group in groups(speakers, options.at_a_time)]
    step("evaluate", "--merge", *scores, "-o", options.output / "all", "--group-by", "speaker")


if __name__ == "__main__":
    try:
        main()
    except TwoStageError as error:
        sys.exit(f"leave_one_out: error: {error}")
