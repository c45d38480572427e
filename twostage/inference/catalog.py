"""The properties of a model that can be listed before it is used: rate, size, license, latency of its stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twostage.inference.stream import Stream
from twostage.models.card import read_card
from twostage.models.loading import load, onnx_for
from twostage.models.model_files import model_files, names, names_with_onnx
from twostage.models.onnx_enhancer import OnnxEnhancer
from twostage.utils.errors import ConfigError
from twostage.utils.packages import installed


@dataclass(frozen=True)
class ModelInfo:
    """A model: ``bytes`` of its files, ``license`` of its card (an SPDX identifier, or empty).

    ``runtime`` is what runs it here, "PyTorch" or "ONNX Runtime". ``latency_ms`` is the latency of a stream, in windows
    of a second if the model looks ahead. None: it cannot stream, because it is one stage alone or needs the whole
    signal.
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
    runtime: str


def catalog() -> list[ModelInfo]:
    """All shipped models that can be used here: complete enhancers first, beginning with the default, then stages."""
    if not installed("torch"):
        return [describe(name, [name], load(name)) for name in names_with_onnx()]
    from twostage.models.checkpoint import shipped

    enhancers = shipped()
    stages = [name for name in names() if name not in enhancers]
    return [*(describe(name, [name], load(name)) for name in enhancers), *map(_describe_stage, stages)]


def unusable() -> list[str]:
    """Names of the shipped models that need PyTorch, if it is not installed."""
    return [] if installed("torch") else [name for name in names() if name not in names_with_onnx()]


def describe_one(paths: Sequence[str | Path]) -> ModelInfo:
    """Describe the model at ``paths``: an enhancer, or one stage. Raises CheckpointError."""
    is_stage = not onnx_for(*paths) and _is_stage([file for path in paths for file in model_files(path)])
    return _describe_stage(paths[0]) if is_stage else describe(" + ".join(map(str, paths)), paths, load(*paths))


def describe(name: str, paths: Sequence[str | Path], model: Any) -> ModelInfo:
    """Describe an enhancer that was loaded from ``paths``."""
    files, kind, parameters, runtime = _of_onnx(model) if isinstance(model, OnnxEnhancer) else _of_module(model, paths)
    return ModelInfo(
        name=name,
        kind=kind,
        sample_rate=model.sample_rate,
        inputs=model.inputs,
        parameters=parameters,
        bytes=sum(file.stat().st_size for file in files),
        license=_license(files),
        causal=model.causal,
        latency_ms=_latency(model),
        runtime=runtime,
    )


def _of_onnx(model: OnnxEnhancer) -> tuple[list[Path], str, int, str]:
    """Files, kind, number of weights, and runtime."""
    return [model.path, *model.weights], model.header.kind, model.header.parameters, "ONNX Runtime"


def _of_module(model: Any, paths: Sequence[str | Path]) -> tuple[list[Path], str, int, str]:
    """The same as ``_of_onnx``, for a module."""
    from twostage.models.registry import kind_of

    files = [file for path in paths for file in model_files(path)]
    return files, kind_of(model), sum(weight.numel() for weight in model.parameters()), "PyTorch"


def _is_stage(files: Sequence[Path]) -> bool:
    from twostage.models.checkpoint import read_header
    from twostage.models.registry import STAGES

    return len(files) == 1 and read_header(files[0]).kind in STAGES


def _describe_stage(name: str | Path) -> ModelInfo:
    from twostage.models.checkpoint import load_stage
    from twostage.models.registry import kind_of
    from twostage.models.restorer import RestorerConfig

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
        runtime="PyTorch",
    )


def _latency(model: Any) -> float | None:
    try:
        with Stream(model) as stream:
            return 1000 * stream.latency / stream.sample_rate
    except ConfigError:
        return None


def _license(files: Sequence[Path]) -> str:
    """The license of the cards beside the files, if they agree."""
    licenses = {str(read_card(file.parent).get("license") or "") for file in files}
    return licenses.pop() if len(licenses) == 1 else ""
