"""Tests of restoring in chunks: models of infinite context keep their state, so that chunks equal the whole."""

from math import inf

import numpy as np
import pytest
import torch

from twostage.inference.chunks import enhance
from twostage.inference.restoration import restore
from twostage.models.enhancer import StreamingModule
from twostage.nn.layers import GRU
from twostage.nn.streaming import DelayLine, continued
from twostage.utils.errors import ConfigError


class Recurrent(StreamingModule):
    """A GRU over hops of 10 samples, with a delay of 7 samples, that stores the lengths of its chunks."""

    causal, context, sample_rate, hop_length, stride, delay = True, inf, 1000, 10, 10, 7

    def __init__(self, lengths):
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.delay_line, self.record_length = GRU(10, 10), DelayLine(7), lengths.append

    def forward_chunk(self, audio):
        self.record_length(audio.shape[-1])
        return self.delay_line(self.gru(audio.unflatten(-1, (-1, 10))[:, 0]).flatten(1)[:, None])


@pytest.fixture
def lengths():
    return []


@pytest.fixture
def model(lengths):
    return Recurrent(lengths).eval().requires_grad_(False)


@pytest.mark.parametrize("frames", [4, 333, 5000])
def test_a_recording_in_chunks_equals_the_whole(model, lengths, frames):
    inputs = np.random.default_rng(0).standard_normal((3, frames)).astype(np.float32)
    whole = np.zeros_like(inputs)
    audible = torch.from_numpy(inputs[[0, 2]])[:, None]
    delayed = model.forward_chunk(continued(audible, 7 + -(frames + 7) % 10))
    whole[[0, 2]] = delayed[:, 0, 7 : 7 + frames].numpy()
    del lengths[:]
    pairs = list(enhance(model, np.array_split(inputs, 4, axis=1), 0.1, [0, 2]))
    assert max(lengths) <= 100
    assert np.array_equal(np.concatenate([before for before, _ in pairs], axis=1), inputs)
    np.testing.assert_allclose(np.concatenate([after for _, after in pairs], axis=1), whole, atol=1e-5, rtol=0)
    assert frames < 100 or np.abs(whole[0] - whole[2]).max() > 0.1


def test_the_output_depends_on_the_state(model):
    """The test above can fail: without the state of the past, the same samples give another output."""
    inputs = torch.randn(1, 1, 1000)
    assert (model(inputs)[..., 500:] - model(inputs[..., 500:])).abs().max() > 1e-2


def test_restore_uses_chunks_of_at_most_ten_seconds(model, lengths):
    inputs = np.random.default_rng(0).standard_normal(25_003).astype(np.float32)
    whole, chunks = (restore(model, inputs, 1000, seconds=seconds, level="model") for seconds in (inf, 0.5))
    assert max(lengths) == 10_000
    np.testing.assert_allclose(chunks, whole, atol=1e-5, rtol=0)


def test_silent_channels_keep_their_length(model):
    pairs = list(enhance(model, [np.ones((2, 555), np.float32)], 0.1, []))
    assert sum(after.shape[1] for _, after in pairs) == 555
    assert not any(after.any() for _, after in pairs)


class NoModule:
    """A causal enhancer that is no torch module and so has no streaming state."""

    causal, context, sample_rate, hop_length, stride, delay, inputs = True, inf, 1000, 10, 10, 7, 1
    latency, device = 17, torch.device("cpu")

    def __call__(self, audio):
        return audio

    forward_chunk = __call__


def test_a_causal_model_must_be_a_module():
    with pytest.raises(ConfigError, match="NoModule: a causal model must be a torch module"):
        restore(NoModule(), np.sin(np.arange(100.0)), 1000)


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_windows_that_are_processed_at_once_equal_windows_one_by_one(tiny, speech, batch):
    """Windows of one batch must not continue each other, as consecutive windows of one signal do."""
    audio = speech(48000)[None]
    outputs = [
        np.concatenate([after for _, after in enhance(tiny, [audio], 0.3, [0], size)], axis=1) for size in (1, batch)
    ]
    assert np.abs(outputs[0]).max() > 0.01
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5, rtol=0)
