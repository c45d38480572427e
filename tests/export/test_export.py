"""Tests of ONNX files: outputs equal to PyTorch's, of any length and in steps; metadata, int8 and errors."""

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from shutil import copyfile, copytree
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from small_models import randomize, small_vocoder
from streams import CAUSAL_MEL
from torch import Tensor

import twostage
from twostage.audio import sound_files
from twostage.cli import main
from twostage.data.sensors import Sensor
from twostage.evaluation import costs
from twostage.evaluation.systems import System, fingerprint, load_systems
from twostage.export.calibration import calibration_speech
from twostage.export.int8 import convolutions
from twostage.export.onnx import TOLERANCE, RealGriffinLim, RealStft, difference, export, mel_difference, waves
from twostage.export.shared_weights import share_weights
from twostage.models import checkpoint, griffinlim
from twostage.models.baselines.bilstm import Bilstm, BilstmConfig
from twostage.models.baselines.eben import Eben, EbenConfig
from twostage.models.baselines.seanet import Seanet, SeanetConfig
from twostage.models.features import MelConfig, Stft, power
from twostage.models.griffinlim import GriffinLim
from twostage.models.onnx_enhancer import OnnxEnhancer
from twostage.models.restorer import RestorerConfig
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.utils.errors import AudioError, CheckpointError, ConfigError

Speech = Callable[..., np.ndarray]
ROOT = Path(__file__).parents[2]


def small(
    mel: MelConfig, griffin_lim: int, time_stride: int, restorer_look_ahead: int = 0, **settings: Any
) -> TwoStage:
    """``settings``: further ones of the vocoder."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"channels": (4, 8), "time_strides": (time_stride,), "dilations": (1,)}
    restorer = RestorerConfig(mel, **sizes, look_ahead=restorer_look_ahead)
    settings |= {"griffin_lim": griffin_lim, "input_phase_below": 4000.0 if griffin_lim else 0.0}
    vocoder = small_vocoder(mel, channels=16, resblock=2, **settings)
    model = TwoStage(TwoStageConfig(restorer, vocoder)).eval().fold().requires_grad_(False)
    randomize(model)
    return model


@pytest.fixture(scope="module", autouse=True)
def _fewer_operators() -> Iterator[None]:
    """Shorten the export, whose time grows with the number of operators."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(griffinlim, "INVERSIONS", 2)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def centered() -> TwoStage:
    """A small model like the shipped one: time is pooled, and Griffin-Lim iterates with the phase of the input."""
    return small(MelConfig(), griffin_lim=2, time_stride=2)


@pytest.fixture(scope="module")
def causal() -> TwoStage:
    """A small model like the shipped one, whose restorer looks ahead as well."""
    return small(CAUSAL_MEL, griffin_lim=1, time_stride=1, restorer_look_ahead=1)


@pytest.fixture(scope="module")
def whole(centered: TwoStage, folder: Path) -> OnnxEnhancer:
    """A model of whole signals, exported from a file of weights by the command."""
    checkpoint.save(folder / "centered.safetensors", centered, provenance={"data": "none"})
    assert main(["export", str(folder / "centered.safetensors"), str(folder / "whole.onnx")]) == 0
    return OnnxEnhancer(folder / "whole.onnx")


@pytest.fixture(scope="module")
def step(causal: TwoStage, folder: Path) -> OnnxEnhancer:
    """A model of a streaming step."""
    export(causal, folder / "step.onnx", stream=True, provenance={})
    return OnnxEnhancer(folder / "step.onnx")


def audio_of(speech: Speech, samples: int) -> Tensor:
    return torch.from_numpy(speech(samples))[None, None]


@pytest.mark.parametrize("hops", [1, 2, 3, 4, 5, 40, 187])
def test_an_onnx_model_equals_pytorch_at_every_length(
    centered: TwoStage, whole: OnnxEnhancer, speech: Speech, hops: int
) -> None:
    inputs = audio_of(speech, hops * 256 + 100)  # both cut off the incomplete hop
    expected = centered(inputs)
    assert expected.shape == (1, 1, hops * 256)
    assert expected.abs().max() > 0.005
    torch.testing.assert_close(whole(inputs), expected, atol=2e-5, rtol=0)


def test_digital_silence_stays_finite(centered: TwoStage, whole: OnnxEnhancer, speech: Speech) -> None:
    inputs = audio_of(speech, 60 * 256)
    inputs[..., 20 * 256 :] = 0
    torch.testing.assert_close(whole(inputs), centered(inputs), atol=2e-5, rtol=0)


@pytest.mark.slow
def test_a_causal_model_is_exported_for_signals_of_any_length(causal: TwoStage, folder: Path, speech: Speech) -> None:
    export(causal, folder / "causal.onnx", provenance={})
    model = OnnxEnhancer(folder / "causal.onnx")
    for hops in (1, 2, 7, 50):
        inputs = audio_of(speech, hops * 256)
        torch.testing.assert_close(model(inputs), causal(inputs), atol=2e-5, rtol=0)
    with pytest.raises(CheckpointError, match=r"needs a causal model"):
        export(small(MelConfig(), 1, 1), folder / "never.onnx", stream=True, provenance={})


@pytest.mark.parametrize("hops", [1, 2, 40])
def test_streaming_steps_equal_the_whole(causal: TwoStage, step: OnnxEnhancer, speech: Speech, hops: int) -> None:
    inputs = audio_of(speech, hops * 256)
    assert causal(inputs).abs().max() > 0.001
    torch.testing.assert_close(step(inputs), causal(inputs), atol=2e-5, rtol=0)
    assert torch.equal(step(inputs), step(inputs))  # no state is left over


@pytest.mark.parametrize("mel", [CAUSAL_MEL, pytest.param(MelConfig(), marks=pytest.mark.slow)], ids=["step", "whole"])
def test_a_resynthesis_is_exported(mel: MelConfig, folder: Path, speech: Speech) -> None:
    path, vocoder = folder / "resynthesis.onnx", {"sensor_input": True, "resynthesis": True}
    delays = {"restorer_look_ahead": 1, "look_ahead": 2} if mel.causal else {}
    model = small(mel, griffin_lim=0, time_stride=1, **delays, **vocoder)
    export(model, path, stream=mel.causal, provenance={})
    for hops in (1, 2, 40):
        inputs = audio_of(speech, hops * 256)
        torch.testing.assert_close(OnnxEnhancer(path)(inputs), model(inputs), atol=TOLERANCE, rtol=0)
    assert model(inputs).abs().max() > 0.001


def test_batches_arrays_and_empty_outputs(step: OnnxEnhancer, whole: OnnxEnhancer, speech: Speech) -> None:
    inputs = torch.cat([audio_of(speech, 1024), audio_of(speech, 1024).flip(-1)])
    for model in (step, whole):
        torch.testing.assert_close(model(inputs)[1:], model(inputs[1:]), atol=1e-6, rtol=0)
        assert model(inputs[..., :255]).shape == (2, 1, 0)
        array = model(inputs.double().numpy())  # an array for an array
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, model(inputs).numpy())


def test_an_onnx_file_can_share_the_weights_in_a_file_beside_it(
    centered: TwoStage, whole: OnnxEnhancer, folder: Path, speech: Speech
) -> None:
    weights, target = folder / "centered.safetensors", folder / "shared.onnx"
    assert share_weights(centered, whole.path, target, [weights]) < 2e-5
    shared = OnnxEnhancer(target)
    assert shared.weights == [weights]
    assert whole.path.stat().st_size - target.stat().st_size > 4e6  # the Fourier basis is computed too
    audio = audio_of(speech, 40 * 256)
    torch.testing.assert_close(shared(audio), whole(audio), atol=1e-5, rtol=0)
    other = deepcopy(centered)
    for weight in other.parameters():
        weight += 1
    checkpoint.save(folder / "other.safetensors", other, provenance={})
    with pytest.raises(CheckpointError, match="contains none of the weights"):
        share_weights(centered, whole.path, folder / "never.onnx", [folder / "other.safetensors"])
    assert not (folder / "never.onnx").exists()


@pytest.mark.slow
def test_the_script_writes_the_shipped_onnx_file(
    load_script: Callable[[str], ModuleType], tmp_path: Path, speech: Speech
) -> None:
    copytree(ROOT / "checkpoints" / "causal", tmp_path / "causal", ignore=lambda *_: ["step.onnx"])
    written = OnnxEnhancer(load_script("scripts/export_shipped.py").export_shipped("causal", tmp_path))
    shipped = OnnxEnhancer(ROOT / "checkpoints" / "causal" / "step.onnx")
    assert written.header == shipped.header
    audio = audio_of(speech, 20 * 256)
    torch.testing.assert_close(written(audio), shipped(audio), atol=1e-6, rtol=0)


def test_states_of_a_step_are_named_after_their_layers(step: OnnxEnhancer, folder: Path) -> None:
    graph = onnx.load(folder / "step.onnx").graph
    inputs, outputs = ([value.name for value in side] for side in (graph.input, graph.output))
    assert inputs[:4] == ["audio", "mel.stft.past", "restorer.delay_line", "restorer.conv_pre.past"]
    assert inputs[-1] == "vocoder.griffin_lim.overlap"
    assert outputs == ["restored", *(f"next.{name}" for name in inputs[1:])]
    assert all(re.fullmatch(r"[\w.]+", name) for name in inputs)


def test_an_onnx_file_describes_the_model_and_contains_no_local_paths(whole: OnnxEnhancer, step: OnnxEnhancer) -> None:
    header = whole.header
    assert (header.kind, header.streaming, header.int8) == ("two-stage", False, False)
    assert header.provenance == {"two-stage": {"data": "none"}}
    assert header.config["vocoder"]["griffin_lim"] == 2
    assert (whole.sample_rate, whole.hop_length, whole.stride) == (16000, 256, 512)
    assert (step.header.streaming, step.delay, step.stride, step.context) == (True, 768, 256, 256 * 36)
    proto = onnx.load(whole.path)
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
    assert str(ROOT).encode() not in whole.path.read_bytes()
    kinds = {node.op_type for node in proto.graph.node}
    assert {"Conv", "ConvTranspose"} < kinds
    assert not {"STFT", "DFT", "Loop", "If", "ScatterElements", "ScatterND"} & kinds


def test_costs_and_fingerprints_are_those_of_the_model(
    centered: TwoStage, whole: OnnxEnhancer, step: OnnxEnhancer
) -> None:
    actual, expected = (costs.measure_model(model, seconds=1, repeats=1) for model in (whole, centered))
    assert (actual.parameters, actual.gmac) == (expected.parameters, expected.gmac)
    fingerprints = fingerprint([System("a", whole, False), System("b", step, False)])
    assert fingerprints["a"] != fingerprints["b"]
    systems = load_systems({"a": [str(whole.path)]})
    assert [system.name for system in systems] == ["a"]  # no copy-synthesis, which needs a separate vocoder


@pytest.mark.parametrize("name", ["whole", "step"])
def test_restoring_with_an_onnx_file_equals_restoring_with_pytorch(
    name: str, request: pytest.FixtureRequest, folder: Path, speech: Speech, tmp_path: Path
) -> None:
    enhancer: OnnxEnhancer = request.getfixturevalue(name)
    model: TwoStage = request.getfixturevalue({"whole": "centered", "step": "causal"}[name])
    inputs = speech(30000, 22050)
    expected = twostage.restore(model, inputs, 22050, seconds=0.5)  # in windows
    actual = twostage.restore(twostage.load(enhancer.path), inputs, 22050, seconds=0.5)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    sound_files.write(tmp_path / "in.wav", inputs, 22050)
    command = ["restore", str(tmp_path / "in.wav"), "-o", str(tmp_path / "out.wav"), "--model", str(enhancer.path)]
    assert main(command) == 0
    expected = twostage.restore(model, sound_files.read(tmp_path / "in.wav")[0][0], 22050)  # rounded to 16 bits
    np.testing.assert_allclose(sound_files.read(tmp_path / "out.wav")[0][0], expected, atol=2e-4)


def test_an_onnx_file_keeps_its_precision(
    whole: OnnxEnhancer,
    speech: Speech,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    sound_files.write(tmp_path / "in.wav", speech(4000), 16000)
    command = ["restore", str(tmp_path / "in.wav"), "-o", str(tmp_path / "out.wav"), "--model", str(whole.path)]
    assert main([*command, "--precision", "bf16", "--json", str(tmp_path / "report.json")]) == 0
    assert (
        capsys.readouterr().err
        == "twostage: warning: --precision bf16: an ONNX file keeps the precision of its export\n"
    )
    assert json.loads((tmp_path / "report.json").read_text())["precision"] == "float32"


def test_unusable_onnx_files_are_errors_of_one_line(
    whole: OnnxEnhancer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto, path = onnx.load(whole.path), tmp_path / "x.onnx"
    foreign = onnx.ModelProto()
    foreign.CopyFrom(proto)
    del foreign.metadata_props[:]
    contents = {"cut": whole.path.read_bytes()[:50000], "foreign": foreign.SerializeToString(), "text": b"hello"}
    for content, message in (("cut", "damaged"), ("text", "damaged"), ("foreign", "not of twostage")):
        path.write_bytes(contents[content])
        with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: .*{message}.*") as error:
            twostage.load(path)
        assert "\n" not in str(error.value)
    onnx.helper.set_model_props(proto, {"format": "twostage", "kind": '"two-stage"', "config": "{"})
    onnx.save(proto, path)
    with pytest.raises(CheckpointError, match="settings inside cannot be read"):
        twostage.load(path)
    with pytest.raises(CheckpointError, match=r"missing\.onnx: no such file"):
        twostage.load(tmp_path / "missing.onnx")
    with pytest.raises(CheckpointError, match="so it must be the only path"):
        twostage.load(path, "default")
    monkeypatch.setattr("twostage.models.onnx_enhancer.installed", lambda name: False)
    with pytest.raises(CheckpointError, match=r"need onnxruntime: pip install 'twostage\[onnx\]'"):
        twostage.load(whole.path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["default", "x.safetensors"], "must end in .onnx"),
        (["default", "x.onnx", "--int8"], "--int8 and --calibrate belong together"),
        (["default", "x.onnx", "--calibrate", "."], "--int8 and --calibrate belong together"),
        (["default", "x.onnx", "--simulate", "eben"], "--simulate belongs to --calibrate"),
        (["nothing", "x.onnx"], "nothing: no such file, folder or shipped model"),
        (["WHOLE", "x.onnx"], "is ONNX already"),
        (["default", "WHOLE"], "exists already (--overwrite replaces it)"),
        (["default", "x.onnx", "--stream"], "--stream needs a causal model"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(
    arguments: list[str],
    message: str,
    whole: OnnxEnhancer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *(str(whole.path) if argument == "WHOLE" else argument for argument in arguments)]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_whose_output_differs_from_pytorch_is_not_written(
    causal: TwoStage, step: OnnxEnhancer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = SimpleNamespace(model=SimpleNamespace(metadata_props={}), save=lambda path: copyfile(step.path, path))
    monkeypatch.setattr("twostage.export.onnx._step", lambda model: program)
    assert export(causal, tmp_path / "x.onnx", stream=True, provenance={}).difference < 2e-5
    (tmp_path / "x.onnx").unlink()
    other = deepcopy(causal)
    other.vocoder.conv_post.bias += 1e-2
    with pytest.raises(CheckpointError, match=r"x.onnx: differs from PyTorch by .*, above 0.0001; not written"):
        export(other, tmp_path / "x.onnx", stream=True, provenance={})
    assert not list(tmp_path.iterdir())


def test_int8_keeps_the_first_and_last_layers_in_float_and_is_close(
    centered: TwoStage, whole: OnnxEnhancer, corpus: Path, folder: Path
) -> None:
    from twostage.export.onnx import _quantized

    calibration = calibration_speech(corpus, Sensor(), 16000)
    output = _quantized(whole.path, whole.header, calibration)
    proto = onnx.load(output)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    int8_names = [name for name, tensor in weights.items() if tensor.data_type == onnx.TensorProto.INT8 and tensor.dims]
    assert len([name for name in int8_names if name.endswith("weight_quantized")]) == len(
        convolutions(onnx.load(whole.path))
    )
    assert not any("conv_pre" in name or "conv_post" in name for name in int8_names)
    scale = weights["vocoder.resblocks.0.convs.0.weight_scale"]
    assert list(scale.dims) == [8]  # one per channel
    model = OnnxEnhancer(output)
    assert 0 < mel_difference(centered, model) < 0.3
    assert difference(centered, whole) < TOLERANCE < difference(centered, model)


def test_a_streaming_step_is_quantized(causal: TwoStage, step: OnnxEnhancer, corpus: Path) -> None:
    from twostage.export.onnx import _quantized

    calibration = [next(calibration_speech(corpus, Sensor(), 16000))[:4096]]
    model = OnnxEnhancer(_quantized(step.path, replace(step.header, int8=True), calibration))
    assert (model.header.streaming, model.header.int8) == (True, True)
    assert 0 < mel_difference(causal, model) < 0.3


def test_calibration_speech_is_simulated_or_recorded(corpus: Path, paired_corpus: Path, tmp_path: Path) -> None:
    from twostage.audio.levels import LEVEL, active_level

    sensor = Sensor()
    simulated = list(calibration_speech(corpus, sensor, 8000))
    assert [len(samples) for samples in simulated] == [7000, 7500, 8000]
    assert active_level(simulated[0], 8000) == pytest.approx(LEVEL, abs=1e-3)
    recorded = next(calibration_speech(paired_corpus, None, 16000))
    bone = sound_files.read(paired_corpus.parent / "0_bone.wav")[0][0]
    assert np.corrcoef(recorded, bone)[0, 1] == pytest.approx(1, abs=1e-6)
    assert len(list(calibration_speech(corpus.parent, None, 16000))) == 3  # a folder of recordings
    with pytest.raises(ConfigError, match="clean speech only"):
        next(calibration_speech(corpus, None, 16000))
    with pytest.raises(AudioError, match="no sound files"):
        next(calibration_speech(tmp_path, None, 16000))


@pytest.mark.parametrize(("n_fft", "win_length"), [(1024, 1024), (768, 600)])
def test_the_real_valued_stft_equals_the_complex_one(n_fft: int, win_length: int) -> None:
    stft, inputs = Stft(n_fft, 256, win_length), torch.randn(2, 1, 2560)
    parts, expected = RealStft(stft, waves(stft)).spectrum(inputs), stft.spectrum(inputs)
    torch.testing.assert_close(torch.complex(*parts), expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(power(parts), power(expected), atol=1e-2, rtol=1e-4)


def test_griffin_lim_in_real_numbers_equals_griffin_lim() -> None:
    torch.manual_seed(0)
    griffin_lim = GriffinLim(MelConfig(), 8, 4000.0)
    inputs = 0.1 * torch.randn(1, 1, 5120)
    mel, input_spectra = griffin_lim.mel(inputs), griffin_lim.mel.stft.input_spectra(inputs)
    kernel = waves(griffin_lim.mel.stft)
    actual = RealGriffinLim(griffin_lim, RealStft(griffin_lim.mel.stft, kernel))(
        inputs.flip(-1), mel, input_spectra.each(lambda x: torch.stack([x.real, x.imag]))
    )
    torch.testing.assert_close(actual, griffin_lim(inputs.flip(-1), mel, input_spectra), atol=1e-5, rtol=0)


def test_the_code_in_the_documentation_streams(
    step: OnnxEnhancer, causal: TwoStage, speech: Speech, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "EXPORT.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("step.onnx").write_bytes(step.path.read_bytes())
    inputs, played = speech(20 * 256), []
    names = {"microphone": inputs.reshape(-1, 256), "play": played.append}
    exec(snippet, names)
    delayed = torch.from_numpy(np.concatenate(played))
    with torch.no_grad():
        expected = causal(torch.from_numpy(inputs)[None, None])[0, 0]
    torch.testing.assert_close(delayed[step.delay :], expected[: -step.delay], atol=2e-5, rtol=0)


SMALL = {"channels": 2, "strides": (2,), "bottleneck": 2}


@pytest.mark.parametrize(
    ("model", "stream"),
    [
        (Seanet(SeanetConfig(**SMALL)), False),
        (Eben(EbenConfig(**SMALL, causal=True)), True),
    ],
    ids=["seanet", "a step of eben"],
)
def test_one_stage_systems_are_exported(model: Seanet | Eben, stream: bool, tmp_path: Path, speech: Speech) -> None:
    model = model.eval().fold().requires_grad_(False)
    exported = export(model, tmp_path / "x.onnx", provenance={"from": "here"}, stream=stream)
    assert exported.difference < 1e-5
    loaded = twostage.load(tmp_path / "x.onnx")
    assert isinstance(loaded, OnnxEnhancer)
    assert loaded.header.config == json.loads(json.dumps(asdict(model.config)))
    assert loaded.hop_length == loaded.stride == model.stride
    audio = torch.from_numpy(speech(1000))[None, None]
    torch.testing.assert_close(
        loaded(audio), model(audio)[..., : 1000 // model.stride * model.stride], atol=1e-5, rtol=0
    )
    with twostage.Stream(loaded) as onnx_stream, twostage.Stream(model) as torch_stream:
        actual, expected = (np.concatenate([s.push(speech(1000)), s.flush()]) for s in (onnx_stream, torch_stream))
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


def test_systems_that_cannot_be_exported_are_refused_and_nothing_is_written(tmp_path: Path, speech: Speech) -> None:
    bidirectional = Bilstm(BilstmConfig(units=4, layers=1)).eval()
    with pytest.raises(CheckpointError, match=r"x.onnx: a bilstm cannot become ONNX: it needs the whole signal$"):
        export(bidirectional, tmp_path / "x.onnx", provenance={})
    eben = Eben(EbenConfig(**SMALL)).eval()
    with pytest.raises(CheckpointError, match=r"x.onnx: only models of two stages can be int8, this is a eben"):
        export(eben, tmp_path / "x.onnx", provenance={}, speech=[speech(1000)])
    with pytest.raises(CheckpointError, match="--stream needs a causal model"):
        export(eben, tmp_path / "x.onnx", provenance={}, stream=True)
    assert not list(tmp_path.iterdir())
