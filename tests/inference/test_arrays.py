"""Claims about arrays at the border: each dtype is right or refused by name, rates and shapes are those of files."""

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


def coded(sound: np.ndarray, dtype: str) -> tuple[np.ndarray, float, float]:
    """Sound in a dtype, with what stands for silence and for full scale there."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return sound.astype(kind), 0.0, 1.0
    scale = 2.0 ** (8 * kind.itemsize - 1)
    middle = scale if kind.kind == "u" else 0.0
    return (np.round(sound.astype(np.float64) * scale) + middle).astype(kind), middle, scale


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", KINDS)
def test_every_dtype_is_taken_at_its_full_scale_and_given_back(speech: Speech, dtype: str, as_tensor: bool) -> None:
    sound = speech(8000)
    inputs, middle, scale = coded(sound, dtype)
    out: Any = restore(Identity(), torch.from_numpy(inputs) if as_tensor else inputs, 16000)
    assert type(out) is (Tensor if as_tensor else np.ndarray)
    out = np.asarray(out)
    assert out.dtype == inputs.dtype
    step = max(2 / scale if scale > 1 else 0.0, 1e-3 if dtype == "float16" else 1e-5)
    assert np.abs((out.astype(np.float64) - middle) / scale - highpass(sound, 16000)).max() < step


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint64"])
def test_integers_stop_at_the_end_of_their_range(dtype: str) -> None:
    """A stream has no limiter: what a model makes too loud is clipped, and nothing wraps around."""

    class Louder(Identity):
        def forward(self, audio: Tensor) -> Tensor:
            return 3 * audio

    sound = (0.9 * np.sin(np.arange(8000) * 0.1)).astype(np.float32)
    inputs, middle, scale = coded(sound, dtype)
    stream = twostage.Stream(Louder(), seconds=0.1)
    out = np.concatenate([stream.push(inputs), stream.flush()])
    assert out.dtype == inputs.dtype
    wanted = (3 * highpass(sound, 16000)).clip(-1, 1)
    assert np.abs((out.astype(np.float64) - middle) / scale - wanted).max() < max(5 / scale, 1e-4)


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
def test_what_is_no_sound_is_refused_by_name(audio: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        restore(Identity(), audio, 16000)


@pytest.mark.parametrize("rate", [True, None, float("nan"), float("inf"), "16000", 16, 0, -1, 16000.5, 10**7, [16000]])
def test_sample_rates_are_those_that_files_may_have(rate: Any) -> None:
    with pytest.raises(AudioError, match=r"sample_rate is .*, must be a whole number of Hz from 1000 to 1000000"):
        restore(Identity(), np.ones(100), rate)


def test_what_is_no_model_and_what_is_no_setting() -> None:
    with pytest.raises(ConfigError, match=r"model is .default., must be a model that twostage\.load returns"):
        restore("default", np.ones(100), 16000)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seconds is '10', must be a number"):
        restore(Identity(), np.ones(100), 16000, seconds="10")  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", [1e-4, 1e-20, 1e5])
def test_floats_may_be_in_any_unit(tiny: TwoStage, speech: Speech, unit: float) -> None:
    inputs = speech(8000)
    out = restore(tiny, inputs * np.float32(unit), 16000, level="model")
    assert np.abs(out - restore(tiny, inputs, 16000, level="model")).max() < 1e-4
    back = restore(Identity(), inputs * np.float32(unit), 16000)
    np.testing.assert_allclose(back / np.float32(unit), restore(Identity(), inputs, 16000), atol=1e-5)


def test_an_offset_alone_is_silence(tiny: TwoStage) -> None:
    with pytest.warns(UserWarning, match="silent"):
        assert not restore(tiny, np.full(8000, 0.7), 16000).any()


def test_the_mode_of_a_training_changes_nothing_and_stays(speech: Speech) -> None:
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


def test_a_stream_takes_what_restore_takes(speech: Speech) -> None:
    model, inputs = twostage.load("causal"), speech(16000)
    whole = np.round(inputs * 32768).astype(np.int16)
    streams = [twostage.Stream(model) for _ in range(2)]
    output = [np.concatenate([s.push(x), s.flush()]) for s, x in zip(streams, (whole, whole / 32768), strict=True)]
    assert output[0].dtype == np.int16
    np.testing.assert_allclose(output[0] / 32768, output[1], atol=1 / 32768)
    with pytest.raises(AudioError, match="samples are of dtype complex128"):
        streams[0].push(np.ones(10, complex))
    with pytest.raises(AudioError, match=r"samples have shape \(160, 1\), wanted \(T,\)"):
        streams[0].push(np.ones((160, 1)))
