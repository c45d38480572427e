"""Measure how much memory training each shipped recipe takes with its own batch, as a table in Markdown.

    python scripts/training_memory.py                       # all of them, some minutes
    python scripts/training_memory.py restorer content eben

Each recipe makes three steps on two seconds of the sample recording, on the CPU, with its discriminators from the first
step on. The peak memory of the process is reported. It runs on Linux and macOS.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from twostage.audio import sound_files
from twostage.utils.memory import peak_memory

SAMPLES = Path(__file__).parent.parent / "samples"
# name -> command, configurations and own settings
RECIPES: dict[str, list[str]] = {
    "restorer": ["train-restorer", "restorer"],
    "restorer fusion": ["train-restorer", "restorer", "fusion"],
    "vocoder": ["train-vocoder", "vocoder"],
    "content": ["train-vocoder", "vocoder", "content"],
    "sensor": ["train-vocoder", "vocoder", "sensor"],
    **{f"hifigan_v{number}": ["train-vocoder", "vocoder", f"hifigan_v{number}"] for number in (1, 2, 3)},
    "finetune": ["finetune", "finetune", "models=[default]", "data.real_fraction=0.5"],
    **{
        name: ["train-enhancer", name]
        for name in ("bilstm", "bsrnn", "bwe", "dccrn", "dpcrn", "eben", "seanet", "wave-unet")
    },
}
BRIEF = ("steps=3", "save_every=9", "log_every=9", "valid.every=9", "valid.items=1", "valid.seconds=1", "threads=1")
PLAIN = ("valid.metrics=[mel_l1]", "valid.best=mel_l1", "optimizer.cooldown=0", "optimizer.warmup=0")
ADVERSARY_FROM_START = "adversary.start=0"


def sample_data(folder: Path) -> list[str]:
    """Settings that name manifests of the sample recording, which are written to ``folder``."""
    for name in ("clean", "throat"):
        audio, rate = sound_files.read(SAMPLES / f"{name}.flac")
        sound_files.write(folder / f"{name}.flac", audio[:, : 2 * rate], rate)
    (folder / "pairs.csv").write_text("bone,air,speaker,seconds\nthroat.flac,clean.flac,s,2.0\n", encoding="utf-8")
    (folder / "clean.csv").write_text("path,speaker,seconds\nclean.flac,s,2.0\n", encoding="utf-8")
    return [f"data.train=[{folder / 'clean.csv'},{folder / 'pairs.csv'}]", f"data.valid=[{folder / 'pairs.csv'}]"]


def command(name: str, data: Sequence[str], run_dir: Path) -> list[str]:
    """The arguments of ``twostage`` that train the recipe ``name``."""
    return [*RECIPES[name], *data, f"run_dir={run_dir}", *BRIEF, *PLAIN, ADVERSARY_FROM_START, "device=cpu"]


def peak_megabytes(arguments: Sequence[str]) -> float:
    """The peak memory of ``twostage`` with these arguments in MB. Raises CalledProcessError if it fails."""
    measure = [sys.executable, __file__, "--child", json.dumps(list(arguments))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(measure, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return float(process.stdout.splitlines()[-1])


def child(arguments: list[str]) -> int:
    """Run ``twostage`` in this process, then print its peak memory."""
    from twostage.cli import main as twostage

    code = twostage(arguments)
    print(peak_memory())
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"of {', '.join(RECIPES)} (default: all)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        return child(json.loads(options.child))
    for name in options.recipes:
        if name not in RECIPES:
            parser.error(f"{name}: no such recipe; there are {', '.join(RECIPES)}")
    print("| recipe | most memory, GB |\n| --- | ---: |")
    for name in options.recipes or RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            command_arguments = command(name, sample_data(Path(folder)), Path(folder, "run"))
            print(f"| `{' '.join(RECIPES[name][:3])}` | {peak_megabytes(command_arguments) / 1000:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
