"""Models in ONNX files, run by ONNX Runtime: enhancers whose settings are stored in the file."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from twostage.audio.continuation import continued
from twostage.audio.types import Audio
from twostage.utils.errors import CheckpointError, ConfigError, first_line, one_line
from twostage.utils.packages import installed, is_tensor, torch_threads
from twostage.utils.schema import build, parse_json

if TYPE_CHECKING:
    import torch

AUDIO, RESTORED, NEXT = "audio", "restored", "next."  # names in the graph; a state's new value is NEXT + its name
Values = dict[str, Audio]


@dataclass(frozen=True)
class OnnxHeader:
    """The metadata of a file. ``streaming``: it is one step of a stream; ``int8``: most convolutions are quantized.

    Lengths are in samples, as in ``TwoStage``. ``gmac``, for a second of audio, and ``parameters`` are as in ``Costs``.
    """

    kind: str
    config: dict  # JSON values
    provenance: dict
    sample_rate: int
    hop_length: int
    stride: int
    context: int | float
    delay: int
    streaming: bool
    int8: bool
    parameters: int
    gmac: float
    inputs: int = 1  # channels of audio
    # files beside this one that hold weights, and their SHA-256
    weights: dict = field(default_factory=dict)

    def as_metadata(self) -> dict[str, str]:
        return {"format": "twostage", "version": "1"} | {name: json.dumps(v) for name, v in asdict(self).items()}

    @classmethod
    def of(cls, metadata: Mapping[str, str], source: str) -> "OnnxHeader":
        """Raises CheckpointError that names ``source``."""
        if metadata.get("format") != "twostage":
            raise CheckpointError("ONNX, but not of twostage (`twostage export` makes such files)", subject=source)
        try:
            return build(cls, {f.name: parse_json(metadata[f.name]) for f in fields(cls) if f.name in metadata})
        except (ValueError, ConfigError) as error:
            raise CheckpointError(f"settings inside cannot be read: {error}", subject=source) from None


class OnnxEnhancer:
    """Audio (B, inputs, T) -> (B, 1, T // hop_length * hop_length) by onnxruntime, on the CPU; arrays or tensors.

    A file of one step is run step by step, with the same result. ``threads``: None is PyTorch's number of threads if
    PyTorch is in use, otherwise all cores.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        """Raises CheckpointError, one line that names the file."""
        self.path = Path(path)
        self._threads = threads
        self._session = _session(self.path, threads or torch_threads() or 0)
        self.header = OnnxHeader.of(self._session.get_modelmeta().custom_metadata_map, str(path))
        self.config = self.header.config
        self.weights = _checked_weights(self.path, self.header)
        self._outputs = [output.name for output in self._session.get_outputs()]

    @property
    def sample_rate(self) -> int:
        return self.header.sample_rate

    @property
    def hop_length(self) -> int:
        return self.header.hop_length

    @property
    def inputs(self) -> int:
        return self.header.inputs

    @property
    def stride(self) -> int:
        return self.header.stride

    @property
    def context(self) -> float:
        return self.header.context

    @property
    def delay(self) -> int:
        return self.header.delay

    @property
    def causal(self) -> bool:
        """Whether the file is one step of a stream."""
        return self.header.streaming

    @property
    def latency(self) -> float:
        return self.stride + (self.delay if self.causal else self.context)

    @property
    def device(self) -> "torch.device":
        """The CPU as a PyTorch device; PyTorch is imported for it, for callers with tensors."""
        import torch

        return torch.device("cpu")

    def __call__(self, audio: Any, /) -> Any:
        if not is_tensor(audio):
            return self.enhanced(audio)
        import torch

        return torch.from_numpy(self.enhanced(audio.detach().float().cpu().numpy()))

    def enhanced(self, audio: NDArray[np.floating]) -> Audio:
        """The same as a call, for arrays."""
        audio = np.asarray(audio, np.float32)
        length = audio.shape[-1] // self.hop_length * self.hop_length
        if not length:
            return audio[:, :1, :0]
        delay = self.delay if self.causal else 0
        rows = audio if self.causal else audio[..., :length]
        outputs = [np.concatenate([out[RESTORED] for _, out in self.runs(row)], -1) for row in rows]
        return np.concatenate(outputs)[..., delay : delay + length]

    def runs(self, audio: Audio) -> Iterator[tuple[Values, Values]]:
        """Inputs and outputs, run by run, for audio (inputs, T); T is a multiple of the hop, except for a step."""
        if not self.causal:
            values = {AUDIO: np.ascontiguousarray(audio[None])}
            yield values, self.run(values)
            return
        length = audio.shape[-1] // self.hop_length * self.hop_length
        tail = self.delay + self.stride - 1
        yield from self.stream().steps(continued(audio, tail)[:, : (length + tail) // self.stride * self.stride])

    def stream(self) -> "OnnxStream":
        """A new stream, for a file of one step."""
        return OnnxStream(self)

    def silence(self) -> Values:
        """The states at the start of a stream."""
        return {i.name: np.zeros(i.shape, np.float32) for i in self._session.get_inputs() if i.name != AUDIO}

    def run(self, values: Values) -> Values:
        """Outputs by name for inputs by name."""
        return dict(zip(self._outputs, self._session.run(self._outputs, values), strict=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The object itself, because it holds no state."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the path of its file, which is opened again, because a session belongs to its process."""
        return OnnxEnhancer, (self.path, self._threads)


class OnnxStream:
    """One stream through a file of one step. It keeps the states from call to call."""

    def __init__(self, model: OnnxEnhancer) -> None:
        self._model, self.delay = model, model.delay
        self.reset()

    def reset(self) -> None:
        self._states = self._model.silence()

    def __call__(self, audio: Audio) -> Audio:
        """Process the next chunk (inputs, T), T a multiple of ``stride``, to (T,), ``delay`` samples late."""
        return np.concatenate([out[RESTORED][0, 0] for _, out in self.steps(audio)])

    def steps(self, audio: Audio) -> Iterator[tuple[Values, Values]]:
        """As ``OnnxEnhancer.runs``."""
        for start in range(0, audio.shape[1], self._model.stride):
            chunk = np.ascontiguousarray(audio[None, :, start : start + self._model.stride], np.float32)
            values = {AUDIO: chunk, **self._states}
            out = self._model.run(values)
            self._states = {name: out[NEXT + name] for name in self._states}
            yield values, out


def require(*packages: str) -> None:
    """Raises CheckpointError if one of the extra's packages is not installed."""
    for package in packages:
        if not installed(package):
            raise CheckpointError(f"ONNX files need {package}: pip install 'twostage[onnx]'")


def _session(path: Path, threads: int) -> Any:
    if not path.is_file():
        raise CheckpointError("no such file", subject=path)
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has many exception classes
        reason = one_line(first_line(error))  # its first line states the reason
        raise CheckpointError(f"not an ONNX file, or damaged ({reason})", subject=path) from None


def _checked_weights(path: Path, header: OnnxHeader) -> list[Path]:
    """The files of weights beside ``path`` that it reads. Raises CheckpointError if they have changed."""
    files = {path.parent / Path(name).name: digest for name, digest in header.weights.items()}
    for file, digest in files.items():
        if not file.is_file() or sha256(file.read_bytes()).hexdigest() != digest:
            raise CheckpointError(
                f"was exported for other weights than those in {file.name}, or that file is damaged", subject=path
            )
    return list(files)
