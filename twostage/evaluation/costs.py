"""Costs of a model: multiply-accumulates for a second of audio, parameters, time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from twostage.models.enhancer import Enhancer
from twostage.models.onnx_enhancer import OnnxEnhancer


@dataclass(frozen=True)
class Costs:
    """``gmac`` per second of audio; ``real_time_factor`` is seconds of work per second of audio on this machine.

    ``latency``: seconds between an input sample and its output sample, for chunks of any size; None if the model needs
    the whole signal.
    """

    parameters: int
    gmac: float
    real_time_factor: float
    device: str
    threads: int
    latency: float | None = None


def parameters(model: nn.Module) -> int:
    """The number of parameters; for a folded model, that of the plain weights."""
    return sum(parameter.numel() for parameter in model.parameters())


class Recurrences(TorchFunctionMode):
    """Counts LSTMs and GRUs by their weights instead of running them step by step; their outputs are zeros."""

    macs = 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function not in (torch.lstm, torch.gru):
            return function(*args, **(kwargs or {}))
        x, state, weights, *_, bidirectional, _ = args
        self.macs += x.shape[0] * x.shape[1] * sum(weight.numel() for weight in weights if weight.ndim == 2)
        states = state if function is torch.lstm else (state,)
        return x.new_zeros(*x.shape[:2], states[0].shape[-1] * (1 + bidirectional)), *states


def macs(module: Callable[..., Tensor], *inputs: Tensor) -> int:
    """Multiply-accumulates of one forward: convolutions, matrix products and recurrent layers, biases not counted.

    Fourier transforms, activations and sums are not counted either. Only shapes are computed, no values.
    """
    counter, recurrences = FlopCounterMode(display=False), Recurrences()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), counter, recurrences:
        module(*inputs)
    return counter.get_total_flops() // 2 + recurrences.macs


def gmac_per_second(model: Enhancer, seconds: float = 2.0) -> float:
    """Billions of multiply-accumulates for a second of audio in a window of ``seconds``, without its context."""
    audio = _noise(model, seconds)
    return macs(model, audio) / 1e9 * model.sample_rate / audio.shape[-1]


def real_time_factor(model: Enhancer, seconds: float = 10.0, repeats: int = 3) -> float:
    """Seconds of work for a second of audio: the fastest of ``repeats`` forwards of ``seconds``, after a warm-up.

    The fastest is used because other work on the machine can only add to the time. On one thread of a CPU, processor
    time is measured, which other programs hardly affect.
    """
    audio, elapsed = _noise(model, seconds), []
    single_thread = torch.get_num_threads() == 1 and model.device.type == "cpu"
    clock = time.process_time if single_thread else time.perf_counter
    for _ in range(repeats + 1):
        started = clock()
        with torch.inference_mode():
            model(audio).cpu()  # the copy waits for an accelerator
        elapsed.append(clock() - started)
    return min(elapsed[1:]) * model.sample_rate / audio.shape[-1]


def measure_model(model: Enhancer, *, seconds: float = 10.0, repeats: int = 3) -> Costs:
    """All costs of a model on its device, with torch's current number of threads; timed on ``seconds`` of audio."""
    device, threads = str(model.device), torch.get_num_threads()
    speed = real_time_factor(model, seconds, repeats)
    if isinstance(model, OnnxEnhancer):
        return Costs(model.header.parameters, model.header.gmac, speed, device, threads, latency(model))
    assert isinstance(model, nn.Module)
    return Costs(parameters(model), gmac_per_second(model), speed, device, threads, latency(model))


def latency(model: Enhancer) -> float | None:
    """The latency as defined in ``Costs``."""
    return model.latency / model.sample_rate if isfinite(model.latency) else None


def _noise(model: Enhancer, seconds: float) -> Tensor:
    """Audio (1, inputs, T) of about ``seconds``, T a multiple of the model's stride."""
    strides = max(1, round(seconds * model.sample_rate / model.stride))
    generator = torch.Generator().manual_seed(0)
    return 0.05 * torch.randn(1, model.inputs, strides * model.stride, generator=generator).to(model.device)
