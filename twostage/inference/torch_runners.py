"""Runs modules on arrays: the interface between PyTorch and numpy, in which sound is read, cut and written."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from twostage.audio.types import Audio
from twostage.inference.windowed_inference import WindowedInference
from twostage.models.enhancer import CausalEnhancer, Enhancer, evaluating
from twostage.models.two_stage import TwoStage
from twostage.nn.streaming import reset_streaming, streaming
from twostage.utils.errors import ConfigError

M = TypeVar("M")


class TorchChunks:
    """Runs a causal module chunk by chunk; its streaming submodules hold the state."""

    def __init__(self, model: Enhancer) -> None:
        self._model = cast(CausalEnhancer, _stateful_copy(model))
        self._leaves, self._device = _module(self._model), model.device
        self._open = ExitStack()
        self._open.enter_context(streaming(self._leaves))

    @property
    def delay(self) -> int:
        """The delay in evaluation mode, which in training mode can be less."""
        return self._model.delay

    def reset(self) -> None:
        reset_streaming(self._leaves)

    def __call__(self, audio: Audio, /) -> Audio:
        with torch.inference_mode():
            chunk = torch.from_numpy(audio.astype("float32", copy=False))[None].to(self._device)
            return self._model.forward_chunk(chunk)[0, 0].float().cpu().numpy()


def _module(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ConfigError(
            "a causal model must be a torch module, whose leaves hold its state", subject=type(model).__name__
        )
    return model


def _stateful_copy(model: M) -> M:
    """A copy of a model, in evaluation mode, with its own state and shared weights."""
    module = _module(model)
    copied = copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})
    return cast(M, copied.eval())


def torch_windows(model: Enhancer) -> Callable[[Audio, int, int], Audio]:
    """As ``runners.window_runner``, for whole hops. The model runs in evaluation mode and keeps its previous mode."""
    run: Callable[[Tensor, int, int], Tensor]
    run = WindowedInference(model) if isinstance(model, TwoStage) else lambda *window: _part(model, *window)

    def forward(audio: Audio, skip: int, keep: int) -> Audio:
        with torch.inference_mode(), evaluating(model):
            out = run(torch.from_numpy(audio.copy()).to(model.device), skip, keep)
            return out[:, 0].float().cpu().numpy()

    return forward


def _part(model: Enhancer, audio: Tensor, skip: int, keep: int) -> Tensor:
    return model(audio)[..., skip : skip + keep]
