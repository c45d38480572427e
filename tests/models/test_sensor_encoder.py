"""Tests of a vocoder with the sensor's waveform as input: initialization, streaming, windows, training and export."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_models import parameters_with_gradients, randomize
from torch import Tensor, nn
from trainings import data_overrides

import twostage
from twostage.audio.levels import leveled
from twostage.audio.speech import without_drift
from twostage.cli import main
from twostage.data.pairs import Pair
from twostage.data.sensors import Sensor
from twostage.evaluation import costs
from twostage.evaluation.systems import CopySynthesis, estimates, load_systems
from twostage.export.calibration import calibration_speech
from twostage.inference.windowed_inference import WindowedInference
from twostage.models import checkpoint
from twostage.models.features import LogMel, MelConfig
from twostage.models.onnx_enhancer import OnnxEnhancer
from twostage.models.restorer import RestorerConfig
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.models.vocoder import Vocoder, VocoderConfig
from twostage.nn.streaming import continued, stream_states, streaming, with_tail
from twostage.training.config import FinetuneRun, RestorerRun, VocoderRun, load_config
from twostage.training.recipes import finetune, last_weight, train_restorer
from twostage.training.tasks import Finetuning, FinetuningWeights, Vocoding, VocodingWeights, total
from twostage.utils.errors import ConfigError

Speech = Callable[..., np.ndarray]
CENTERED, CAUSAL = MelConfig(n_mels=16), MelConfig(n_fft=768, win_length=768, n_mels=16, causal=True)
SIZES = {
    "upsample_rates": (4, 4, 4, 4),
    "upsample_kernel_sizes": (8, 8, 8, 8),
    "upsample_initial_channel": 16,
    "resblock_kernel_sizes": (3,),
    "resblock_dilation_sizes": ((1, 3),),
}


def config(mel: MelConfig, *, sensor_input: bool = True, griffin_lim: int = 0, **settings: object) -> VocoderConfig:
    if griffin_lim:
        settings = {"griffin_lim": griffin_lim, "input_phase_below": 4000.0, "griffin_lim_below": 2000.0} | settings
    return VocoderConfig(mel, **(SIZES | {"sensor_input": sensor_input} | settings))  # type: ignore[arg-type]


def vocoder(settings: VocoderConfig) -> Vocoder:
    model = Vocoder(settings).fold().double().eval().requires_grad_(False)
    torch.manual_seed(0)
    randomize(model, gain=1.0)
    return model


def two_stages(mel: MelConfig, griffin_lim: int = 0, time_stride: int = 1, inputs: int = 1) -> TwoStage:
    restorer = RestorerConfig(mel, channels=(4, 8), time_strides=(time_stride,), dilations=(1,), inputs=inputs)
    model = TwoStage(TwoStageConfig(restorer, config(mel, griffin_lim=griffin_lim))).fold().eval().requires_grad_(False)
    torch.manual_seed(0)
    randomize(model, gain=1.0)
    return model


def noise(*shape: int, seed: int = 1) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mel", [CENTERED, CAUSAL], ids=["centered", "causal"])
def test_the_initial_output_equals_that_of_the_plain_generator_bitwise(mel: MelConfig) -> None:
    plain, with_sensor = Vocoder(config(mel, sensor_input=False)).eval(), Vocoder(config(mel)).eval()
    with_sensor.load_state_dict(plain.state_dict(), strict=False)
    mels, sensor = noise(2, 16, 9) - 5, noise(2, 1, 9 * 256)
    with torch.no_grad():
        assert torch.equal(with_sensor(mels, sensor=sensor), plain(mels))
        nn.init.normal_(with_sensor.encoder.outs[2].weight, 0, 0.1)
        assert (with_sensor(mels, sensor=sensor) - plain(mels)).abs().max() > 1e-6
        assert torch.equal(plain(mels, sensor=sensor), plain(mels))  # it ignores the sensor


def test_the_weights_have_the_names_of_the_generator_and_the_encoder() -> None:
    """The names must not change, since checkpoints of trainings contain them."""
    names = {name for name, _ in Vocoder(config(CENTERED)).fold().named_parameters()}
    plain = {name for name, _ in Vocoder(config(CENTERED, sensor_input=False)).fold().named_parameters()}
    stems = {name.removesuffix(".weight").removesuffix(".bias") for name in names - plain}
    assert plain < names
    assert stems == {
        "encoder.conv_pre",
        *(f"encoder.downs.{level}" for level in range(4)),
        *(f"encoder.resblocks.{level}.convs.{conv}" for level in range(5) for conv in range(2)),
        *(f"encoder.outs.{level}" for level in range(5)),
    }
    assert asdict(config(CENTERED))["sensor_input"] is True
    assert asdict(VocoderConfig())["sensor_input"] is False


def test_a_missing_sensor_is_silence_also_in_copy_synthesis(speech: Speech) -> None:
    model, audio = two_stages(CENTERED).vocoder, torch.from_numpy(speech(20 * 256))[None, None]
    mels = LogMel(CENTERED)(audio)
    silent = model(mels, sensor=torch.zeros_like(audio))
    assert torch.equal(model(mels), silent)
    assert torch.equal(CopySynthesis(model)(audio), silent)
    assert (model(mels, sensor=audio) - silent).abs().max() > 1e-3


def test_copy_synthesis_is_measured_with_and_without_the_sensor(tmp_path: Path, speech: Speech) -> None:
    model = two_stages(CENTERED)
    checkpoint.save(tmp_path / "m.safetensors", model, provenance={})
    systems = load_systems({"ours": [str(tmp_path / "m.safetensors")]})
    names = ["ours", "ours, copy-synthesis", "ours, with the sensor, copy-synthesis"]
    assert [system.name for system in systems] == names
    clean, bone = speech(8000), speech(7000, seed=1)  # the end of the clean speech has no sensor signal
    actual = dict(estimates(bone, clean, systems))
    sides = [torch.from_numpy(leveled(without_drift(side, 16000), 16000)) for side in (clean, np.pad(bone, (0, 1000)))]
    padded = [nn.functional.pad(side, (0, 192))[None, None] for side in sides]
    output = model.vocoder(LogMel(CENTERED)(padded[0]), sensor=padded[1])[0, 0, :8000].numpy()
    differences = {name: 1 - np.corrcoef(output, actual[name])[0, 1] for name in names[1:]}  # independent of level
    assert differences[names[2]] < 1e-5 < 0.1 * differences[names[1]]


@pytest.mark.parametrize("sensor_input", [True, False])
def test_folding_keeps_the_output(sensor_input: bool) -> None:
    model, mels, sensor = (
        Vocoder(config(CENTERED, sensor_input=sensor_input)).eval(),
        noise(1, 16, 9) - 5,
        noise(1, 1, 9 * 256),
    )
    torch.manual_seed(0)
    randomize(model, gain=1.0)
    with torch.no_grad():
        before = model(mels, sensor=sensor)
        torch.testing.assert_close(model.fold()(mels, sensor=sensor), before, atol=1e-5, rtol=0)
    assert not any("parametrizations" in name for name in model.state_dict())


WIDE = {"upsample_rates": (16, 16), "upsample_kernel_sizes": (48, 16), "resblock_kernel_sizes": (3, 7)}
WIDE |= {"resblock_dilation_sizes": ((1, 2), (3, 12)), "resblock": 2}


@pytest.mark.parametrize("mel", [CENTERED, CAUSAL], ids=["centered", "causal"])
@pytest.mark.parametrize("settings", [{}, WIDE], ids=["narrow", "wide"])
def test_a_hop_of_the_sensor_affects_the_output_within_the_context(mel: MelConfig, settings: dict) -> None:
    model = vocoder(config(mel, **settings))
    length, position = 2 * model.context + 21, model.context + 10
    mels, sensor = noise(1, 16, length).double(), noise(1, 1, length * 256).double()
    perturbed = sensor.clone()
    perturbed[..., position * 256 : (position + 1) * 256] += 1
    changed = (model(mels, sensor=sensor) != model(mels, sensor=perturbed))[0, 0].view(length, 256).any(1).nonzero()
    reached = max(position - int(changed[0]), int(changed[-1]) - position)
    assert model.context - 2 <= reached <= model.context  # the bound holds and is tight
    if mel.causal:
        assert int(changed[0]) == position


@pytest.mark.parametrize("hops", [1, 2, 5, 40])
@pytest.mark.parametrize("griffin_lim", [0, 1])
def test_a_stream_in_chunks_equals_the_whole(hops: int, griffin_lim: int) -> None:
    model, audio = two_stages(CAUSAL, griffin_lim), noise(1, 1, 40 * 256)
    padded = with_tail(model, audio)
    with torch.no_grad():
        whole = model(audio)
        with streaming(model):
            delayed = torch.cat([model.forward_chunk(chunk) for chunk in padded.split(hops * 256, -1)], -1)
    assert whole.abs().max() > 0.01
    torch.testing.assert_close(delayed[..., model.delay :], whole, atol=1e-5, rtol=0)
    without_sensor = model.vocoder(
        model.restored(model.mel.stft.input_spectra(audio)), model.mel.stft.input_spectra(audio)
    )
    assert (whole - without_sensor).abs().max() > 1e-3  # the sensor affects the output


@pytest.mark.parametrize("size", [1, 160, 256, 1000, 6000])
def test_pushes_of_any_size_equal_the_whole_with_a_latency_of_one_hop(size: int) -> None:
    model, audio = two_stages(CAUSAL), noise(1, 1, 24 * 256)
    with twostage.Stream(model, highpassed=True) as stream:
        assert stream.latency == model.latency == 256
        parts = [stream.push(part.numpy()) for part in audio[0, 0, :6000].split(size)]
        output = np.concatenate([*parts, stream.flush()])
    whole = model(continued(audio[..., :6000], 144))[0, 0, :6000]
    np.testing.assert_allclose(output, whole.numpy(), atol=1e-5, rtol=0)


def test_no_sample_depends_on_input_beyond_its_hop() -> None:
    model, audio = two_stages(CAUSAL), noise(1, 1, 40 * 256)
    whole = model(audio)
    for position in (20 * 256, 20 * 256 + 100, 21 * 256 - 1):
        perturbed = audio.clone()
        perturbed[..., position] += 0.5
        change = (model(perturbed) - whole).abs()[0, 0]
        assert change[: 20 * 256].max() == 0
        assert change[20 * 256 :].max() > 1e-3


@pytest.mark.parametrize("look_ahead", [0, 1, 3])
def test_a_sample_depends_on_the_log_mels_that_the_vocoder_looks_ahead_and_on_no_later_sensor_sample(
    look_ahead: int,
) -> None:
    model = vocoder(config(CAUSAL, look_ahead=look_ahead))
    mel, sensor = noise(1, 16, 40).double() - 4, noise(1, 1, 40 * 256).double()
    later_mel, later_sensor = mel.clone(), sensor.clone()
    later_mel[..., 20] += 1
    later_sensor[..., 20 * 256] += 0.5
    whole = model(mel, sensor=sensor)
    assert whole.shape == sensor.shape
    for changed, first in (
        (model(later_mel, sensor=sensor), (20 - look_ahead) * 256),
        (model(mel, sensor=later_sensor), 20 * 256),
    ):
        assert int((changed != whole).nonzero()[0, -1]) == first
    late = model.forward_chunk(mel, sensor=sensor)
    torch.testing.assert_close(late[..., model.delay :], whole[..., : whole.shape[-1] - model.delay])


def test_in_training_a_vocoder_that_looks_ahead_leaves_out_samples_whose_future_is_unknown() -> None:
    model = vocoder(config(CAUSAL, look_ahead=2))
    mel, sensor = noise(1, 16, 40).double() - 4, noise(1, 1, 40 * 256).double()
    whole = model(mel, sensor=sensor)
    torch.testing.assert_close(model.train()(mel, sensor=sensor), whole[..., : -2 * 256])


def test_leaf_modules_of_the_encoder_hold_the_streaming_state() -> None:
    model = two_stages(CAUSAL)
    with torch.no_grad(), streaming(model):
        model.forward_chunk(noise(1, 1, 256))
        sizes = {name: leaf.value.shape[-1] for name, leaf in stream_states(model.vocoder.encoder).items()}
    assert sizes["conv_pre.past"] == 6
    assert [sizes[f"downs.{level}.past"] for level in range(4)] == [4] * 4
    assert [sizes[f"resblocks.4.convs.{conv}.past"] for conv in range(2)] == [2, 6]


@pytest.mark.parametrize("griffin_lim", [0, 2])
@pytest.mark.parametrize("frames", [1, 255, 12345, 40000])
def test_restoring_in_windows_equals_the_whole(griffin_lim: int, frames: int, speech: Speech) -> None:
    model, audio = two_stages(CENTERED, griffin_lim, time_stride=2), np.stack([speech(frames), speech(frames, seed=1)])
    whole = twostage.restore(model, audio, 16000, seconds=float("inf"), level="model")
    for seconds in (0.1, 0.7):
        windows = twostage.restore(model, audio, 16000, seconds=seconds, level="model")
        np.testing.assert_allclose(windows, whole, atol=1e-5, rtol=0)
    with twostage.Stream(model, seconds=0.25, highpassed=True) as stream:
        output = np.concatenate([*(stream.push(part) for part in np.array_split(audio[0], 9)), stream.flush()])
    padded = torch.from_numpy(np.pad(audio[0], (0, -frames % 256)))[None, None]
    np.testing.assert_allclose(output, model(padded)[0, 0, :frames].numpy(), atol=1e-5, rtol=0)


def test_a_window_needs_the_context_of_the_encoder(speech: Speech, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: with too small a context of the generator, windows differ."""
    model, audio = two_stages(CENTERED), torch.from_numpy(speech(120 * 256))[None, None]
    whole = model(audio)

    def error() -> float:
        window, context = WindowedInference(model), -(-model.context // model.stride) * model.stride
        part = window(audio[..., 60 * 256 - context : 80 * 256 + context], context, 20 * 256)
        return float((part - whole[..., 60 * 256 : 80 * 256]).abs().max())

    assert error() < 1e-5
    monkeypatch.setattr(type(model.vocoder), "generator_context", property(lambda _: 1))
    assert error() > 1e-4


def test_the_vocoder_gets_the_bone_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    model, audio, sensors = two_stages(CENTERED, inputs=2), noise(1, 2, 20 * 256 + 100), []
    generate = model.vocoder.generate
    monkeypatch.setattr(
        model.vocoder, "generate", lambda mel, spectra, sensor: sensors.append(sensor) or generate(mel, spectra, sensor)
    )
    assert model(audio).shape == (1, 1, 20 * 256)
    WindowedInference(model)(audio[..., : 20 * 256], 0, 20 * 256)
    assert torch.equal(sensors[0], audio[:, :1])
    assert torch.equal(sensors[1], audio[:, :1, : 20 * 256])


@pytest.mark.parametrize("trained", ["vocoder", "restorer"])
def test_gradients_reach_exactly_the_trained_stage(trained: str, speech: Speech) -> None:
    clean = torch.from_numpy(speech(2 * 4096)).reshape(2, 1, 4096)
    pair, model = Pair(nn.functional.avg_pool1d(clean, 9, 1, 4), clean), two_stages(CENTERED)
    model.get_submodule(trained).requires_grad_(True)
    weights = FinetuningWeights(restored=float(trained == "restorer"), adv=0, fm=0)
    total(Finetuning(CENTERED, weights, frames=8)(model.train(), pair).terms, weights).backward()
    reached = parameters_with_gradients(model)
    assert reached == {name for name, _ in model.named_parameters() if name.startswith(trained)}


def test_initial_gradients_reach_the_output_layers_of_the_encoder_and_then_all_layers(speech: Speech) -> None:
    clean = torch.from_numpy(speech(4096)).reshape(1, 1, 4096)
    model, weights = Vocoder(config(CENTERED)), VocodingWeights(adv=0, fm=0)

    def step() -> set[str]:
        model.zero_grad()
        total(Vocoding(CENTERED, weights)(model, Pair(0.5 * clean, clean)).terms, weights).backward()
        return parameters_with_gradients(model)

    inside = {name for name, _ in model.encoder.named_parameters(prefix="encoder") if ".outs." not in name}
    everything = {name for name, _ in model.named_parameters()}
    assert step() == everything - inside  # the output layers are still zero
    for out in model.encoder.outs:
        nn.init.normal_(out.weight, 0, 0.1)
    assert step() == everything


def test_the_last_weight_is_that_of_the_generator() -> None:
    model = TwoStage(TwoStageConfig(RestorerConfig(CENTERED, (4, 8), (1,), dilations=(1,)), config(CENTERED)))
    assert last_weight(model) is model.vocoder.conv_post.parametrizations.weight.original1


def test_the_cost_of_the_encoder_equals_the_count_by_hand() -> None:
    models = [Vocoder(config(CENTERED, sensor_input=sensor_input)).fold() for sensor_input in (True, False)]
    with_encoder, without_encoder = (costs.macs(model, noise(1, 16, 125)) for model in models)
    channels, rates, samples = [1, 2, 4, 8, 16], [1, 4, 16, 64, 256], 125 * 256
    residual = sum(2 * 3 * c * c * samples // r for c, r in zip(channels, rates, strict=True))
    strided = sum(8 * a * b * samples // r for a, b, r in zip(channels, channels[1:], rates[1:], strict=False))
    outs = sum(c * c * samples // r for c, r in zip(channels, rates, strict=True))
    assert with_encoder - without_encoder == 7 * samples + residual + strided + outs


def test_the_cost_of_both_stages_includes_the_encoder() -> None:
    with_sensor = two_stages(CENTERED)
    plain = TwoStage(replace(with_sensor.config, vocoder=config(CENTERED, sensor_input=False))).fold()
    additional = costs.gmac_per_second(with_sensor) - costs.gmac_per_second(plain)
    vocoders = [costs.macs(model.vocoder, noise(1, 16, 125)) for model in (with_sensor, plain)]
    assert additional == pytest.approx((vocoders[0] - vocoders[1]) / 1e9 / 2, rel=1e-6)
    assert costs.latency(two_stages(CAUSAL)) == 0.016


def test_a_loaded_checkpoint_restores_the_same(tmp_path: Path, speech: Speech) -> None:
    model, audio = two_stages(CENTERED), speech(9000)
    checkpoint.save(tmp_path / "m.safetensors", model, provenance={})
    loaded = twostage.load(tmp_path / "m.safetensors")
    assert isinstance(loaded, TwoStage)
    assert loaded.config.vocoder.sensor_input
    expected = twostage.restore(model, audio, 16000)
    np.testing.assert_allclose(twostage.restore(loaded, audio, 16000), expected, atol=1e-6)


def test_the_overlays_sensor_and_causal_combine_with_others(corpus: Path) -> None:
    overrides = data_overrides(corpus)
    for files in (["vocoder", "content", "sensor", "causal"], ["vocoder", "sensor", "causal"]):
        settings = load_config(VocoderRun, files, overrides)
        assert (settings.vocoder.sensor_input, settings.vocoder.mel.causal) == (True, True)
        assert (Vocoder(settings.vocoder).eval().delay, settings.vocoder.griffin_lim) == (512, 0)
        assert settings.data.silent_prob == 0.15


@pytest.mark.parametrize("train", ["vocoder", "both"])
def test_finetuning_changes_the_encoder(train: str, corpus: Path, tmp_path: Path) -> None:
    tiny = ["finetune", "tiny"]
    model = TwoStage(TwoStageConfig(RestorerConfig(CENTERED, (4, 8), (2,), dilations=(1,)), config(CENTERED)))
    torch.manual_seed(0)
    randomize(model, gain=1.0)
    checkpoint.save(tmp_path / "m.safetensors", model, provenance={})
    overrides = [
        *data_overrides(corpus, tmp_path / "run"),
        "data.sensors=[any]",
        "data.sensor_weights=[]",
    ]
    overrides += [
        f"models=[{tmp_path / 'm.safetensors'}]",
        f"train={train}",
        "steps=2",
        "save_every=1",
        "valid.every=2",
    ]
    overrides += ["optimizer.learning_rate=0.01", "optimizer.warmup=0"]
    finetune(load_config(FinetuneRun, tiny, [*overrides, "frames=4", f"weights.restored={int(train == 'both')}"]))
    before, after = checkpoint.plain_state(model), twostage.load(tmp_path / "run" / "last.safetensors").state_dict()
    changed = {name for name, tensor in after.items() if not torch.allclose(tensor, before[name], atol=1e-7)}
    assert {name for name in after if name.startswith("vocoder.encoder.")} <= changed
    assert any(name.startswith("restorer.") for name in changed) == (train == "both")


def test_a_restorer_is_validated_with_a_vocoder_with_sensor_input(corpus: Path, tmp_path: Path) -> None:
    model = two_stages(CENTERED)
    checkpoint.save(tmp_path / "v.safetensors", model.vocoder, provenance={})
    overrides = [
        *data_overrides(corpus, tmp_path / "run"),
        "steps=2",
        "valid.every=2",
    ]
    validation = [f"valid.vocoder={tmp_path / 'v.safetensors'}", "valid.metrics=[mel_l1,stoi]"]
    train_restorer(
        load_config(
            RestorerRun, ["restorer", "tiny"], [*overrides, *validation, "data.sensors=[any]", "data.sensor_weights=[]"]
        )
    )
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_sensor_input_without_sensors_is_refused(corpus: Path, paired_corpus: Path) -> None:
    overrides = [*data_overrides(corpus), "vocoder.sensor_input=true"]
    with pytest.raises(ConfigError, match=r"^data.sensors is empty, and vocoder.sensor_input needs them"):
        load_config(VocoderRun, ["vocoder"], overrides)
    assert load_config(VocoderRun, ["vocoder"], [*overrides, "data.sensors=[any]"]).vocoder.sensor_input
    real = [f"data.train=[{paired_corpus}]", "data.real_fraction=1"]
    assert load_config(VocoderRun, ["vocoder"], [*overrides, *real]).vocoder.sensor_input


@pytest.mark.slow
def test_an_exported_model_of_any_length_equals_pytorch(tmp_path: Path, speech: Speech, corpus: Path) -> None:
    from twostage.export.onnx import _quantized, difference, mel_difference

    model, out = two_stages(CENTERED, griffin_lim=1, time_stride=2), tmp_path / "whole.onnx"
    checkpoint.save(tmp_path / "m.safetensors", model, provenance={})
    assert main(["export", str(tmp_path / "m.safetensors"), str(out)]) == 0
    whole = OnnxEnhancer(out)
    for hops in (1, 2, 3, 40):
        audio = torch.from_numpy(speech(hops * 256 + 100))[None, None]
        torch.testing.assert_close(whole(audio), model(audio), atol=2e-5, rtol=0)
    quantized = OnnxEnhancer(
        _quantized(out, replace(whole.header, int8=True), calibration_speech(corpus, Sensor(), 16000))
    )
    int8_names = {
        tensor.name for tensor in onnx.load(quantized.path).graph.initializer if tensor.name.endswith("_quantized")
    }
    assert {f"vocoder.encoder.downs.{level}.weight_quantized" for level in range(4)} < int8_names
    assert not any("conv_pre" in name for name in int8_names)
    assert 0 < mel_difference(model, quantized) < 0.3
    assert difference(model, whole) < difference(model, quantized)


@pytest.mark.slow
@pytest.mark.parametrize("griffin_lim", [0, 1])
def test_an_exported_step_equals_pytorch(griffin_lim: int, tmp_path: Path, speech: Speech) -> None:
    model, out = two_stages(CAUSAL, griffin_lim), tmp_path / "step.onnx"
    checkpoint.save(tmp_path / "m.safetensors", model, provenance={})
    assert main(["export", str(tmp_path / "m.safetensors"), str(out), "--stream"]) == 0
    step = OnnxEnhancer(out)
    assert step.latency == model.latency == 256 + 512 * griffin_lim
    for hops in (1, 2, 40):
        audio = torch.from_numpy(speech(hops * 256 + 100))[None, None]
        torch.testing.assert_close(step(audio), model(audio), atol=2e-5, rtol=0)
    with twostage.Stream(step) as onnx_stream, twostage.Stream(model) as torch_stream:
        output, expected = (np.concatenate([s.push(speech(3000)), s.flush()]) for s in (onnx_stream, torch_stream))
    np.testing.assert_allclose(output, expected, atol=2e-5, rtol=0)
