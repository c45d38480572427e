"""Tests of causal layers and models: chunks equal the whole, and no output depends on the future."""

from collections.abc import Callable

import pytest
import torch
from streams import CAUSAL_MEL, causal_model, noise
from torch import Tensor, nn

from twostage.models.features import LogMel, Stft
from twostage.models.restorer import Restorer, RestorerConfig
from twostage.models.vocoder import VocoderConfig
from twostage.nn import short
from twostage.nn.layers import GRU, LSTM, Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d
from twostage.nn.streaming import DelayLine, Overlap, Past, continued, stream_states, streaming
from twostage.utils.errors import ConfigError


class TimeLast(nn.Module):
    """Applies a layer over (B, L, C) to (B, C, L)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mT).mT


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: Conv1d(3, 4, 7, dilation=3, causal=True), (3,)),
    "conv1d of one": (lambda: Conv1d(3, 4, 1, causal=True), (3,)),
    "conv2d": (lambda: Conv2d(3, 4, (3, 3), dilation=(1, 4), causal=True), (3, 8)),
    "conv2d, tall": (lambda: Conv2d(3, 4, (5, 3), causal=True), (3, 8)),
    "conv2d, bands pooled": (lambda: Conv2d(3, 4, (4, 2), stride=(4, 1), causal=True), (3, 8)),
    "transposed 1d": (lambda: ConvTranspose1d(3, 4, 16, 8, causal=True), (3,)),
    "transposed 1d, long": (lambda: ConvTranspose1d(3, 4, 19, 4, causal=True), (3,)),
    "transposed 2d": (lambda: ConvTranspose2d(3, 4, (4, 3), (2, 1), causal=True), (3, 8)),
    "gru": (lambda: TimeLast(GRU(3, 5, 2)), (3,)),
    "lstm": (lambda: TimeLast(LSTM(3, 5, 2)), (3,)),
}


def run_in_chunks(model: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    return torch.cat([model(part) for part in x.split(size, -1)], -1)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_a_layer_in_chunks_equals_the_whole(name: str, size: int) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name][0](), LAYERS[name][1]
    x = torch.randn(2, *shape, 40)
    with torch.no_grad():
        whole = layer(x)
        with streaming(layer):
            joined = run_in_chunks(layer, x, size)
        assert torch.equal(layer(x), whole)  # no state is left over
    assert whole.shape[-1] % 40 == 0
    torch.testing.assert_close(joined, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_a_causal_layer_does_not_depend_on_the_future(name: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name][0](), LAYERS[name][1]
    x = torch.randn(1, *shape, 40)
    perturbed = x.clone()
    perturbed[..., 21] += 1
    with torch.no_grad():
        change = (layer(perturbed) - layer(x)).abs().flatten(0, -2).amax(0).unflatten(0, (40, -1)).amax(-1)
    assert change[:21].max() == 0
    assert change[21] > 0


@pytest.mark.parametrize(
    ("ours", "torchs", "shape"),
    [
        (lambda **k: Conv1d(3, 4, 5, dilation=2, **k), nn.Conv1d(3, 4, 5, dilation=2, padding=4), (3, 20)),
        (lambda **k: Conv2d(3, 4, (3, 3), **k), nn.Conv2d(3, 4, 3, padding=1), (3, 8, 20)),
        (lambda **k: Conv2d(3, 4, (2, 2), stride=(2, 2), **k), nn.Conv2d(3, 4, 2, 2), (3, 8, 20)),
        (lambda **k: ConvTranspose1d(3, 4, 8, 4, **k), nn.ConvTranspose1d(3, 4, 8, 4, padding=2), (3, 20)),
        (
            lambda **k: ConvTranspose2d(3, 4, (4, 1), (2, 1), **k),
            nn.ConvTranspose2d(3, 4, (4, 1), (2, 1), (1, 0)),
            (3, 8, 20),
        ),
    ],
)
def test_centered_layers_equal_torchs_and_causal_ones_have_the_same_weights(ours, torchs, shape) -> None:
    centered, causal, x = ours(), ours(causal=True), torch.randn(1, *shape)
    centered.load_state_dict(torchs.state_dict())
    causal.load_state_dict(torchs.state_dict())
    assert torch.equal(centered(x), torchs(x))
    with torch.no_grad():  # with another memory layout
        torch.testing.assert_close(centered(torch.cat([x, x])), torchs(torch.cat([x, x])), atol=1e-6, rtol=0)
    assert causal(x).shape == torchs(x).shape


@pytest.mark.parametrize("in_chunks", [False, True])
def test_the_bias_is_added_once_after_the_overlap(in_chunks: bool) -> None:
    layer = ConvTranspose1d(1, 1, 8, 4, causal=True)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, 0.5)
    with torch.no_grad(), streaming(layer):
        assert run_in_chunks(layer, torch.ones(1, 1, 6), 1 if in_chunks else 6).unique().tolist() == [0.5]


def test_streaming_state_has_a_fixed_size_and_is_held_by_leaf_modules() -> None:
    model = nn.Sequential(Past(3), nn.Identity(), Overlap(2))
    with torch.no_grad(), streaming(model):
        for length in (1, 7, 2):
            model(torch.ones(1, 1, length))
            assert [leaf.value.shape[-1] for leaf in stream_states(model).values()] == [3, 2]
    assert [leaf.value for leaf in stream_states(model).values()] == [None, None]
    assert not model.state_dict()


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [((3, 3), (1, 1), (1, 1)), ((3, 2), (1, 1), (1, 5)), ((4, 1), (4, 1), (1, 1))]
)
def test_the_convolution_for_short_inputs_equals_torchs(kernel, stride, dilation) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 5, kernel, stride, dilation=dilation)
    # in any memory layout
    for x in (torch.randn(1, 6, 16, 9), torch.randn(1, 16, 9, 6).permute(0, 3, 1, 2), torch.randn(1, 6, 9, 16).mT):
        with torch.no_grad():
            assert short.is_short(x)
            actual = short.conv2d(x, conv.weight, conv.bias, stride, dilation)
            torch.testing.assert_close(actual, conv(x), atol=1e-5, rtol=0)
    assert not short.is_short(torch.zeros(1, 6, 16, 9))  # with gradient
    with torch.no_grad():
        assert not short.is_short(torch.zeros(2, 6, 16, 9))
        assert not short.is_short(torch.zeros(1, 6, 16, 900))


def test_causal_frames_end_with_the_hop() -> None:
    stft, audio = Stft(768, 256, causal=True), torch.randn(1, 1, 2560)
    frames = torch.nn.functional.pad(audio, (512, 0))[0, 0].unfold(0, 768, 256)
    torch.testing.assert_close(
        stft.spectrum(audio)[0].T, torch.fft.rfft(frames * torch.hann_window(768)), atol=1e-4, rtol=0
    )
    assert LogMel(CAUSAL_MEL)(audio).shape == (1, 80, 10)


def noise_batch(samples: int) -> Tensor:
    return torch.from_numpy(noise(samples))[None, None]


@pytest.mark.parametrize("hops", [1, 2, 5, 40])
@pytest.mark.parametrize("griffin_lim", [0, 1])
def test_both_stages_in_chunks_equal_the_whole(hops: int, griffin_lim: int) -> None:
    model, audio = causal_model(griffin_lim=griffin_lim), noise_batch(40 * 256)
    with torch.no_grad():
        whole = model(audio)
        with streaming(model):
            delayed = run_in_chunks(model.forward_chunk, continued(audio, model.delay), hops * 256)
    assert model.delay == (512 if griffin_lim else 0)
    assert whole.shape == audio.shape
    assert float(whole.abs().max()) > 0.01
    torch.testing.assert_close(delayed[..., model.delay :], whole, atol=1e-5, rtol=0)


def test_a_model_that_pools_time_streams_in_multiples_of_its_stride() -> None:
    model = causal_model(time_strides=(2, 1))
    audio = noise_batch(39 * 256)  # an odd number of frames
    assert model.stride == 512
    with torch.no_grad():
        whole = model(audio)
        with streaming(model):
            delayed = run_in_chunks(model.forward_chunk, continued(audio, model.delay + 256), model.stride)
    assert whole.shape == audio.shape
    torch.testing.assert_close(delayed[..., model.delay :][..., : 39 * 256], whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("time_strides", [(1, 1), (2, 1)])
def test_no_sample_depends_on_input_beyond_the_latency(time_strides: tuple[int, ...]) -> None:
    model, audio = causal_model(time_strides=time_strides), noise_batch(40 * 256)
    latency = model.delay + model.stride
    with torch.no_grad():
        whole = model(audio)
        for position in (20 * 256, 20 * 256 + 100, 21 * 256 - 1):
            perturbed = audio.clone()
            perturbed[..., position] += 0.5
            change = (model(perturbed) - whole).abs()[0, 0]
            assert change[: position - latency + 1].max() == 0
            assert change[position - latency + 1 :].max() > 1e-3


def test_a_window_of_a_causal_model_equals_the_whole() -> None:
    model, audio = causal_model(), noise_batch(300 * 256)
    with torch.no_grad():
        whole, first, keep = model(audio), 150 * 256, 40 * 256
        assert model.context < first
        part = model(audio[..., first - model.context : first + keep + model.context])[..., model.context :][..., :keep]
    torch.testing.assert_close(part, whole[..., first : first + keep], atol=1e-5, rtol=0)


def test_a_restored_frame_depends_on_the_past_only_within_the_context() -> None:
    torch.manual_seed(0)
    restorer = Restorer(RestorerConfig(CAUSAL_MEL, (4, 8, 8), (1, 1), (4, 2), dilations=(1, 4))).eval()
    nn.init.normal_(restorer.conv_post.parametrizations.weight.original1)
    mel = torch.zeros(1, 80, 160, requires_grad=True)
    restorer(mel)[..., 120].sum().backward()
    reached = mel.grad.abs().amax((0, 1)).nonzero().flatten()
    assert reached.max() == 120
    assert 120 - restorer.context <= reached.min() < 120 - restorer.context // 2


def test_invalid_settings_are_errors_that_name_the_field() -> None:
    with pytest.raises(ConfigError, match=r"vocoder.griffin_lim is 2, must be 0 or 1 with mel.causal"):
        VocoderConfig(CAUSAL_MEL, griffin_lim=2)
    with pytest.raises(ConfigError, match=r"restorer.band_strides and restorer.time_strides differ"):
        RestorerConfig(band_strides=(4, 4))
    with pytest.raises(ConfigError, match=r"mel.n_mels is 80, must be divisible by 64"):
        RestorerConfig(channels=(4, 4), time_strides=(1,), band_strides=(64,))


def test_a_delay_line_delays_without_change() -> None:
    delayed, x = DelayLine(7), torch.randn(2, 3, 40)
    with streaming(delayed):
        joined = run_in_chunks(delayed, x, 5)
    assert torch.equal(joined, delayed(x))
    assert torch.equal(joined[..., 7:], x[..., :-7])
    assert joined[..., :7].abs().max() == 0
