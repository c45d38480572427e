"""Small models whose output depends on all of their context, and assertions that hold for every model."""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

import twostage
from twostage.models import checkpoint
from twostage.models.features import MelConfig
from twostage.models.vocoder import VocoderConfig

M = TypeVar("M", bound=nn.Module)


def lively(model: M, dtype: torch.dtype = torch.float64) -> M:
    """The model, folded and in eval mode, with random weights with which every layer passes its input on.

    Initial weights are almost silent. In double precision, rounding errors do not hide small differences.
    """
    torch.manual_seed(0)
    model = model.fold().to(dtype).eval().requires_grad_(False)  # type: ignore[operator]
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape) * (weight[0].numel() if weight.ndim > 1 else 100) ** -0.5)
    return model


def trained_a_little(model: M, steps: int, samples: int) -> M:
    """``model`` in eval mode after some batches of noise (4, 1, samples), which set its running statistics."""
    model.train()
    with torch.no_grad():
        for _ in range(steps):
            model(torch.randn(4, 1, samples))
    return model.eval().requires_grad_(False)


def small_vocoder(mel: MelConfig, channels: int = 8) -> VocoderConfig:
    """A vocoder with two upsampling levels of one residual block each."""
    return VocoderConfig(
        mel=mel,
        upsample_rates=(16, 16),
        upsample_kernel_sizes=(32, 32),
        upsample_initial_channel=channels,
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3),),
    )


def assert_a_stream_is_the_whole(model: Any, size: int, latency: int) -> None:
    """Assert that pushes of ``size`` samples give the same output as all samples at once."""
    audio = 0.1 * np.random.default_rng(0).standard_normal(1003).astype(np.float32)
    with twostage.Stream(model, highpassed=True) as stream:
        assert stream.latency == latency
        out = [stream.push(audio[start : start + size]) for start in range(0, len(audio), size)]
        actual = np.concatenate([*out, stream.flush()])
    with torch.no_grad():
        expected = model(torch.from_numpy(audio)[None, None])[0, 0].numpy()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


def assert_folding_and_a_file_keep_the_output(model: Any, folder: Path) -> None:
    """Assert that the output stays the same when loaded from a file in ``folder``, and when folded."""
    audio = torch.randn(1, 1, 200)
    before = model(audio)
    checkpoint.save(folder / "model.safetensors", model, provenance={})
    torch.testing.assert_close(checkpoint.load(folder / "model.safetensors")(audio), before, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.fold()(audio), before, atol=1e-5, rtol=0)
    assert not any("parametrizations" in key for key in model.state_dict())
