"""ONNX files without weights, which read them from the safetensors files in the same folder.

Safetensors files contain plain arrays, and ONNX allows a tensor to be stored at a position in another file. A released
model therefore stores its weights only once for both formats; its folder must be copied as a whole.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twostage.export.onnx import TOLERANCE, difference
from twostage.models.checkpoint import read_header
from twostage.models.enhancer import EnhancerModule
from twostage.models.features import Stft
from twostage.models.onnx_enhancer import OnnxEnhancer
from twostage.models.registry import STAGES
from twostage.models.two_stage import TwoStage
from twostage.utils.errors import CheckpointError
from twostage.utils.files import replacing

WRAPPER = "model."  # prefix of names in the graph of a step
KERNEL = "stft.kernel"  # suffix of the name of a transform's kernel
HALF = ".half"
TYPES = {"F16": (np.float16, "FLOAT16"), "F32": (np.float32, "FLOAT")}  # safetensors' -> numpy's and ONNX's


class Place(NamedTuple):
    """The position of a tensor; ``offset`` and ``length`` are in bytes."""

    file: Path
    offset: int
    length: int
    shape: list[int]
    dtype: str

    def values(self) -> np.ndarray[Any, Any]:
        kind, _ = TYPES[self.dtype]
        return np.fromfile(self.file, kind, offset=self.offset, count=int(np.prod(self.shape))).reshape(self.shape)


def share_weights(model: EnhancerModule, source: Path, target: Path, files: Sequence[Path]) -> float:
    """Write ``source``, the ONNX file of ``model``, as ``target`` without the weights in ``files`` of the same folder.

    Tensors that the exporter has changed, such as a reshaped bias, stay in the file. The kernels of Fourier transforms
    are computed when it is loaded, instead of stored. Returns the largest difference from PyTorch. Raises
    CheckpointError if that is above TOLERANCE, or if the weights are not found.
    """
    import onnx

    onnx_model = onnx.load(source)
    places = {name: place for file in files for name, place in _places(file)}
    if not _externalize(onnx_model.graph, places):
        raise CheckpointError(f"contains none of the weights of {', '.join(map(str, files))}", subject=source)
    if isinstance(model, TwoStage):
        _compute_waves(onnx_model.graph, model.mel.stft)
    _merge_equal(onnx_model.graph)
    digests = {file.name: sha256(file.read_bytes()).hexdigest() for file in files}
    metadata = {entry.key: entry.value for entry in onnx_model.metadata_props} | {"weights": json.dumps(digests)}
    onnx.helper.set_model_props(onnx_model, metadata)
    with replacing(target) as partial:
        partial.write_bytes(onnx_model.SerializeToString())
        error = difference(model, OnnxEnhancer(partial))
        if not error <= TOLERANCE:
            raise CheckpointError(
                f"differs from PyTorch by {error:.1e}, above {TOLERANCE}; not written", subject=target
            )
    return error


def _places(file: Path) -> Iterator[tuple[str, Place]]:
    """The tensors of a safetensors file, by their names in the whole model."""
    kind = read_header(file).kind
    prefix = f"{kind}." if kind in STAGES else ""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield prefix + name, Place(file, 8 + size + begin, end - begin, entry["shape"], entry["dtype"])


def _externalize(graph: Any, places: Mapping[str, Place]) -> set[str]:
    """Refer every initializer that a file contains unchanged to that file; returns their names."""
    from onnx import TensorProto, helper, numpy_helper

    shared, casts = set[str](), list[Any]()
    for tensor in graph.initializer:
        name, graph_name = tensor.name.removeprefix(WRAPPER), tensor.name
        place = places.get(name)
        if place is None or place.dtype not in TYPES or place.shape != list(tensor.dims):
            continue
        if not np.array_equal(place.values().astype(np.float32), numpy_helper.to_array(tensor)):
            continue
        shared.add(name)
        tensor.Clear()
        tensor.name, tensor.data_type = graph_name, getattr(TensorProto, TYPES[place.dtype][1])
        tensor.dims.extend(place.shape)
        if tensor.data_type != TensorProto.FLOAT:
            tensor.name += HALF
            casts.append(helper.make_node("Cast", [tensor.name], [graph_name], to=TensorProto.FLOAT))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", place.file.name), ("offset", place.offset), ("length", place.length)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
    _prepend(graph, casts)
    return shared


def _compute_waves(graph: Any, stft: Stft) -> None:
    """Replace the values of ``export.onnx.waves`` by their computation from one period and the window."""
    from onnx import TensorProto, helper, numpy_helper

    padding = (stft.n_fft - stft.win_length) // 2
    window = np.pad(stft.window.double().numpy(), (padding, stft.n_fft - stft.win_length - padding))
    samples = np.arange(stft.n_fft)
    period = np.exp(-2j * np.pi * samples / stft.n_fft)
    constants = {
        "bins": samples[: stft.n_fft // 2 + 1, None],
        "places": samples[None],
        "n_fft": np.array(stft.n_fft),
        "cosine": period.real,
        "sine": period.imag,
        "window": window,
        "channel": np.array([1]),
    }
    for kernel in [tensor for tensor in graph.initializer if tensor.name.endswith(KERNEL)]:
        name = kernel.name
        graph.initializer.remove(kernel)
        graph.initializer.extend(numpy_helper.from_array(value, f"{name}.{key}") for key, value in constants.items())
        steps = (
            ("Mul", ("bins", "places"), "turns"),
            ("Mod", ("turns", "n_fft"), "phase"),
            ("Gather", ("cosine", "phase"), "cosines"),
            ("Mul", ("cosines", "window"), "real"),
            ("Gather", ("sine", "phase"), "sines"),
            ("Mul", ("sines", "window"), "imaginary"),
        )
        nodes = [
            helper.make_node(kind, [f"{name}.{i}" for i in inputs], [f"{name}.{out}"]) for kind, inputs, out in steps
        ]
        nodes += [
            helper.make_node("Concat", [f"{name}.real", f"{name}.imaginary"], [f"{name}.both"], axis=0),
            helper.make_node("Unsqueeze", [f"{name}.both", f"{name}.channel"], [f"{name}.exact"]),
            helper.make_node("Cast", [f"{name}.exact"], [name], to=TensorProto.FLOAT),
        ]
        _prepend(graph, nodes)


def _merge_equal(graph: Any) -> None:
    """Merge equal initializers."""
    first_names: dict[tuple[object, ...], str] = {}
    replacement: dict[str, str] = {}
    for tensor in list(graph.initializer):
        if tensor.external_data:
            continue
        key = tensor.data_type, tuple(tensor.dims), tensor.raw_data
        if tensor.raw_data and first_names.setdefault(key, tensor.name) != tensor.name:
            replacement[tensor.name] = first_names[key]
            graph.initializer.remove(tensor)
    for node in graph.node:
        node.input[:] = [replacement.get(name, name) for name in node.input]


def _prepend(graph: Any, nodes: Sequence[Any]) -> None:
    """Insert nodes at the start of the graph, before those that use their outputs."""
    existing = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *existing])
