"""int8 quantization of the convolutions of an exported model: static, one scale per channel, calibrated on inputs."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnxruntime import quantization

from twostage.models.onnx_enhancer import Values

FLOAT = ("conv_pre", "conv_post")  # first and last layer of each stage: cheap, and their errors are audible


class Calibration(quantization.CalibrationDataReader):
    """The inputs of a model for each run."""

    def __init__(self, inputs: Iterable[Values]) -> None:
        self._inputs: Iterator[Values] = iter(inputs)

    def get_next(self) -> Values | None:
        return next(self._inputs, None)


def quantize(source: Path, target: Path, inputs: Iterable[Values], metadata: Mapping[str, str]) -> None:
    """Write ``source`` with most convolutions in int8; mels, Griffin-Lim and all other operators stay in float32.

    ``inputs``: example inputs that determine the ranges of the activations. ``metadata``: the metadata of the file.
    """
    quantization.quantize_static(
        source,
        target,
        Calibration(inputs),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_quantize=convolutions(onnx.load(source)),
        per_channel=True,
        # weights of 7 bits: without VNNI instructions, the sum of two products with 8-bit weights overflows 16 bits
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    model = onnx.load(target)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, target)


def convolutions(model: Any) -> list[str]:
    """Names of the operators to quantize: those with the weights of a layer, except FLOAT."""
    weights = {node.name: node.input[1].split(".") for node in model.graph.node if node.op_type == "Conv"}
    return [name for name, path in weights.items() if path[-1] == "weight" and path[-2] not in FLOAT]
