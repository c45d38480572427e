"""Runs models on arrays: ONNX files with ONNX Runtime, modules with PyTorch, which is imported only for these."""

from collections.abc import Callable
from math import ceil
from typing import Protocol

import numpy as np

from twostage.audio.sound_files import match_length
from twostage.audio.types import Audio
from twostage.models.onnx_enhancer import OnnxEnhancer
from twostage.models.protocol import Enhancer


class ChunkRunner(Protocol):
    """A causal model with its own state, in evaluation mode; its output is ``delay`` samples late."""

    @property
    def delay(self) -> int: ...

    def reset(self) -> None:
        """Return to the start of a stream."""
        ...

    def __call__(self, audio: Audio, /) -> Audio:
        """Process the next chunk (inputs, T), T a multiple of the model's stride, to (T,), ``delay`` samples late."""
        ...


WindowRunner = Callable[[Audio, int, int], Audio]


def chunk_runner(model: Enhancer) -> ChunkRunner:
    """A runner for a causal model. Raises ConfigError if the model is neither ONNX nor a module."""
    if isinstance(model, OnnxEnhancer):
        return model.stream()
    from twostage.inference.torch_runners import TorchChunks

    return TorchChunks(model)


def window_runner(model: Enhancer) -> WindowRunner:
    """A function for the windows of one signal in order: audio (B, inputs, T), skip, keep -> output (B, keep).

    T may end within a hop. The first window may begin anywhere; of the others, only the last may end within a hop.
    """
    if isinstance(model, OnnxEnhancer):
        run: WindowRunner = lambda audio, skip, keep: model.enhanced(audio)[:, 0, skip : skip + keep]  # noqa: E731
    else:
        from twostage.inference.torch_runners import torch_windows

        run = torch_windows(model)

    def forward(audio: Audio, skip: int, keep: int) -> Audio:
        padded = ceil(audio.shape[-1] / model.hop_length) * model.hop_length
        return run(match_length(audio, padded).astype(np.float32, copy=False), skip, keep)

    return forward
