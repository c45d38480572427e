"""Measure which error of the restored log-mels costs most: parts of them are replaced by those of the clean speech.

    python scripts/what_limits.py --pairs pairs.csv results/loo

The folder is one that scripts/leave_one_out.py wrote, so that no model was trained on the speaker on whom it is scored.
A table of means over the pairs is printed.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from twostage.audio.levels import leveled
from twostage.data.manifest import read_manifest
from twostage.evaluation.metrics import score
from twostage.evaluation.pairs import PairSource
from twostage.models import checkpoint
from twostage.models.features import MelConfig, mel_basis
from twostage.models.two_stage import TwoStage
from twostage.utils.errors import DataError, TwoStageError

SCORES = ("stoi", "estoi", "pesq")
PAUSE = 6.0  # natural logarithm of power, below the loudest frame


def centers(config: MelConfig) -> Tensor:
    """Center frequencies of the bands in Hz: (n_mels, 1)."""
    return mel_basis(config, config.sample_rate // 2 + 1).argmax(0)[:, None]


def variants(restored: Tensor, clean: Tensor, config: MelConfig) -> Iterator[tuple[str, Tensor]]:
    """(name, log-mels (1, n_mels, L) with the named part corrected)."""
    hertz, error = centers(config), clean - restored
    power = clean.exp().square().sum(1, keepdim=True).log()
    yield "as restored", restored
    for limit in (500, 1000, 2000):
        yield f"true below {limit} Hz", torch.where(hertz < limit, clean, restored)
    for limit in (1000, 4000):
        yield f"true above {limit} Hz", torch.where(hertz > limit, clean, restored)
    yield "true pauses", torch.where(power > power.max() - PAUSE, restored, clean)
    yield "true mean level of each band", restored + error.mean(-1, keepdim=True)
    yield "true changes slower than 0.3 s", restored + torch.from_numpy(gaussian_filter1d(error.numpy(), 8.0, axis=-1))
    for decibels in (3, 6, 9):
        yield f"{decibels} dB quieter above 1 kHz", restored - (hertz > 1000) * (decibels / 20 * np.log(10))
    yield "clean (copy-synthesis)", clean


@torch.inference_mode()
def scores_of(model: TwoStage, degraded: np.ndarray, clean: np.ndarray) -> dict[str, list[float]]:
    length = min(len(degraded), len(clean)) // model.hop_length * model.hop_length
    sides = [leveled(side[:length], model.sample_rate) for side in (degraded, clean)]
    sensor, clean_audio = (torch.from_numpy(np.ascontiguousarray(side))[None, None] for side in sides)
    input_spectra = model.mel.stft.input_spectra(sensor)
    restored, scores = model.restored(input_spectra), {}
    for name, mel in variants(restored, model.mel(clean_audio), model.config.vocoder.mel):
        generated = model.vocoder(mel.float(), input_spectra, sensor)[0, 0].numpy()
        scores[name] = list(score(sides[1], generated, SCORES)[0].values())
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="manifest of pairs")
    parser.add_argument("folder", type=Path, help="folder that scripts/leave_one_out.py wrote")
    options = parser.parse_args()
    rows: dict[str, list[list[float]]] = {}
    source = PairSource(Path(options.pairs).parent)
    trainings = {speaker: path for path in options.folder.glob("*/run") for speaker in path.parent.name.split("+")}
    for entry in read_manifest(options.pairs):
        if entry.speaker not in trainings:
            raise DataError(f"{options.folder}: no training there left out speaker {entry.speaker}")
        weights = trainings[entry.speaker] / "last.safetensors"
        model = checkpoint.load(weights, options.folder / "vocoder.safetensors")
        if not isinstance(model, TwoStage):
            raise DataError(f"{weights}: not a restorer")
        for name, values in scores_of(model, *source.read(entry)).items():
            rows.setdefault(name, []).append(values)
    print("| log-mels | STOI | ESTOI | PESQ-WB |\n| --- | ---: | ---: | ---: |")
    for name, scored in rows.items():
        stoi, estoi, pesq = np.mean(scored, axis=0)
        print(f"| {name} | {stoi:.3f} | {estoi:.3f} | {pesq:.2f} |")


if __name__ == "__main__":
    try:
        main()
    except TwoStageError as error:
        sys.exit(f"what_limits: error: {error}")
