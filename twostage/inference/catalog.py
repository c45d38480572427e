"""What there is to say of a model before it is used: rate, size, license, how late its stream is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twostage.inference.stream import Stream
from twostage.models.card import read_card
from twostage.models.checkpoint import load, load_stage, model_files, names, onnx_file, read_header, shipped
from twostage.models.onnx_enhancer import OnnxEnhancer
from twostage.models.registry import STAGES, kind_of
from twostage.models.restorer import RestorerConfig
from twostage.utils.errors import ConfigError


@dataclass(frozen=True)
class ModelInfo:
    """A model: ``bytes`` of its files, ``license`` of its card (an SPDX identifier, or empty).

    ``latency_ms`` is what a stream waits for, in windows of a second if the model looks ahead; None: it cannot stream,
    being one stage alone or in need of the whole signal.
    """

    name: str
    kind: str
    sample_rate: int
    inputs: int
    parameters: int
    bytes: int
    license: str
    causal: bool
    latency_ms: float | None


def catalog() -> list[ModelInfo]:
    """All shipped models, those first that restore by themselves, of those the default."""
    whole = shipped()
    stages = [name for name in names() if name not in whole]
    return [*(describe(name, [name], load(name)) for name in whole), *map(_describe_stage, stages)]


def describe_one(paths: Sequence[str | Path]) -> ModelInfo:
    """What ``paths`` stand for: an enhancer, or one stage. Raises CheckpointError."""
    files = [file for path in paths for file in model_files(path)]
    alone = len(files) == 1 and not onnx_file(files[0]) and read_header(files[0]).kind in STAGES
    return _describe_stage(paths[0]) if alone else describe(" + ".join(map(str, paths)), paths, load(*paths))


def describe(name: str, paths: Sequence[str | Path], model: Any) -> ModelInfo:
    """An enhancer that was loaded from ``paths``."""
    files = [file for path in paths for file in model_files(path)]
    header = model.header if isinstance(model, OnnxEnhancer) else None
    return ModelInfo(
        name=name,
        kind=header.kind if header else kind_of(model),
        sample_rate=model.sample_rate,
        inputs=model.inputs,
        parameters=header.parameters if header else sum(weight.numel() for weight in model.parameters()),
        bytes=sum(file.stat().st_size for file in files),
        license=_license(files),
        causal=model.causal,
        latency_ms=_latency(model),
    )


def _describe_stage(name: str | Path) -> ModelInfo:
    model: Any = load_stage(name, folded=True)
    files, config = model_files(name), model.config
    return ModelInfo(
        name=str(name),
        kind=kind_of(model),
        sample_rate=config.mel.sample_rate,
        inputs=config.inputs if isinstance(config, RestorerConfig) else 1,
        parameters=sum(weight.numel() for weight in model.parameters()),
        bytes=sum(file.stat().st_size for file in files),
        license=_license(files),
        causal=bool(config.mel.causal),
        latency_ms=None,
    )


def _latency(model: Any) -> float | None:
    try:
        with Stream(model) as stream:
            return 1000 * stream.latency / stream.sample_rate
    except ConfigError:
        return None


def _license(files: Sequence[Path]) -> str:
    """That of the cards beside the files, if they agree."""
    licenses = {str(read_card(file.parent).get("license") or "") for file in files}
    return licenses.pop() if len(licenses) == 1 else ""
