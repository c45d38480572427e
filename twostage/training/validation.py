"""Validation: a fixed set of held-out pairs, the output of a model for them, and objective scores."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from twostage.audio.levels import leveled, rms
from twostage.data.aligned_pair import AlignedPair, open_pair, read_mono
from twostage.data.manifest import Entry
from twostage.data.noise import Air
from twostage.data.pairs import PairConfig
from twostage.data.simulator import load_sensor, seeded, simulate
from twostage.evaluation.metrics import NO_REFERENCE, SILENCE, score
from twostage.models.features import LogMel
from twostage.training.losses import mel_l1
from twostage.utils.errors import DataError

Array = NDArray[np.float32]


class Example(NamedTuple):
    """Held-out speech: clean (1, 1, T) and degraded (1, C, T); ``real`` if the degraded side was recorded."""

    name: str
    degraded: Tensor
    clean: Tensor
    real: bool


class Estimate(NamedTuple):
    """The output of a model for an example: log-mels (n_mels, L), and audio (L * hop_length,) if it generates sound."""

    mel: Tensor
    audio: Array | None


Estimator = Callable[[nn.Module, Example], Estimate]


def examples(
    entries: Sequence[Entry],
    config: PairConfig,
    *,
    items: int,
    seconds: float,
    hop_length: int,
    noise: Sequence[str] = (),
) -> list[Example]:
    """At most ``items`` of the entries, evenly spaced, cut to ``seconds``; the same in every call.

    Clean speech is degraded by the sensors of the config in turn, seeded by its position in the manifest. The air
    channel, if there is one, is simulated in the same way, with a file of ``noise``.
    """
    usable = [entry for entry in entries if entry.clean]
    if not usable:
        raise DataError("data.valid: no entry has a clean file")
    indices = np.unique(np.linspace(0, len(usable) - 1, min(items, len(usable))).round().astype(int))
    chosen = [_example(usable[index], config, int(index), seconds, hop_length) for index in indices]
    return [_with_air(example, config, index, noise) for example, index in zip(chosen, indices, strict=True)]


def _with_air(example: Example, config: PairConfig, index: int, noise: Sequence[str]) -> Example:
    if not config.air_snr_db:
        return example
    lowest, highest = config.air_snr_db
    air = Air(seeded(int(index), "snr").uniform(lowest, highest), tuple(sorted(noise)))
    air_channel = leveled(air.of(example.clean[0, 0].numpy(), config.sample_rate, str(index)), config.sample_rate)
    return example._replace(degraded=torch.cat([example.degraded, torch.from_numpy(air_channel)[None, None]], 1))


def _example(entry: Entry, config: PairConfig, index: int, seconds: float, hop_length: int) -> Example:
    degraded, clean = _pair(entry, config, index).cut()
    length = min(len(clean), round(seconds * config.sample_rate)) // hop_length * hop_length
    if not length:
        raise DataError(f"data.valid: shorter than a frame of {hop_length} samples", subject=entry.name)
    for side, audio in ("degraded", degraded[:length]), ("clean", clean[:length]):
        if rms(audio) < SILENCE:  # the score of any output would be perfect or undefined
            within = f"its first {length / config.sample_rate:.1f} s (valid.seconds)"
            raise DataError(
                f"data.valid: the {side} channel is silent in {within}: it cannot be scored", subject=entry.name
            )
    tensors = [torch.from_numpy(np.ascontiguousarray(side[:length]))[None, None] for side in (degraded, clean)]
    return Example(entry.name, tensors[0], tensors[1], entry.paired)


def _pair(entry: Entry, config: PairConfig, index: int) -> AlignedPair:
    """Both channels, aligned and each at LEVEL: as recorded, or with the degraded one simulated."""
    rate = config.sample_rate
    if entry.paired:
        degraded, clean = (leveled(side, rate) for side in open_pair(entry, rate))
        return AlignedPair(degraded, clean)
    clean = leveled(read_mono(entry.clean or "", rate), rate)
    if not config.sensors:
        return AlignedPair(clean, clean)
    sensor = load_sensor(config.sensors[index % len(config.sensors)])
    return AlignedPair(leveled(simulate(clean, rate, sensor, seeded(index, "valid")), rate), clean)


@torch.no_grad()
def score_examples(
    model: nn.Module, estimate: Estimator, held_out: Sequence[Example], names: Sequence[str], mel: LogMel
) -> dict[str, float]:
    """Mean scores of ``model``; with real and simulated examples, also those of each kind.

    "mel_l1" is that of the log-mels if there is no sound, otherwise that of level-aligned sound. Sound is scored at the
    sample rate for which the metrics are defined, whatever that of ``mel`` is.
    """
    rows: list[tuple[bool, dict[str, float]]] = []
    for example in held_out:
        output = estimate(model, example)
        if output.audio is None:
            rows.append((example.real, {"mel_l1": float(mel_l1(output.mel, mel(example.clean)[0]))}))
        else:
            reference = example.clean[0, 0].cpu().numpy()[: len(output.audio)]
            scores, _ = score(reference, output.audio, tuple(names), sample_rate=mel.config.sample_rate)
            rows.append((example.real, scores))
    kinds = {"": rows, "_real": [r for r in rows if r[0]], "_simulated": [r for r in rows if not r[0]]}
    return {
        f"{name}{suffix}": _mean([row[name] for _, row in chosen])
        for suffix, chosen in kinds.items()
        if chosen and (not suffix or len(chosen) < len(rows))
        for name in names
    }


def bounds(held_out: Sequence[Example], names: Sequence[str], sample_rate: int) -> dict[str, dict[str, float]]:
    """Mean scores of the input ("raw") and of the clean speech ("clean") by the no-reference metrics in ``names``.

    They put the scores of a model into context. Empty if there are no such metrics.
    """
    metrics = [name for name in names if name in NO_REFERENCE]
    sides = {
        "raw": [example.degraded[0, 0].cpu().numpy() for example in held_out],
        "clean": [example.clean[0, 0].cpu().numpy() for example in held_out],
    }
    if not metrics:
        return {}
    rows = {side: [score(a, a, metrics, sample_rate=sample_rate)[0] for a in audio] for side, audio in sides.items()}
    return {
        side: {name: _mean([row[name] for row in side_rows]) for name in metrics} for side, side_rows in rows.items()
    }


def _mean(values: Sequence[float]) -> float:
    """The mean of the scores that are not NaN; NaN if there are none."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")
