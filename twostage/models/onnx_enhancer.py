"""Models in ONNX files, run by onnxruntime: an enhancer like any other, its settings inside the file."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostage.models.enhancer import EnhancerModule
from twostage.nn.streaming import StreamState, streaming, with_tail
from twostage.utils.errors import CheckpointError, ConfigError, one_line
from twostage.utils.schema import build, parse_json

ONNX = ".onnx"
AUDIO, RESTORED, NEXT = "audio", "restored", "next."  # names in the graph; a state's new value is NEXT and its name
Values = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class OnnxHeader:
    """What a file says of itself. ``streaming``: it is one step; ``int8``: most convolutions are quantized.

    Lengths in samples as in ``TwoStage``; ``gmac``, a second of audio, and ``parameters`` as in ``Costs``.
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

    def as_metadata(self) -> dict[str, str]:
        return {"format": "twostage", "version": "1"} | {name: json.dumps(v) for name, v in asdict(self).items()}

    @classmethod
    def of(cls, metadata: Mapping[str, str], source: str) -> "OnnxHeader":
        """Raises CheckpointError that names ``source``."""
        if metadata.get("format") != "twostage":
            raise CheckpointError(f"{source}: ONNX, but not of twostage (`twostage export` makes such files)")
        try:
            return build(cls, {f.name: parse_json(metadata[f.name]) for f in fields(cls) if f.name in metadata})
        except (ValueError, ConfigError) as error:
            raise CheckpointError(f"{source}: settings inside cannot be read: {error}") from None


class OnnxEnhancer(EnhancerModule):
    """Audio (B, inputs, T) -> (B, 1, T // hop_length * hop_length) by onnxruntime, on torch's number of CPU threads.

    A file of one step runs step after step; what comes out is the same. It takes a stream as a causal TwoStage does.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises CheckpointError, one line that names the file."""
        super().__init__()
        self.path = Path(path)
        self._session = _session(self.path)
        self.header = OnnxHeader.of(self._session.get_modelmeta().custom_metadata_map, str(path))
        self.config, self.states = self.header.config, StreamState()
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
        """Whether the file is of one step."""
        return self.header.streaming

    def forward(self, audio: Tensor) -> Tensor:
        length = audio.shape[-1] // self.hop_length * self.hop_length
        rows = (audio if self.causal else audio[..., :length]).float().cpu().numpy()
        if not length:
            return audio[:, :1, :0]
        delay = self.delay if self.causal else 0
        outputs = [np.concatenate([out[RESTORED] for _, out in self.runs(row)], -1) for row in rows]
        return torch.from_numpy(np.concatenate(outputs)[..., delay : delay + length])

    def runs(self, audio: NDArray[np.float32]) -> Iterator[tuple[Values, Values]]:
        """What goes in and what comes out, run by run, for audio (inputs, T); of whole hops, but for a step."""
        if not self.causal:
            inputs = {AUDIO: audio[None]}
            yield inputs, self._run(inputs)
            return
        with streaming(self):
            yield from self._steps(with_tail(self, torch.from_numpy(audio)).numpy())

    def forward_chunk(self, audio: Tensor) -> Tensor:
        """As ``TwoStage.forward_chunk``: the next chunk, a multiple of ``stride`` long, ``delay`` samples late."""
        outputs = [out[RESTORED] for _, out in self._steps(audio[0].float().cpu().numpy())]
        return torch.from_numpy(np.concatenate(outputs, -1))

    def _steps(self, audio: NDArray[np.float32]) -> Iterator[tuple[Values, Values]]:
        for start in range(0, audio.shape[1], self.stride):
            states = self._silence() if self.states.value is None else self.states.value
            inputs = {AUDIO: audio[None, :, start : start + self.stride], **states}
            outputs = self._run(inputs)
            self.states.keep({name: outputs[NEXT + name] for name in states})
            yield inputs, outputs

    def _silence(self) -> Values:
        """The states at the start of a stream."""
        return {i.name: np.zeros(i.shape, np.float32) for i in self._session.get_inputs() if i.name != AUDIO}

    def _run(self, inputs: Values) -> Values:
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnnxEnhancer":
        """State of its own, the same session."""
        twin = OnnxEnhancer.__new__(OnnxEnhancer)
        twin.__dict__ = dict(self.__dict__)
        twin._modules = {"states": StreamState()}
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the path of its file, which is opened again: a session belongs to its process."""
        return OnnxEnhancer, (self.path,)


def require(*packages: str) -> None:
    """Raises CheckpointError if one of the extra's packages is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise CheckpointError(f"ONNX files need {package}: pip install 'twostage[onnx]'")


def _session(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own, one for each way in which a file can be damaged
        reason = one_line(str(error).strip().partition("\n")[0])  # which begins with what is wrong
        raise CheckpointError(f"{path}: not an ONNX file, or damaged ({reason})") from None
