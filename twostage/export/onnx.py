"""Exports models to ONNX: for whole signals of any length, or one step of a stream with explicit states."""

import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.nn import functional as F

from twostage.audio.types import Audio
from twostage.evaluation import costs
from twostage.models.enhancer import Enhancer, EnhancerModule, StreamingModule
from twostage.models.features import LogMel, Stft
from twostage.models.griffinlim import GriffinLim
from twostage.models.onnx_enhancer import AUDIO, NEXT, RESTORED, OnnxEnhancer, OnnxHeader, require
from twostage.models.registry import kind_of
from twostage.models.two_stage import TwoStage
from twostage.nn.streaming import stream_states, streaming
from twostage.utils.errors import CheckpointError, first_line
from twostage.utils.files import replacing
from twostage.utils.logs import quieted

OPSET = 20
TALKERS = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime")  # packages that log during an export
TOLERANCE = 1e-4  # largest difference from PyTorch, relative to full scale
HOPS = (1, 2, 3, 125)  # lengths at which a file is checked, in units
REFUSALS = (RuntimeError, NotImplementedError, UserError)  # exceptions of torch for models that it cannot export


@dataclass(frozen=True)
class Written:
    """A written file: its size in bytes, its operators, and its difference from PyTorch.

    The difference is the largest between two samples or, for int8, the mean difference between two log-mels.
    """

    size: int
    operators: int
    difference: float


def export(
    model: Enhancer,
    path: str | Path,
    *,
    provenance: Mapping[str, Any],
    stream: bool = False,
    speech: Iterable[Audio] | None = None,
) -> Written:
    """Write ``model``, a module, as ONNX after comparing it with PyTorch; an existing file is replaced.

    Audio (1, inputs, T) -> (1, 1, T), T a multiple of ``unit``; or, with ``stream``, a causal model's step: audio (1,
    inputs, stride) and states, zeros at the start, -> restored audio, ``delay`` samples late, and states for the next
    step. With ``speech`` (T,), example inputs, the file is int8 and calibrated on them (for models with one input).

    Raises CheckpointError if the model cannot be exported, or if the file differs from PyTorch by more than TOLERANCE.
    """
    if not isinstance(model, EnhancerModule):
        raise CheckpointError(f"only torch modules can be exported, this is a {type(model).__name__}", subject=path)
    if stream and not model.causal:
        raise CheckpointError("--stream needs a causal model: frames of this one depend on later sound (mel.causal)")
    if not stream and not isfinite(model.context):
        step = "; its step can be (--stream)" if model.causal else ""
        raise CheckpointError(f"a {kind_of(model)} cannot become ONNX: it needs the whole signal{step}", subject=path)
    if speech is not None and not isinstance(model, TwoStage):
        raise CheckpointError(f"only models of two stages can be int8, this is a {kind_of(model)}", subject=path)
    require("onnx", "onnxscript", "onnxruntime")
    import onnx

    with _quietly(), torch.no_grad():
        try:
            program = _step(real(model)) if stream else _whole(real(model))
        except REFUSALS as error:
            reason = first_line(error)
            raise CheckpointError(f"a {kind_of(model)} cannot become ONNX: {reason}", subject=path) from None
    metadata = header(model, stream, provenance)
    program.model.metadata_props.update(metadata.as_metadata())
    with TemporaryDirectory() as folder:
        float_file = Path(folder, "float.onnx")
        program.save(float_file)
        deviation = difference(model, OnnxEnhancer(float_file))
        if not deviation <= TOLERANCE:
            raise CheckpointError(
                f"differs from PyTorch by {deviation:.1e}, above {TOLERANCE}; not written", subject=path
            )
        if speech is not None:
            assert isinstance(model, TwoStage)
            float_file = _quantized(float_file, replace(metadata, int8=True), speech)
            deviation = mel_difference(model, OnnxEnhancer(float_file))
        with replacing(path) as partial:
            shutil.copyfile(float_file, partial)
        return Written(float_file.stat().st_size, len(onnx.load(float_file).graph.node), deviation)


def _quantized(source: Path, metadata: OnnxHeader, speech: Iterable[Audio]) -> Path:
    from twostage.export.int8 import quantize

    model, target = OnnxEnhancer(source), source.with_name("int8.onnx")
    truncated = (audio[: len(audio) // metadata.hop_length * metadata.hop_length] for audio in speech)
    with _quietly():
        quantize(
            source,
            target,
            (inputs for audio in truncated for inputs, _ in model.runs(audio[None])),
            metadata.as_metadata(),
        )
    return target


def unit(model: EnhancerModule) -> int:
    """The length of a file's audio is a multiple of it; of one-stage systems, the stride, as nothing is padded."""
    return model.hop_length if isinstance(model, TwoStage) else model.stride


def header(model: EnhancerModule, stream: bool, provenance: Mapping[str, Any]) -> OnnxHeader:
    return OnnxHeader(
        kind=kind_of(model),
        config=asdict(model.config),
        provenance=dict(provenance),
        sample_rate=model.sample_rate,
        hop_length=unit(model),
        stride=model.stride,
        context=model.context,
        delay=model.delay,
        inputs=model.inputs,
        streaming=stream,
        int8=False,
        parameters=costs.parameters(model),
        gmac=costs.gmac_per_second(model),
    )


def difference(model: EnhancerModule, exported: OnnxEnhancer) -> float:
    """The largest difference of the outputs, at several lengths and for speech that stops; may be NaN."""
    voices = _voices(model)
    stopped = voices[-1].clone()
    stopped[..., stopped.shape[-1] // 2 :] = 0
    with torch.inference_mode():
        return float(torch.stack([(model(a) - exported(a)).abs().max() for a in (*voices, stopped)]).max())


def mel_difference(model: TwoStage, exported: OnnxEnhancer) -> float:
    """The mean difference of the log-mels of both outputs, at the longest length."""
    mel, audio = LogMel(model.config.vocoder.mel), _voices(model)[-1]
    with torch.inference_mode():
        return float((mel(model(audio)) - mel(exported(audio))).abs().mean())


def _voices(model: EnhancerModule) -> list[Tensor]:
    """Synthetic voices (1, inputs, T) of HOPS lengths; the noise increases from channel to channel."""
    generator, voices = torch.Generator().manual_seed(0), []
    for hops in HOPS:
        time = torch.arange(hops * unit(model)) / model.sample_rate
        tones = torch.stack([torch.sin(k * (700 * time + 20 * torch.sin(4 * time))) for k in range(1, 20)]).mean(0)
        noise = torch.randn((model.inputs, *time.shape), generator=generator)
        noise_gain = 10.0 ** torch.arange(model.inputs)[:, None]
        voices.append((0.5 * tones * torch.sin(9 * time + 1) + 0.002 * noise_gain * noise)[None])
    return voices


def _whole(model: EnhancerModule) -> Any:
    hops = torch.export.Dim("hops", min=1)
    audio, shapes = torch.zeros(1, model.inputs, 20 * unit(model)), {AUDIO: {2: unit(model) * hops}}
    return _program(torch.export.export(model, (audio,), dynamic_shapes=shapes), [AUDIO], [RESTORED])


def _step(model: EnhancerModule) -> Any:
    assert isinstance(model, StreamingModule)  # as all causal modules are
    step, audio = Step(model), torch.zeros(1, model.inputs, model.stride)
    names = list(step.states)
    inputs = (audio, *(torch.zeros_like(state) for state in step.states.values()))
    program = torch.export.export(step, inputs)
    return _program(program, [AUDIO, *names], [RESTORED, *(NEXT + name for name in names)])


def _program(program: torch.export.ExportedProgram, inputs: list[str], outputs: list[str]) -> Any:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    exported = torch.onnx.export(
        program, dynamo=True, input_names=inputs, output_names=outputs, opset_version=OPSET, verbose=False
    )
    assert exported is not None
    ClearMetadataAndDocStringPass()(exported.model)  # source locations of operators, with local paths
    return exported


class Step(nn.Module):
    """A step of a causal model: audio (1, inputs, stride) and states -> restored audio and states."""

    def __init__(self, model: StreamingModule) -> None:
        super().__init__()
        self.model = model
        self.states = self._run(torch.zeros(1, model.inputs, model.stride), {})[1]

    def forward(self, audio: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        restored, next_states = self._run(audio, dict(zip(self.states, states, strict=True)))
        return restored, *next_states.values()

    def _run(self, audio: Tensor, states: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        leaves = stream_states(self.model)
        with streaming(self.model):
            for name, state in states.items():
                leaves[name].value = state
            restored = self.model.forward_chunk(audio)
            return restored, {name: leaf.value for name, leaf in leaves.items() if leaf.value is not None}


class RealStft(Stft):
    """``Stft`` with real numbers, as ONNX's operators require: (B, 1, T) -> (2, B, n_fft // 2 + 1, L).

    The Fourier transform is computed as a convolution, which is faster in onnxruntime.
    """

    kernel: Tensor

    def __init__(self, like: Stft, kernel: Tensor) -> None:
        """``kernel``: the result of ``waves``; all transforms of a model share it; the file contains it once."""
        super().__init__(like.n_fft, like.hop_length, like.win_length, causal=like.past is not None)
        self.register_buffer("kernel", kernel, persistent=False)

    def spectrum(self, audio: Tensor) -> Tensor:
        audio = audio[..., 0, : audio.shape[-1] // self.hop_length * self.hop_length]
        parts = F.conv1d(self._pad(audio)[:, None], self.kernel, stride=self.hop_length)
        return parts.unflatten(1, (2, -1)).transpose(0, 1)


def waves(stft: Stft) -> Tensor:
    """Windowed cosines and negative sines: (2 (n_fft // 2 + 1), 1, n_fft)."""
    padding = (stft.n_fft - stft.win_length) // 2
    window = F.pad(stft.window.double(), (padding, stft.n_fft - stft.win_length - padding))
    spectrum = torch.fft.rfft(torch.diag(window)).T
    return torch.cat([spectrum.real, spectrum.imag])[:, None].float()


class RealGriffinLim(GriffinLim):
    """``GriffinLim`` on spectrograms of RealStft."""

    share: Tensor

    def __init__(self, like: GriffinLim, stft: RealStft) -> None:
        super().__init__(like.mel.config, like.iterations, like.input_phase_below, like.below)
        self.mel.stft = stft
        share = torch.full((stft.n_fft // 2 + 1, 1), 2 / stft.n_fft)
        share[0] = 1 / stft.n_fft
        share[stft.n_fft // 2 + stft.n_fft % 2 :] = 1 / stft.n_fft  # all other bins represent two frequencies
        self.register_buffer("share", share, persistent=False)

    def _waveform(self, spectrum: Tensor, coverage: Tensor) -> Tensor:
        stft, parts = self.mel.stft, (spectrum * self.share).transpose(0, 1).flatten(1, 2)
        assert isinstance(stft, RealStft)
        padding = 0 if self.overlap is not None else (stft.n_fft - stft.hop_length) // 2
        audio = F.conv_transpose1d(parts, stft.kernel, stride=stft.hop_length, padding=padding)
        return (audio if self.overlap is None else self.overlap(audio)) / coverage


def real(model: EnhancerModule) -> EnhancerModule:
    """An equivalent copy; for two stages, without complex numbers."""
    model = deepcopy(model)
    if not isinstance(model, TwoStage):
        return model.eval()
    kernel = waves(model.mel.stft)
    model.mel.stft = RealStft(model.mel.stft, kernel)
    for name in ("griffin_lim", "resynthesis"):
        part = getattr(model.vocoder, name)
        if part is not None:
            setattr(model.vocoder, name, RealGriffinLim(part, RealStft(part.mel.stft, kernel)))
    return model.eval()


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress the exporter's warnings about missing packages and deprecations."""
    with quieted(*TALKERS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
