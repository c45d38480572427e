"""Tests of twostage.Stream: pushes of any size give the offline output, within the latency."""

import math

import numpy as np
import pytest
import torch
from streams import SMALL_VOCODER, causal_model, noise, offline
from torch import nn

import twostage
from twostage.audio.highpass import ZeroPhaseHighPass
from twostage.models.enhancer import EnhancerModule
from twostage.models.features import MelConfig
from twostage.models.restorer import RestorerConfig
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.models.vocoder import VocoderConfig
from twostage.nn.streaming import stream_states
from twostage.utils.errors import AudioError, ConfigError

LENGTH = 6000  # not a whole number of hops


def centered() -> TwoStage:
    torch.manual_seed(0)
    restorer = RestorerConfig(channels=(4, 8), time_strides=(2,), dilations=(1,))
    vocoder = VocoderConfig(**SMALL_VOCODER, griffin_lim=2, input_phase_below=4000.0)  # type: ignore[arg-type]
    model = TwoStage(TwoStageConfig(restorer, vocoder)).eval().fold()
    nn.init.normal_(model.restorer.conv_post.weight, 0, 0.1)
    return model


MODELS = {
    "causal": causal_model,
    "causal, pooled time": lambda: causal_model(time_strides=(2, 1)),
    "causal, plain vocoder": lambda: causal_model(griffin_lim=0),
    "causal, looks ahead": lambda: causal_model(griffin_lim=0, look_ahead=2),
    "causal, looks ahead, Griffin-Lim": lambda: causal_model(look_ahead=3),
    "causal, both stages look ahead": lambda: causal_model(griffin_lim=0, look_ahead=1, vocoder_look_ahead=2),
    "causal, resynthesis": lambda: causal_model(griffin_lim=0, look_ahead=1, vocoder_look_ahead=2, resynthesis=True),
    "windows": centered,
}


def streamed(stream: twostage.Stream, audio: np.ndarray, size: int) -> np.ndarray:
    out = [stream.push(audio[i : i + size]) for i in range(0, len(audio), size)]
    return np.concatenate([*out, stream.flush()])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [1, 160, 256, 1000, LENGTH])
def test_streaming_equals_offline(name: str, size: int) -> None:
    model, audio = MODELS[name](), noise(LENGTH)
    with twostage.Stream(model, seconds=0.064) as stream:
        actual = streamed(stream, audio, size)
    expected = offline(model, audio)
    assert actual.dtype == np.float32
    assert float(np.abs(expected).max()) > 0.01
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "windows"])
def test_the_forward_of_an_incomplete_hop_equals_the_start_of_the_stream(name: str) -> None:
    model, audio = MODELS[name](), noise(LENGTH)  # not a whole number of hops
    with torch.no_grad():
        whole = model(torch.from_numpy(audio)[None, None])[0, 0].numpy()
    with twostage.Stream(model, highpassed=True) as stream:
        actual = np.concatenate([stream.push(audio), stream.flush()])
    assert len(whole) == LENGTH // 256 * 256
    np.testing.assert_allclose(whole, actual[: len(whole)], atol=1e-5, rtol=0)


def test_streaming_the_shipped_model_equals_offline() -> None:
    model, audio = twostage.load("causal"), noise(16000)
    with twostage.Stream(model) as stream:
        assert stream.latency <= 0.048 * model.sample_rate
        actual = streamed(stream, audio, 1000)
    np.testing.assert_allclose(actual, offline(model, audio), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_training_mode_streams_and_restores_as_in_evaluation_mode(name: str) -> None:
    model, audio = MODELS[name](), noise(LENGTH)
    expected = twostage.restore(model, audio, 16000), streamed(twostage.Stream(model, seconds=0.064), audio, 1000)
    model.train()
    actual = twostage.restore(model, audio, 16000), streamed(twostage.Stream(model, seconds=0.064), audio, 1000)
    assert all(part.training for part in model.modules())
    for left, right in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", MODELS)
def test_samples_are_returned_within_the_latency(name: str) -> None:
    model, audio = MODELS[name](), noise(40000)
    highpass_filter = ZeroPhaseHighPass(1, 16000, 1600)
    stream, returned = twostage.Stream(model, seconds=0.064), 0
    for pushed in range(100, len(audio), 100):
        returned += len(stream.push(audio[pushed - 100 : pushed]))
        assert returned >= pushed - stream.latency
    assert returned > 0
    assert (
        stream.latency
        == {
            "causal": 768,
            "causal, pooled time": 1024,
            "causal, plain vocoder": 256,
            "causal, looks ahead": 768,
            "causal, looks ahead, Griffin-Lim": 768 + 3 * 256,
            "causal, both stages look ahead": 256 + 3 * 256,
            "causal, resynthesis": 256 + 3 * 256,
            "windows": 1024 + math.ceil(model.context / model.stride) * model.stride + 1 + highpass_filter.latency,
        }[name]
    )


@pytest.mark.parametrize("name", ["causal", "windows"])
def test_a_stream_starts_anew_after_flush_and_after_reset(name: str) -> None:
    model, audio = MODELS[name](), noise(LENGTH)
    stream = twostage.Stream(model, seconds=0.064)
    first = streamed(stream, audio, 500)
    second = streamed(stream, audio, 500)
    np.testing.assert_array_equal(first, second)
    stream.push(noise(5000, seed=9))
    stream.reset()
    np.testing.assert_array_equal(streamed(stream, audio, 500), first)


def test_streams_are_independent_and_share_the_weights() -> None:
    model, first_audio, second_audio = causal_model(), noise(LENGTH), noise(LENGTH, seed=2)
    first, second = twostage.Stream(model), twostage.Stream(model)
    parts: list[list[np.ndarray]] = [[], []]
    for i in range(0, LENGTH, 256):
        parts[0].append(first.push(first_audio[i : i + 256]))
        offline(model, noise(2560, seed=3))
        parts[1].append(second.push(second_audio[i : i + 256]))
    for stream, audio, part in ((first, first_audio, parts[0]), (second, second_audio, parts[1])):
        np.testing.assert_allclose(np.concatenate([*part, stream.flush()]), offline(model, audio), atol=1e-5, rtol=0)
    assert all(leaf.value is None for leaf in stream_states(model).values())
    assert next(first._work._step._model.parameters()).data_ptr() == next(model.parameters()).data_ptr()


def test_the_state_of_a_stream_does_not_grow() -> None:
    stream = twostage.Stream(causal_model())

    def state_bytes() -> int:
        leaves = stream_states(stream._work._step._model).values()
        storages = {leaf.value.untyped_storage().data_ptr(): leaf.value.untyped_storage().nbytes() for leaf in leaves}
        return sum(storages.values()) + stream._work._pending.nbytes

    sizes = []
    for _ in range(60):
        stream.push(noise(300))
        sizes.append(state_bytes())
    assert max(sizes[30:]) <= max(sizes[:30]) < 200_000


def test_a_gain_is_applied_before_and_removed_after_the_model() -> None:
    model, audio = causal_model(), noise(LENGTH)
    with twostage.Stream(model, gain_db=20.0) as stream:
        actual = streamed(stream, audio / 10, 700)
    np.testing.assert_allclose(actual, offline(model, audio) / 10, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pushed", [0, 1, 255, 256])
def test_a_short_stream_keeps_its_length(pushed: int) -> None:
    stream = twostage.Stream(causal_model())
    assert len(stream.push(np.zeros(pushed))) + len(stream.flush()) == pushed


def test_invalid_samples_are_refused_without_losing_the_stream() -> None:
    model, audio = causal_model(), noise(LENGTH)
    stream = twostage.Stream(model)
    start = stream.push(audio[:3000])
    with pytest.raises(AudioError, match=r"samples have shape \(2, 10\), wanted \(T,\)"):
        stream.push(np.zeros((2, 10)))
    with pytest.raises(AudioError, match="NaN or infinite"):
        stream.push(np.array([0.0, np.nan]))
    np.testing.assert_allclose(
        np.concatenate([start, stream.push(audio[3000:]), stream.flush()]), offline(model, audio), atol=1e-5, rtol=0
    )
    stream.close()
    with pytest.raises(AudioError, match="closed"):
        stream.push(audio)


class NeedsWholeSignal(EnhancerModule):
    """An enhancer like a bidirectional recurrence, in which every sample depends on all others."""

    sample_rate, hop_length, stride, context = 16000, 256, 256, math.inf


def test_models_that_need_the_whole_signal_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs all of the signal at once"):
        twostage.Stream(NeedsWholeSignal())
    with pytest.raises(ConfigError, match="seconds is 0"):
        twostage.Stream(causal_model(), seconds=0.0)


def test_a_centered_model_has_another_output_than_the_causal_one() -> None:
    """The equality above can fail: with centered frames, the same weights give another output."""
    causal, audio = causal_model(), noise(LENGTH)
    mel = MelConfig(n_fft=768, win_length=768)
    restorer = RestorerConfig(mel, (4, 8, 8), (1, 1), (4, 2), dilations=(1, 2))
    vocoder = VocoderConfig(mel, **SMALL_VOCODER, griffin_lim=1, input_phase_below=4000.0)  # type: ignore[arg-type]
    centered_model = TwoStage(TwoStageConfig(restorer, vocoder)).eval().fold()
    centered_model.load_state_dict(causal.state_dict())
    assert float(np.abs(offline(centered_model, audio) - offline(causal, audio)).max()) > 1e-2


@pytest.mark.parametrize("gain", [201.0, -201.0, 1e9, [0.0, 1e9]])
def test_gains_outside_200_db_are_refused(tiny: TwoStage, gain: float | list[float]) -> None:
    with pytest.raises(ConfigError, match=r"gain_db is .* must lie between -200 and 200"):
        twostage.Stream(tiny, gain_db=gain)


def test_samples_that_make_the_output_not_finite_are_an_error(tiny: TwoStage) -> None:
    stream = twostage.Stream(tiny, seconds=0.1)
    with pytest.raises(AudioError, match="the model's output is not finite"), np.errstate(all="ignore"):
        stream.push(np.full(32000, 3e38, np.float32))
