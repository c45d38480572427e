"""Imports published HiFi-GAN generators as vocoders of this package.

Source: the authors' reference code of Kong, Kim and Bae, "HiFi-GAN", NeurIPS 2020. The network is the same, including
the slope of 0.01 before the last convolution. Their mel adds 1e-9 to the power of a bin before the root, where ours
clamps it to at least 1e-10. The difference is limited to bands that speech leaves nearly empty: it is less than 0.06,
and less than 0.001 on average over a recording.
"""

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from twostage.models import checkpoint
from twostage.models.vocoder import Vocoder, VocoderConfig
from twostage.utils.errors import CheckpointError, ConfigError, reason_of
from twostage.utils.schema import build, parse_json

MEL = {  # theirs -> ours
    "sampling_rate": "sample_rate", "n_fft": "n_fft", "win_size": "win_length", "hop_size": "hop_length",
    "num_mels": "n_mels", "fmin": "fmin", "fmax": "fmax",
}  # fmt: skip
NETWORK = (
    "upsample_rates", "upsample_kernel_sizes", "upsample_initial_channel", "resblock", "resblock_kernel_sizes",
    "resblock_dilation_sizes",
)  # fmt: skip
# settings of their training, without effect on the network; num_freq is not used by their code either
TRAINING = (
    "num_gpus", "batch_size", "learning_rate", "adam_b1", "adam_b2", "lr_decay", "seed", "segment_size", "num_freq",
    "num_workers", "dist_config",
)  # fmt: skip
LOSS = "fmax_for_loss"  # for a training that continues from these weights; null or missing: half the sample rate
CONVOLUTIONS = {"1": 3, "2": 2}  # number of dilations that a block of each type uses; their code ignores further ones


def import_hifigan(weights: str | Path, config: str | Path, out: str | Path, *, overwrite: bool = False) -> Vocoder:
    """Read a published generator and its JSON, write them to ``out`` as a vocoder's checkpoint, and return it, folded.

    ``weights`` is a torch file of {"generator": tensors} or of the tensors alone, with weight normalization or without;
    it is read weights-only. Raises ConfigError or CheckpointError for a setting or tensor that is missing, unknown or
    of the wrong size, and if ``out`` exists.
    """
    if Path(out).exists() and not overwrite:
        raise CheckpointError("exists already", subject=out)
    model = Vocoder(read_config(config))
    checkpoint.assign(model, _renamed(_read_tensors(Path(weights)), weights), str(weights))
    provenance = {"imported from": Path(weights).name, "sha256": sha256(Path(weights).read_bytes()).hexdigest()}
    checkpoint.save(out, model, provenance=provenance)
    return model.fold().eval()


def read_config(path: str | Path) -> VocoderConfig:
    """Settings from a published JSON. Raises ConfigError that names the file and the field."""
    try:
        values = parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(reason_of(error), subject=path) from None
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}", subject=path) from None
    if not isinstance(values, dict):
        raise ConfigError("not a JSON object", subject=path)
    try:
        return _config(values)
    except ConfigError as error:
        raise ConfigError(f"{error}", subject=path) from None


def _config(values: Mapping[str, Any]) -> VocoderConfig:
    for key in (*MEL, *NETWORK):
        if key not in values:
            raise ConfigError("missing", subject=key)
    for key in values:
        if key not in (*MEL, *NETWORK, *TRAINING, LOSS):
            raise ConfigError("not a setting of the published generator", subject=key)
    mel = {ours: values[theirs] for theirs, ours in MEL.items()}
    if mel["fmax"] is None and isinstance(mel["sample_rate"], int):
        mel["fmax"] = mel["sample_rate"] / 2
    network = {key: values[key] for key in NETWORK}
    kind = str(network["resblock"])
    if kind not in CONVOLUTIONS:
        raise ConfigError(f"resblock is {network['resblock']!r}, must be '1' or '2'")
    config = build(VocoderConfig, network | {"resblock": int(kind), "mel": mel, LOSS: values.get(LOSS)})
    count = CONVOLUTIONS[kind]
    if any(len(dilations) < count for dilations in config.resblock_dilation_sizes):
        raise ConfigError(f"resblock_dilation_sizes: blocks of type {kind} need {count} dilations each")
    return replace(config, resblock_dilation_sizes=tuple(sizes[:count] for sizes in config.resblock_dilation_sizes))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError("no such file", subject=path)
    try:
        state = checkpoint.unpickled(path)
    except Exception:  # on arbitrary bytes, the unpickler can raise anything
        raise CheckpointError(
            "not a file of tensors, damaged, or it holds code, which is not run", subject=path
        ) from None
    if isinstance(state, dict) and isinstance(state.get("generator"), dict):
        others = ", ".join(map(str, state.keys() - {"generator"}))
        if others:
            raise CheckpointError(
                f"holds {others} beside the generator; not a published generator's file", subject=path
            )
        state = state["generator"]
    if not isinstance(state, dict) or not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError("holds no generator (wanted tensors, or 'generator' with tensors)", subject=path)
    return {str(key): tensor.float() for key, tensor in state.items()}


def _renamed(tensors: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Rename normalized weights from the published weight_g and weight_v to torch's current names."""
    for length, direction in (("weight_g", "weight_v"), ("weight_v", "weight_g")):
        for key in tensors:
            if key.endswith(f".{length}") and key.replace(f".{length}", f".{direction}") not in tensors:
                raise CheckpointError(f"{key} is there without its {direction}", subject=source)
    names = {".weight_g": checkpoint.LENGTH, ".weight_v": checkpoint.DIRECTION}
    return {_replace_end(key, names): tensor for key, tensor in tensors.items()}


def _replace_end(key: str, names: Mapping[str, str]) -> str:
    return next((key.removesuffix(theirs) + ours for theirs, ours in names.items() if key.endswith(theirs)), key)
