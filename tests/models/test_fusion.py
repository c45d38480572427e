"""Tests of models of two microphones: the simulated air channel, training, restoring, streaming, evaluation, export."""

from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import randomize, small_vocoder
from trainings import data_overrides

import twostage
from twostage.audio import levels, sound_files
from twostage.audio.highpass import highpass
from twostage.cli import main
from twostage.data.manifest import Entry, read_manifest
from twostage.data.noise import Air, looped, noisy, pink
from twostage.data.pairs import Pair, PairConfig, PairDataset
from twostage.data.sensors import Sensor
from twostage.evaluation import report
from twostage.evaluation.pairs import PairSource
from twostage.evaluation.report import AIR, RAW
from twostage.export.onnx import TOLERANCE, export
from twostage.models import checkpoint
from twostage.models.features import LogMel, MelConfig
from twostage.models.loading import load
from twostage.models.restorer import Restorer, RestorerConfig
from twostage.models.restorer_features import RestorerFeatures
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.models.vocoder import VocoderConfig
from twostage.training import recipes
from twostage.training.config import EnhancerRun, RestorerRun, load_config
from twostage.training.optim import OptimizerConfig
from twostage.training.tasks import Restoring, RestoringWeights
from twostage.training.trainer import Training, fit
from twostage.training.validation import examples
from twostage.utils.errors import AudioError, ConfigError

Speech = Callable[..., np.ndarray]
RATE = 16000
MEL = MelConfig(n_mels=16)
CAUSAL = MelConfig(n_fft=512, win_length=512, n_mels=16, causal=True)
BOTH = RestorerConfig(
    mel=MEL, channels=(8, 16), time_strides=(2,), blocks=1, dilations=(1,), inputs=2, features=("pitch",)
)
DATA = PairConfig(segment_length=8192, sensors=("eben",), eq_db=2.0, speed=0.1, air_snr_db=(-10.0, 10.0))


def small_fusion(mel: MelConfig, griffin_lim: int = 1) -> TwoStage:
    """A small fusion model with pitch and random weights that pass their input on."""
    torch.manual_seed(0)
    phase_below = 4000.0 if griffin_lim else 0.0
    vocoder = small_vocoder(mel, channels=16, resblock=2, griffin_lim=griffin_lim, input_phase_below=phase_below)
    model = TwoStage(TwoStageConfig(replace(BOTH, mel=mel), vocoder)).eval().fold().requires_grad_(False)
    randomize(model)
    return model


@pytest.fixture(scope="module")
def fusion() -> TwoStage:
    return small_fusion(MEL)


@pytest.fixture(scope="module")
def headset(speech: Speech) -> np.ndarray:
    """Three seconds of bone and air, (2, T), not a whole number of hops."""
    clean = speech(3 * RATE + 100)
    return np.stack([np.convolve(clean, np.ones(8) / 8, "same"), Air(0.0).of(clean, RATE, "x")]).astype(np.float32)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two noise files, both shorter than a segment."""
    folder = tmp_path_factory.mktemp("noise")
    for seed in range(2):
        rng = np.random.default_rng(seed)
        sound_files.write(folder / f"{seed}.wav", 0.1 * rng.standard_normal(3000 + 9000 * seed).clip(-3, 3), RATE)
    return folder


@pytest.mark.parametrize("snr", [-10.0, 0.0, 7.5])
def test_the_air_channel_has_the_configured_snr(speech: Speech, noise: Path, snr: float) -> None:
    clean = speech(2 * RATE)
    for air in (Air(snr), Air(snr, tuple(map(str, noise.iterdir())))):
        added = air.of(clean, RATE, "a") - clean
        actual = levels.active_level(clean, RATE) - levels.active_level(added, RATE)
        assert actual == pytest.approx(snr, abs=0.1)
        np.testing.assert_array_equal(air.of(clean, RATE, "a"), clean + added)
        assert np.abs(air.of(clean, RATE, "b") - clean - added).max() > 1e-3


def test_noise_that_is_not_finite_is_an_error_that_names_the_file(speech: Speech, tmp_path: Path) -> None:
    sound_files.write(tmp_path / "nan.wav", np.full(8000, np.nan, np.float32), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav"):
        Air(0.0, (str(tmp_path / "nan.wav"),)).of(speech(RATE), RATE, "a")


def test_the_noise_of_a_part_has_the_level_of_the_whole(speech: Speech) -> None:
    pause = 1e-4 * speech(RATE)
    added = noisy(pause, pink(RATE, RATE, np.random.default_rng(0)), RATE, 10.0, level=-26.0) - pause
    assert levels.active_level(added, RATE) == pytest.approx(-36, abs=0.1)
    silence = np.zeros(RATE, np.float32)
    assert np.array_equal(noisy(silence, pause, RATE, 0.0), silence)
    assert np.array_equal(noisy(pause, silence, RATE, 0.0), pause)


@pytest.mark.parametrize("level", [-104.0, -820.0])  # rounding to 16 bits; what an Opus decoder makes of silence
def test_the_pauses_of_a_noise_recording_are_not_amplified(speech: Speech, level: float) -> None:
    sound = speech(RATE)
    quiet = (10 ** (level / 20) * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)
    assert quiet.any()
    assert np.array_equal(noisy(sound, quiet, RATE, 0.0), sound)


def test_a_silent_part_of_the_noise_is_drawn_again(speech: Speech, tmp_path: Path) -> None:
    bark = np.zeros(10 * RATE, np.float32)
    bark[:RATE] = pink(RATE, RATE, np.random.default_rng(0))
    sound_files.write(tmp_path / "bark.wav", bark, RATE)
    clean = speech(RATE)
    air = Air(0.0, (str(tmp_path / "bark.wav"),))
    levels_of_noise = [levels.active_level(air.of(clean, RATE, str(name)) - clean, RATE) for name in range(8)]
    assert levels_of_noise == pytest.approx([levels.active_level(clean, RATE)] * 8, abs=0.1)


def test_pink_noise_falls_by_3_db_per_octave_and_short_noise_is_repeated() -> None:
    power = np.abs(np.fft.rfft(pink(1 << 16, RATE, np.random.default_rng(0)))) ** 2
    power_of_octaves = [power[n : 2 * n].mean() for n in (1 << 11, 1 << 14)]  # three octaves apart
    assert 10 * np.log10(power_of_octaves[0] / power_of_octaves[1]) == pytest.approx(9.03, abs=0.3)
    assert looped(np.arange(4.0), 7, 3).tolist() == [3, 0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_training_segments_have_the_sampled_snr(paired_corpus: Path, noise: Path, fraction: float) -> None:
    config = replace(
        DATA, real_fraction=fraction, air_snr_db=(3.0, 3.0), joint_jitter_db=0, degraded_jitter_db=0, speed=0
    )
    files = [str(path) for path in noise.iterdir()]
    dataset = PairDataset(read_manifest(paired_corpus), replace(config, segment_length=RATE), noise=files)
    degraded, clean = dataset.batch(3, 0, 0)
    for (_, air), (speech_segment,) in zip(degraded.numpy(), clean.numpy(), strict=True):
        gain = 10 ** (-10 * np.log10(1 + 10**-0.3) / 20)  # speech and noise together have the level of the speech
        added = air / gain - speech_segment
        assert levels.LEVEL - levels.active_level(added, RATE) == pytest.approx(3.0, abs=0.1)


def test_batches_of_two_microphones_are_reproducible_and_keep_the_bone_channel(
    corpus: Path, paired_corpus: Path, noise: Path
) -> None:
    entries = read_manifest(corpus, paired_corpus)
    config = replace(DATA, real_fraction=0.5)
    files = [str(path) for path in noise.iterdir()]
    first, second = (PairDataset(entries, config, noise=files) for _ in range(2))
    second.batch(3, 0, 5)
    batch, same_batch = first.batch(4, 0, 2), second.batch(4, 0, 2)
    assert batch.degraded.shape == (4, 2, 8192)
    assert batch.clean.shape == (4, 1, 8192)
    assert torch.equal(batch.degraded, same_batch.degraded)
    assert not torch.equal(batch.degraded[:, 1], first.batch(4, 0, 3).degraded[:, 1])
    bone_only = PairDataset(entries, replace(config, air_snr_db=()), noise=files).batch(4, 0, 2)
    assert torch.equal(batch.degraded[:, :1], bone_only.degraded)
    assert torch.equal(batch.clean, bone_only.clean)


def test_the_levels_of_both_microphones_vary_independently(corpus: Path) -> None:
    without_jitter = replace(DATA, joint_jitter_db=0, degraded_jitter_db=0)
    unvaried, varied = (
        PairDataset(read_manifest(corpus), config).batch(6, 0, 0)
        for config in (without_jitter, replace(without_jitter, degraded_jitter_db=6))
    )
    gains = 20 * (varied.degraded.std(-1) / unvaried.degraded.std(-1)).log10()
    assert gains.abs().max() <= 6.01
    assert gains.std(0).min() > 1
    assert (gains[:, 0] - gains[:, 1]).abs().min() > 0.01


def test_held_out_examples_have_both_channels_at_the_same_level_and_are_reproducible(corpus: Path) -> None:
    entries = read_manifest(corpus)
    first, second = (examples(entries, DATA, items=2, seconds=0.8, hop_length=256) for _ in range(2))
    bone = examples(entries, replace(DATA, air_snr_db=()), items=2, seconds=0.8, hop_length=256)
    for example, same, bone_only in zip(first, second, bone, strict=True):
        assert example.degraded.shape == (1, 2, 12800)
        assert torch.equal(example.degraded, same.degraded)
        assert torch.equal(example.degraded[:, :1], bone_only.degraded)
        assert levels.active_level(example.degraded[0, 1].numpy(), RATE) == pytest.approx(levels.LEVEL, abs=0.01)


def pair(headset: np.ndarray, speech: Speech) -> Pair:
    clean = torch.from_numpy(speech(3 * RATE + 100))[None, None, :8192]
    return Pair(torch.from_numpy(headset)[None, :, :8192], clean)


def test_the_features_are_bone_air_and_pitch_in_this_order(headset: np.ndarray) -> None:
    sound, mel = torch.from_numpy(headset)[None].expand(2, -1, -1), LogMel(MEL)
    features = RestorerFeatures(BOTH)(mel, sound)
    torch.testing.assert_close(features[:, :16], mel(sound[:, :1]))
    torch.testing.assert_close(features[:, 16:32], mel(sound[:, 1:]))
    assert features.shape[1] == 34
    pitched = features[0, 33] > 0.9  # a voice of 100 to 140 Hz: below the middle of 60 to 400
    assert pitched.float().mean() > 0.3
    assert (features[0, 32, pitched] > -0.7).all()
    assert (features[0, 32, pitched] < 0).all()


@pytest.mark.parametrize("config", [BOTH, replace(BOTH, features=()), replace(BOTH, inputs=1)])
def test_every_feature_affects_the_restorer(config: RestorerConfig) -> None:
    torch.manual_seed(0)
    features = torch.randn(1, sum(config.rows), 8, requires_grad=True)
    model = Restorer(config)
    torch.nn.init.normal_(model.conv_post.parametrizations.weight.original0)
    model(features).square().sum().backward()
    assert features.grad is not None
    assert (features.grad.abs().sum(-1) > 0).all()


def test_a_fusion_model_overfits_one_batch(headset: np.ndarray, speech: Speech) -> None:
    torch.manual_seed(0)
    batch, losses = pair(headset, speech), list[float]()
    training = Training(Restorer(BOTH), OptimizerConfig(learning_rate=5e-3, betas=(0.9, 0.99), ema_decay=0))
    task, weights = Restoring(BOTH, RestoringWeights()), RestoringWeights()
    fit(
        training,
        task,
        iter(lambda: batch, None),
        weights,
        steps=80,
        report=lambda _, p: losses.append(float(p.values["mel"])),
    )
    assert losses[-1] < 0.4 * losses[0]


def test_shipped_restorers_have_one_input() -> None:
    config = load("default").config
    assert isinstance(config, TwoStageConfig)
    assert config.restorer.inputs == 1
    assert config.restorer.rows == (80,)


def test_windows_of_two_channels_equal_the_whole(fusion: TwoStage, headset: np.ndarray) -> None:
    whole = twostage.restore(fusion, headset, RATE, seconds=float("inf"))
    assert whole.shape == (1, headset.shape[1])
    np.testing.assert_allclose(twostage.restore(fusion, headset, RATE, seconds=0.3), whole, atol=1e-5)
    quiet = headset * np.float32([[1], [0.01]])  # each microphone is leveled separately
    np.testing.assert_allclose(twostage.restore(fusion, quiet, RATE), whole, atol=1e-4)
    assert levels.active_level(whole[0], RATE) == pytest.approx(levels.active_level(headset[0], RATE), abs=0.1)
    reversed_air = np.stack([headset[0], headset[1, ::-1]])
    assert np.abs(twostage.restore(fusion, reversed_air, RATE) - whole).max() > 1e-3
    kept = twostage.restore(fusion, headset, RATE, keep_low_band=7900.0)
    assert np.corrcoef(kept[0], headset[0])[0, 1] > 0.99  # the bone channel is kept


def test_a_stream_of_two_channels_equals_the_whole(fusion: TwoStage, headset: np.ndarray) -> None:
    headset = headset[:, : headset.shape[1] // 256 * 256]
    for model in (small_fusion(CAUSAL), fusion):
        assert model.inputs == 2
        with torch.no_grad():
            highpassed = highpass(headset, RATE, causal=model.causal)
            whole = model(torch.from_numpy(highpassed)[None])[0, 0].numpy()
        with twostage.Stream(model, seconds=0.5) as stream:
            chunks = [stream.push(chunk) for chunk in np.array_split(headset, 7, axis=1)]
            streamed = np.concatenate([*chunks, stream.flush()])
        assert streamed.shape == headset.shape[1:]
        np.testing.assert_allclose(streamed[: len(whole)], whole, atol=1e-5)
    with pytest.raises(AudioError, match=r"samples have shape \(10,\), wanted \(2, T\): bone and air"):
        twostage.Stream(fusion).push(np.zeros(10))
    with pytest.raises(ConfigError, match="must be one number for each of 2 inputs"):
        twostage.Stream(fusion, gain_db=(1, 2, 3))


@pytest.fixture(scope="module")
def fusion_path(fusion: TwoStage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fusion") / "fusion.safetensors"
    checkpoint.save(path, fusion, provenance={})
    return path


def test_two_channels_are_restored_to_one(fusion_path: Path, headset: np.ndarray, tmp_path: Path, capsys) -> None:
    sound_files.write(tmp_path / "two.wav", headset, RATE)
    sound_files.write(tmp_path / "one.wav", headset[0], RATE)
    restore_command = ["restore", "--model", str(fusion_path), "-o"]
    assert main([*restore_command, str(tmp_path / "out.wav"), str(tmp_path / "two.wav"), "--plot"]) == 0
    output, rate = sound_files.read(tmp_path / "out.wav")
    assert (output.shape, rate) == ((1, headset.shape[1]), RATE)
    assert main([*restore_command, str(tmp_path / "no.wav"), str(tmp_path / "one.wav")]) == 1
    assert "one.wav: has 1 channel; this model takes 2, bone and air" in capsys.readouterr().err
    assert not (tmp_path / "no.wav").exists()
    stream_command = ["stream", "--model", str(fusion_path), "--file"]
    assert main([*stream_command, str(tmp_path / "two.wav"), "-o", str(tmp_path / "stream.wav")]) == 0
    streamed = sound_files.read(tmp_path / "stream.wav")[0]
    assert np.abs(streamed).max() > 0.01
    assert streamed.shape == output.shape
    with pytest.raises(AudioError, match="has 3 channels; this model takes 2"):
        twostage.restore(load(fusion_path), np.zeros((3, 999)), RATE)
    with pytest.warns(UserWarning, match="the audio is channel 2 silent$"):
        twostage.restore(load(fusion_path), headset * [[1], [0]], RATE)


def test_an_evaluation_has_rows_for_both_microphones(
    fusion_path: Path, tiny_path: Path, corpus: Path, noise: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("twostage.evaluation.systems.measure_costs", lambda systems: {})
    arguments = ["evaluate", "--clean", str(corpus), "--simulate", "eben", "--pictures", "0", "--limit", "1"]
    arguments += ["--metrics", "stoi", "estoi", "lsd", "mel_l1"]
    models = ["--model", f"both={fusion_path}", "--model", f"bone={tiny_path}"]
    with_air = [*arguments, "--air-snr", "-5", "--noise", str(noise)]
    with redirect_stdout(StringIO()) as table:
        assert main([*with_air, *models, "-o", str(tmp_path / "a")]) == 0
        assert main([*arguments, *models[2:], "-o", str(tmp_path / "b")]) == 0
    rows, bone_rows = (report.read_rows(tmp_path / name / "utterances.csv") for name in "ab")
    assert [row.system for row in rows][:2] == [RAW, AIR]
    assert "| noisy air | 1 |" in table.getvalue()
    scores = {row.system: row.scores for row in rows}
    assert scores["both"] != scores["bone"]
    assert scores[AIR] != scores[RAW]
    for row in bone_rows:  # the input of a bone model does not change
        assert row.scores == scores[row.system]


def test_a_fusion_model_cannot_be_evaluated_without_an_air_channel(fusion_path: Path, corpus: Path, capsys) -> None:
    arguments = ["evaluate", "--clean", str(corpus), "--simulate", "eben"]
    assert main([*arguments, "--model", f"both={fusion_path}"]) != 0
    assert "--model both: takes bone and air, and there is no air channel: see --air-snr" in capsys.readouterr().err
    assert main([*arguments, "--noise", "x"]) != 0
    assert "--noise x: goes with --air-snr" in capsys.readouterr().err


def test_the_simulate_command_writes_what_an_evaluation_uses(
    speech: Speech, noise: Path, tmp_path: Path, capsys
) -> None:
    sound_files.write(tmp_path / "in" / "a.wav", speech(RATE), RATE)
    sound_files.write(tmp_path / "in" / "two.wav", np.stack([speech(RATE)] * 2), RATE)
    settings = ["--sensor", "eben", "--air-snr", "-3", "--noise", str(noise), "--seed", "3"]
    assert main(["simulate", str(tmp_path / "in"), str(tmp_path / "out"), *settings]) == 1
    assert "two.wav: has 2 channels; --air-snr makes two of a file with one" in capsys.readouterr().err
    files = tuple(sorted(map(str, noise.iterdir())))
    source = PairSource(tmp_path / "in", Sensor(cutoff=600.0), 3, Air(-3.0, files, 3))
    output, _ = source.read(Entry(str(tmp_path / "in" / "a.wav"), None, "s", 1.0))
    written = sound_files.read(tmp_path / "out" / "a.wav")[0]
    assert written.shape == output.shape == (2, RATE)
    assert np.abs(output[1] - written[1]).max() <= 2**-14


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["restorer.inputs=2"], "restorer.inputs is 2, but data.air_snr_db is empty"),
        (["data.air_snr_db=[0,5]"], "restorer.inputs is 1, but data.air_snr_db is [0.0, 5.0]: 2 channels"),
        (["data.air_snr_db=[5,0]"], "data.air_snr_db is [5.0, 0.0], must be [lowest, highest] or []"),
        (["restorer.inputs=3"], "restorer.inputs is 3, must be 1 (bone) or 2 (bone and air)"),
        (["restorer.features=[color]"], "restorer.features: no feature 'color'; there are pitch"),
    ],
)
def test_inconsistent_settings_are_errors_that_name_them(corpus: Path, settings: list[str], message: str) -> None:
    overrides = data_overrides(corpus)
    with pytest.raises(ConfigError) as error:
        load_config(RestorerRun, ["restorer", "tiny"], [*overrides, *settings])
    assert str(error.value) == message


def test_the_overlay_fusion_trains_weights_that_restore(
    corpus: Path, noise: Path, headset: np.ndarray, tmp_path
) -> None:
    overrides = [
        *data_overrides(corpus, tmp_path / "run"),
        "steps=2",
        "valid.every=2",
    ]
    extra = [f"data.noise={noise}", "restorer.features=[pitch]", "threads=1"]
    settings = load_config(RestorerRun, ["restorer", "tiny", "fusion"], [*overrides, *extra])
    recipes.train_restorer(settings)
    model = checkpoint.load_stage(tmp_path / "run")
    assert model.config == settings.restorer
    assert model.config.inputs == 2
    voice = TwoStage(TwoStageConfig(settings.restorer, VocoderConfig(settings.restorer.mel))).vocoder
    checkpoint.save(tmp_path / "v.safetensors", voice, provenance={})
    output = twostage.restore(load(tmp_path / "run", tmp_path / "v.safetensors"), headset, RATE)
    assert output.shape == (1, headset.shape[1])


@pytest.mark.slow
def test_an_exported_fusion_model_equals_pytorch(headset: np.ndarray, tmp_path: Path) -> None:
    model, path = small_fusion(CAUSAL, griffin_lim=0), tmp_path / "m.onnx"
    assert export(model, path, stream=True, provenance={}).difference <= TOLERANCE
    onnx = load(path)
    assert onnx.inputs == 2
    whole = twostage.restore(model, headset, RATE)
    np.testing.assert_allclose(twostage.restore(onnx, headset, RATE), whole, atol=1e-3)


def test_int8_refuses_a_model_of_two_inputs(fusion_path: Path, tmp_path: Path, capsys) -> None:
    arguments = [str(fusion_path), str(tmp_path / "m.onnx"), "--int8", "--calibrate", str(tmp_path)]
    assert main(["export", *arguments]) != 0
    assert "takes 2 channels; --int8 is for models of one" in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()


def test_seanet_of_two_inputs_trains_and_restores(corpus: Path, headset: np.ndarray, tmp_path: Path) -> None:
    overrides = [*data_overrides(corpus, tmp_path / "run"), "threads=1"]
    small = [
        "model.channels=2",
        "weights={mel: 1, adv: 0, fm: 0}",
        "steps=2",
        "data.segment_length=4096",
        "data.batch_size=2",
    ]
    valid = ["valid={every: 2, items: 1, seconds: 1.0, metrics: [mel_l1], best: mel_l1}"]
    with pytest.raises(ConfigError, match=r"model.inputs is 2, but data.air_snr_db is empty"):
        load_config(EnhancerRun, ["seanet", "seanet-fusion"], [*overrides, "data.air_snr_db=[]"])
    settings = load_config(EnhancerRun, ["seanet", "seanet-fusion"], [*overrides, *small, *valid])
    recipes.train_enhancer(settings)
    model = load(tmp_path / "run" / "last.safetensors")
    whole = twostage.restore(model, headset, RATE, seconds=float("inf"))
    assert whole.shape == (1, headset.shape[1])
    np.testing.assert_allclose(twostage.restore(model, headset, RATE, seconds=1.0), whole, atol=1e-5)
    reversed_air = np.stack([headset[0], headset[1, ::-1]])
    assert np.abs(twostage.restore(model, reversed_air, RATE) - whole).max() > 1e-3
