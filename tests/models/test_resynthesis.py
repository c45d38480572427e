"""Tests of a vocoder whose encoder takes the log-mels' magnitudes with the sensor's phase."""

from collections.abc import Callable
from math import inf

import numpy as np
import pytest
import torch
from small_models import parameters_with_gradients, randomize
from torch import Tensor

import twostage
from twostage.data.pairs import Pair
from twostage.models.features import InputSpectra, LogMel, MelConfig
from twostage.models.griffinlim import GriffinLim
from twostage.models.restorer import RestorerConfig
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.models.vocoder import Vocoder, VocoderConfig
from twostage.nn.streaming import streaming, with_tail
from twostage.training.tasks import Finetuning, FinetuningWeights, Vocoding, VocodingWeights, total
from twostage.utils.errors import ConfigError

Speech = Callable[..., np.ndarray]
CENTERED, CAUSAL = MelConfig(), MelConfig(n_fft=768, win_length=768, causal=True)
BOTH = pytest.mark.parametrize("mel", [CENTERED, CAUSAL], ids=["centered", "causal"])
SIZES = {
    "upsample_rates": (16, 16),
    "upsample_kernel_sizes": (32, 32),
    "upsample_initial_channel": 16,
    "resblock_kernel_sizes": (3,),
    "resblock_dilation_sizes": ((1, 3),),
}


def config(mel: MelConfig, **settings: object) -> VocoderConfig:
    sensor = {"sensor_input": True, "resynthesis": True, "look_ahead": 2 if mel.causal else 0}
    return VocoderConfig(mel, **(SIZES | sensor | settings))  # type: ignore[arg-type]


def two_stages(mel: MelConfig, **settings: object) -> TwoStage:
    restorer = RestorerConfig(mel, channels=(4, 8), time_strides=(1 if mel.causal else 2,), dilations=(1,))
    model = TwoStage(TwoStageConfig(restorer, config(mel, **settings))).fold().eval().requires_grad_(False)
    torch.manual_seed(0)
    randomize(model, gain=1.0)
    return model


def audio_of(speech: Speech, samples: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(speech(samples, seed=seed))[None, None]


def encoder_input(vocoder: Vocoder, mel: Tensor, spectra: InputSpectra | None, sensor: Tensor | None) -> Tensor:
    """What the encoder takes in ``generate``."""
    inputs: list[Tensor] = []
    assert vocoder.encoder is not None
    with vocoder.encoder.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0])):
        vocoder.generate(mel, spectra, sensor)
    return inputs[0]


@BOTH
def test_the_encoder_takes_the_speech_itself_if_magnitudes_and_phase_are_its_own(
    mel: MelConfig, speech: Speech
) -> None:
    model, audio = two_stages(mel).vocoder, audio_of(speech, 60 * 256)
    delayed = encoder_input(
        model, LogMel(mel)(audio), None, 0.2 * audio
    )  # at the level of the log-mel, not of the sensor
    delay = 512 if mel.causal else 0
    assert model.delay == delay
    error = (delayed[..., delay:] - audio[..., : audio.shape[-1] - delay])[..., 1024:-1024]
    assert float(error.square().mean() / audio.square().mean()) < 0.01


@BOTH
def test_it_is_griffin_lim_on_a_silent_vocoder(mel: MelConfig, speech: Speech) -> None:
    model, clean, bone = two_stages(mel).vocoder, audio_of(speech, 40 * 256), audio_of(speech, 40 * 256, seed=1)
    log_mel, spectra = LogMel(mel)(clean), LogMel(mel).stft.input_spectra(bone)
    expected = GriffinLim(mel, 1, input_phase_below=inf)(torch.zeros_like(clean), log_mel, spectra)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(encoder_input(model, log_mel, spectra, bone), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        encoder_input(model, log_mel, None, bone), expected, atol=1e-6, rtol=0
    )  # from the waveform


@BOTH
def test_a_silent_sensor_gives_silence(mel: MelConfig, speech: Speech) -> None:
    model, audio = two_stages(mel).vocoder, audio_of(speech, 20 * 256)
    log_mel = LogMel(mel)(audio)
    for sensor in (None, torch.zeros_like(audio)):
        assert not encoder_input(model, log_mel, None, sensor).any()
    assert torch.equal(model(log_mel), model(log_mel, sensor=torch.zeros_like(audio)))
    assert (model(log_mel, sensor=audio) - model(log_mel)).abs().max() > 1e-3


@pytest.mark.parametrize("hops", [1, 2, 5, 40])
def test_a_stream_in_chunks_equals_the_whole(hops: int, speech: Speech) -> None:
    model, audio = two_stages(CAUSAL), audio_of(speech, 40 * 256)
    with torch.no_grad():
        whole = model(audio)
        with streaming(model):
            chunks = with_tail(model, audio).split(hops * 256, -1)
            delayed = torch.cat([model.forward_chunk(chunk) for chunk in chunks], -1)
    assert whole.abs().max() > 0.01
    torch.testing.assert_close(delayed[..., model.delay :], whole, atol=1e-5, rtol=0)


def test_no_sample_depends_on_input_that_the_latency_does_not_cover(speech: Speech) -> None:
    model, audio = two_stages(CAUSAL), audio_of(speech, 40 * 256)
    assert model.latency == 768
    whole = model(audio)
    for position in (20 * 256, 20 * 256 + 100, 21 * 256 - 1):
        perturbed = audio.clone()
        perturbed[..., position] += 0.5
        change = (model(perturbed) - whole).abs()[0, 0]
        assert change[: 18 * 256].max() == 0
        assert change[18 * 256 : 21 * 256].max() > 1e-3


@pytest.mark.parametrize("griffin_lim", [0, 1])
def test_restoring_in_windows_equals_the_whole(griffin_lim: int, speech: Speech) -> None:
    model, audio = two_stages(CENTERED, griffin_lim=griffin_lim), speech(40000)
    whole = twostage.restore(model, audio, 16000, seconds=inf, level="model")
    for seconds in (0.1, 0.7):
        windows = twostage.restore(model, audio, 16000, seconds=seconds, level="model")
        np.testing.assert_allclose(windows, whole, atol=1e-5, rtol=0)


@BOTH
def test_a_hop_of_the_sensor_affects_the_output_within_the_context(mel: MelConfig) -> None:
    model = two_stages(mel).vocoder.double()
    length, position = 2 * model.context + 21, model.context + 10
    generator = torch.Generator().manual_seed(0)
    mels = torch.randn(1, 80, length, generator=generator) - 4
    sensor = 0.1 * torch.randn(1, 1, length * 256, generator=generator)
    perturbed = sensor.clone()
    perturbed[..., position * 256 : (position + 1) * 256] += 1
    changed = (model(mels, sensor=sensor) != model(mels, sensor=perturbed))[0, 0].view(length, 256).any(1).nonzero()
    reached = max(position - int(changed[0]), int(changed[-1]) - position)
    assert reached <= model.context
    assert reached >= model.context / (4 if mel.causal else 2)


@BOTH
def test_a_training_uses_the_pair_in_step_and_reaches_all_weights(mel: MelConfig, speech: Speech) -> None:
    clean = torch.from_numpy(speech(2 * 8192)).reshape(2, 1, 8192)
    pair, model = Pair(torch.nn.functional.avg_pool1d(clean, 9, 1, 4), clean), two_stages(mel).train()
    model.requires_grad_(True)
    vocoding = VocodingWeights(adv=0, fm=0)
    output = Vocoding(mel, vocoding)(model.vocoder, pair)
    delay = 512 if mel.causal else 0
    assert output.fake.shape[-1] == 8192 - delay
    assert torch.equal(output.real, clean[..., : 8192 - delay])
    total(output.terms, vocoding).backward()
    reached = parameters_with_gradients(model)
    assert reached == {name for name, _ in model.named_parameters() if name.startswith("vocoder")}
    finetuning = FinetuningWeights(adv=0, fm=0)
    total(Finetuning(mel, finetuning, frames=16)(model, pair).terms, finetuning).backward()
    assert parameters_with_gradients(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("mel", "settings", "message"),
    [
        (CENTERED, {"sensor_input": False}, "vocoder.resynthesis needs vocoder.sensor_input"),
        (CAUSAL, {"look_ahead": 0}, "vocoder.look_ahead is 0, must be mel.n_fft / mel.hop_length - 1, 2, with"),
        (CAUSAL, {"look_ahead": 3}, "vocoder.look_ahead is 3, must be mel.n_fft / mel.hop_length - 1, 2, with"),
    ],
)
def test_invalid_settings_are_errors_that_name_the_field(mel: MelConfig, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(mel, **settings)


def test_a_window_that_is_no_multiple_of_the_hop_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"griffin_lim and resynthesis need mel.win_length equal to mel.n_fft"):
        Vocoder(config(MelConfig(win_length=800)))
