"""Tests of arrays as input: dtypes, shapes and sample rates are supported or refused with an error."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import twostage
from twostage.audio.highpass import highpass
from twostage.inference.restoration import restore
from twostage.models.enhancer import EnhancerModule
from twostage.models.two_stage import TwoStage
from twostage.utils.errors import AudioError, ConfigError

Speech = Callable[..., np.ndarray]
KINDS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]


class Identity(EnhancerModule):
    sample_rate, hop_length, stride, context = 16000, 256, 256, 0

    def forward(self, audio: Tensor) -> Tensor:
        return audio


def converted(sound: np.ndarray, dtype: str) -> tuple[np.ndarray, float, float]:
    """(audio in the dtype, its value for silence, its amplitude of full scale)."""
    numpy_dtype = np.dtype(dtype)
    if numpy_dtype.kind == "f":
        return sound.astype(numpy_dtype), 0.0, 1.0
    scale = 2.0 ** (8 * numpy_dtype.itemsize - 1)
    middle = scale if numpy_dtype.kind == "u" else 0.0
    return (np.round(sound.astype(np.float64) * scale) + middle).astype(numpy_dtype), middle, scale


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", KINDS)
def test_every_dtype_is_scaled_to_full_scale_and_returned(speech: Speech, dtype: str, as_tensor: bool) -> None:
    sound = speech(8000)
    inputs, silence, scale = converted(sound, dtype)
    out: Any = restore(Identity(), torch.from_numpy(inputs) if as_tensor else inputs, 16000)
    assert type(out) is (Tensor if as_tensor else np.ndarray)
    out = np.asarray(out)
    assert out.dtype == inputs.dtype
    tolerance = max(2 / scale if scale > 1 else 0.0, 1e-3 if dtype == "float16" else 1e-5)
    assert np.abs((out.astype(np.float64) - silence) / scale - highpass(sound, 16000)).max() < tolerance


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint64"])
def test_integers_are_clipped_to_their_range(dtype: str) -> None:
    """A stream has no limiter: samples beyond full scale are clipped and do not wrap around."""

    class Louder(Identity):
        def forward(self, audio: Tensor) -> Tensor:
            return 3 * audio

    sound = (0.9 * np.sin(np.arange(8000) * 0.1)).astype(np.float32)
    inputs, silence, scale = converted(sound, dtype)
    stream = twostage.Stream(Louder(), seconds=0.1)
    out = np.concatenate([stream.push(inputs), stream.flush()])
    assert out.dtype == inputs.dtype
    expected = (3 * highpass(sound, 16000)).clip(-1, 1)
    assert np.abs((out.astype(np.float64) - silence) / scale - expected).max() < max(5 / scale, 1e-4)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.ones(100, complex), "of dtype complex128"),
        (np.ones(100, bool), "of dtype bool"),
        (np.array(["a"] * 100), "of dtype <U1"),
        (np.array([None] * 100), "of dtype object"),
        ([[1, 2], [3]], "no array of numbers"),
        (torch.ones(100, dtype=torch.complex64), "of dtype torch.complex64"),
        (torch.ones(100, dtype=torch.bool), "of dtype torch.bool"),
        (torch.ones(100, device="meta"), "on the meta device"),
        (torch.ones(100).to_sparse(), "sparse"),
        (np.ma.array(np.ones(100), mask=True), "masked"),
        (np.ones((160, 1)), "more channels than samples"),
        (np.array(1.0), r"shape \(\)"),
        (np.full(1000, 1e300), "more than can be restored"),
    ],
)
def test_arrays_that_are_no_audio_are_refused_with_the_reason(audio: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        restore(Identity(), audio, 16000)


@pytest.mark.parametrize("rate", [True, None, float("nan"), float("inf"), "16000", 16, 0, -1, 16000.5, 10**7, [16000]])
def test_invalid_sample_rates_are_refused(rate: Any) -> None:
    with pytest.raises(AudioError, match=r"sample_rate is .*, must be a whole number of Hz from 1000 to 1000000"):
        restore(Identity(), np.ones(100), rate)


def test_invalid_models_and_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model is .default., must be a model that twostage\.load returns"):
        restore("default", np.ones(100), 16000)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seconds is '10', must be a number"):
        restore(Identity(), np.ones(100), 16000, seconds="10")  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1e-4, 1e-20, 1e5])
def test_floating_point_samples_may_have_any_scale(tiny: TwoStage, speech: Speech, scale: float) -> None:
    inputs = speech(8000)
    out = restore(tiny, inputs * np.float32(scale), 16000, level="model")
    assert np.abs(out - restore(tiny, inputs, 16000, level="model")).max() < 1e-4
    returned = restore(Identity(), inputs * np.float32(scale), 16000)
    np.testing.assert_allclose(returned / np.float32(scale), restore(Identity(), inputs, 16000), atol=1e-5)


def test_a_constant_offset_is_restored_as_silence(tiny: TwoStage) -> None:
    with pytest.warns(UserWarning, match="silent"):
        assert not restore(tiny, np.full(8000, 0.7), 16000).any()


def test_training_mode_does_not_change_the_output_and_is_kept(speech: Speech) -> None:
    class Dropping(Identity):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, audio: Tensor) -> Tensor:
            return self.drop(audio)

    model, inputs = Dropping().train(), speech(8000)
    out = restore(model, inputs, 16000)
    assert np.abs(out - highpass(inputs, 16000)).max() < 1e-5
    assert model.drop.training


def test_a_stream_accepts_the_same_arrays_as_restore(speech: Speech) -> None:
    model, inputs = twostage.load("causal"), speech(16000)
    integers = np.round(inputs * 32768).astype(np.int16)
    streams = [twostage.Stream(model) for _ in range(2)]
    output = [
        np.concatenate([s.push(x), s.flush()]) for s, x in zip(streams, (integers, integers / 32768), strict=True)
    ]
    assert output[0].dtype == np.int16
    np.testing.assert_allclose(output[0] / 32768, output[1], atol=1 / 32768)
    with pytest.raises(AudioError, match="samples are of dtype complex128"):
        streams[0].push(np.ones(10, complex))
    with pytest.raises(AudioError, match=r"samples have shape \(160, 1\), wanted \(T,\)"):
        streams[0].push(np.ones((160, 1)))
