"""Small models whose output depends on all of their context, and assertions that hold for every model."""

from collections.abc import Iterable
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


def randomize(model: nn.Module, gain: float = 1.2) -> None:
    """Set random weights with which every layer passes its input on. Initial weights are almost silent."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            fan = weight[0].numel() if weight.ndim > 1 else 1
            weight.copy_(torch.randn(weight.shape) * (0.1 if name.endswith("bias") else gain / fan**0.5))


def with_random_weights(model: M, dtype: torch.dtype = torch.float64) -> M:
    """The model, folded and in eval mode, with the same random weights at every call, which pass the input on.

    In double precision, rounding errors do not hide small differences.
    """
    torch.manual_seed(0)
    model = model.fold().to(dtype).eval().requires_grad_(False)  # type: ignore[operator]
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape) * (weight[0].numel() if weight.ndim > 1 else 100) ** -0.5)
    return model


def with_statistics_of_noise(model: M, steps: int, samples: int) -> M:
    """``model`` in eval mode after some batches of noise (4, 1, samples), which set its running statistics."""
    model.train()
    with torch.no_grad():
        for _ in range(steps):
            model(torch.randn(4, 1, samples))
    return model.eval().requires_grad_(False)


def small_vocoder(mel: MelConfig, channels: int = 8, **settings: Any) -> VocoderConfig:
    """A vocoder with two upsampling levels of one residual block each."""
    sizes: dict[str, Any] = {
        "upsample_rates": (16, 16),
        "upsample_kernel_sizes": (32, 32),
        "upsample_initial_channel": channels,
        "resblock_kernel_sizes": (3,),
        "resblock_dilation_sizes": ((1, 3),),
    }
    return VocoderConfig(mel, **sizes, **settings)


def assert_stream_equals_offline(
    model: Any, size: int, latency: int, *, samples: int = 1003, level: float = 0.1
) -> None:
    """Assert that pushes of ``size`` samples of noise give the same output as all samples at once."""
    audio = (level * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)
    with twostage.Stream(model, highpassed=True) as stream:
        assert stream.latency == latency
        parts = [stream.push(audio[start : start + size]) for start in range(0, len(audio), size)]
        actual = np.concatenate([*parts, stream.flush()])
    with torch.no_grad():
        expected = model(torch.from_numpy(audio)[None, None])[0, 0].numpy()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


def first_changed_sample(model: Any, samples: int, changed_from: int) -> int:
    """The first output sample that changes when noise of ``samples`` is changed from a sample on."""
    audio = torch.randn(1, 1, samples)
    perturbed = audio.clone()
    perturbed[..., changed_from:] += 1
    return int((model(audio) != model(perturbed))[0, 0].nonzero()[0])


def response_extent(model: Any, audio: torch.Tensor, positions: Iterable[int]) -> tuple[int, int]:
    """How far before and after it a sample changes the output, at most.

    The receptive field depends on the position within a stride, so that ``positions`` cover one.
    """
    before = after = 0
    for position in positions:
        perturbed = audio.clone()
        perturbed[..., position] += 1
        changed = (model(audio) != model(perturbed))[0, 0].nonzero().flatten()
        before, after = max(before, position - int(changed[0])), max(after, int(changed[-1]) - position)
    return before, after


def assert_file_and_folding_keep_the_output(model: Any, folder: Path) -> None:
    """Assert that the output stays the same when loaded from a file in ``folder``, and when folded."""
    audio = torch.randn(1, 1, 200)
    before = model(audio)
    checkpoint.save(folder / "model.safetensors", model, provenance={})
    torch.testing.assert_close(checkpoint.load(folder / "model.safetensors")(audio), before, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.fold()(audio), before, atol=1e-5, rtol=0)
    assert not any("parametrizations" in key for key in model.state_dict())


def parameters_with_gradients(model: nn.Module) -> set[str]:
    """The names of the parameters whose gradient is not zero."""
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def assert_gradients_reach_every_weight(model: Any, samples: int) -> None:
    """Assert that the output is float32 and that the sum of the loss terms depends on every weight.

    This holds under autocast to bfloat16, too.
    """
    for autocast in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out, terms = model.terms(torch.randn(2, 1, samples), torch.randn(2, 1, samples))
        assert out.dtype == torch.float32
        sum(terms.values()).backward()
        assert parameters_with_gradients(model) == {name for name, _ in model.named_parameters()}
