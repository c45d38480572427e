"""Train a restorer on a published corpus and score it on the official test split, in one command.

    python scripts/run_corpus.py vibravox DOWNLOADED -o runs/vibravox

It imports the Parquet files in the folder DOWNLOADED, trains with the shipped settings of the corpus
(configs/corpora/), and evaluates with the vocoder of `default`. Settings as key=value go to the training. The same
command continues where it was stopped.
"""

import argparse
from pathlib import Path

from twostage.cli import step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", choices=("taps", "vibravox"), help="the corpus, which has settings in configs/")
    parser.add_argument("folder", type=Path, help="folder of its Parquet files")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of sound, training and scores")
    parser.add_argument("--overlay", action="append", default=[], help="further settings files, such as causal")
    parser.add_argument("--vocoder", default="default/vocoder", help="vocoder of the evaluation (default: default's)")
    parser.add_argument("--evaluate", default="", help="further arguments of twostage evaluate, in one string")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the training")
    options = parser.parse_intermixed_args()
    data, run = options.output / "corpus", options.output / "run"
    train, valid, test = (data / f"{split}.jsonl" for split in ("train", "valid", "test"))
    if not all(manifest.exists() for manifest in (train, valid, test)):
        step("manifest", "import", options.folder, "--corpus", options.corpus, "-o", data)
    step(
        *("train-restorer", "restorer", options.corpus, *options.overlay, f"run_dir={run}"),
        *(f"data.train=[{train}]", f"data.valid=[{valid}]", *options.settings),
        *["--resume"] * (run / "config.yaml").exists(),
    )
    system = f"{options.corpus}={run}", options.vocoder
    scores = options.output / "scores"
    step("evaluate", "--pairs", test, "--model", *system, "-o", scores, *options.evaluate.split())


if __name__ == "__main__":
    main()
