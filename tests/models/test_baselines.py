"""Tests of every system that is compared, by its YAML file: size, training, resuming, restoring, export."""

import re
from dataclasses import asdict, replace
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import assert_same_training, data_overrides

from twostage.audio import sound_files
from twostage.cli import main
from twostage.data.pairs import Pair
from twostage.evaluation.costs import parameters
from twostage.inference.restoration import restore
from twostage.models import checkpoint
from twostage.models.enhancer import EnhancerModule
from twostage.models.onnx_enhancer import OnnxEnhancer
from twostage.models.precision import CONVOLUTIONS, convert
from twostage.models.registry import ENHANCERS
from twostage.training import recipes
from twostage.training.config import EnhancerRun, load_config
from twostage.training.optim import OptimizerConfig
from twostage.training.tasks import Enhancing, EnhancingWeights, total
from twostage.training.trainer import Training, fit

BASELINES = Path(__file__).parents[2] / "configs" / "baselines"
DISCRIMINATORS = ["adversary.discriminator.width=0.0625", "adversary.start=1"]
# millions of parameters at full size, and settings of a small form; a new YAML file needs a line here
SYSTEMS: dict[str, tuple[float, list[str]]] = {
    "lowpass": (0.0, []),
    "shift": (0.0, []),
    "wave-unet": (6.18, ["model.levels=3", "model.channels=8"]),
    "bwe": (
        0.91,
        ["model.channels=16", "model.stacks=1", "model.layers=3", "adversary.discriminator.scales=1", *DISCRIMINATORS],
    ),
    "bilstm": (4.34, ["model.units=32", "model.layers=1", "model.n_fft=128", "model.hop_length=32"]),
    "dccrn": (3.67, ["model.channels=[8,16]", "model.lstm_units=16", "model.lookahead=2"]),
    "bsrnn": (
        0.957,
        ["model.n_fft=128", "model.hop_length=32", "model.bands=[5,10,50]", "model.features=8", "model.layers=1"],
    ),
    "dpcrn": (0.805, ["model.channels=[8,16]", "model.strides=[2,2]", "model.blocks=1", "model.units=16"]),
    "seanet": (8.34, ["model.channels=4", "model.strides=[2]", "model.bottleneck=4", *DISCRIMINATORS]),
    "seanet-fusion": (8.34, ["model.channels=4", "model.strides=[2]", "model.bottleneck=4", *DISCRIMINATORS]),
    "eben": (1.94, ["model.channels=4", "model.strides=[2]", "model.bottleneck=4", *DISCRIMINATORS]),
    "two-stage": (
        3.65,
        [
            *("model.restorer.channels=[4,8]", "model.restorer.time_strides=[2]", "model.restorer.blocks=1"),
            *("model.restorer.dilations=[1]", "model.vocoder.upsample_initial_channel=16", "weights.mel=1"),
        ],
    ),
}
FILES = {
    "two-stage": [],
    "seanet-fusion": ["seanet", "seanet-fusion"],
}  # the files of all others have the name of the system
NAMES = sorted({path.stem for path in BASELINES.glob("*.yaml")} | {"two-stage"})
FAST = [
    "threads=1",
    "device=cpu",
    "data.segment_length=8192",
    "data.batch_size=1",
    "data.eq_db=0",
    "data.speed=0",
    "data.gate_db=0",
]
BRIEF = ["save_every=2", "log_every=1", "valid.every=2", "valid.items=1", "valid.seconds=0.5"]
PLAIN = ["valid.metrics=[mel_l1]", "valid.best=mel_l1", "optimizer.cooldown=0", "optimizer.warmup=0"]


def settings(name: str, corpus: Path, run: Path, *extra: str, small: bool = True) -> EnhancerRun:
    """The settings of ``name``'s YAML file; two-stage has none, since its stages are trained separately."""
    files = FILES.get(name, [name])
    overrides = data_overrides(corpus, run)
    enhancer = ["enhancer=two-stage", "steps=4"] if not files else []
    return load_config(
        EnhancerRun, files, [*overrides, *enhancer, *FAST, *BRIEF, *PLAIN, *(SYSTEMS[name][1] * small), *extra]
    )


def built(run: EnhancerRun) -> EnhancerModule:
    return ENHANCERS[run.enhancer][1](run.architecture)


def test_every_system_has_a_yaml_file_and_a_line_here() -> None:
    assert set(NAMES) <= set(SYSTEMS)
    assert {settings(name, Path(__file__), Path("x"), small=False).enhancer for name in NAMES} == set(ENHANCERS)


def inputs(run: EnhancerRun) -> int:
    """The number of input channels."""
    return run.architecture.inputs


@pytest.mark.parametrize("name", NAMES)
def test_the_full_size_is_the_documented_one(name: str, corpus: Path) -> None:
    run = settings(name, corpus, Path("x"), small=False)
    model = built(run)
    model.fold()
    assert parameters(model) / 1e6 == pytest.approx(SYSTEMS[name][0], abs=0.006)
    # the interface that restoring, streaming and costs use
    assert model.config == run.architecture
    assert model.sample_rate == 16000
    assert model.hop_length >= 1
    assert model.stride % model.hop_length == 0
    assert model.context >= 0


def content(weights: EnhancingWeights) -> EnhancingWeights:
    """The weights of the losses without an adversary; of a recipe without any, that of log-mels."""
    without_adversary = replace(weights, adv=0.0, fm=0.0)
    return without_adversary if any(asdict(without_adversary).values()) else replace(without_adversary, mel=1.0)


def averaged_pair(clean: np.ndarray, channels: int) -> Pair:
    """A pair of the clean speech and its moving average over nine samples, in every channel."""
    audio = torch.from_numpy(clean).view(1, 1, -1)
    return Pair(torch.nn.functional.avg_pool1d(audio, 9, 1, 4).expand(-1, channels, -1), audio)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_system_overfits_one_batch(name: str, corpus: Path, speech) -> None:
    """Its losses without an adversary fall by four tenths in fifty steps."""
    run = settings(name, corpus, Path("x"))
    torch.manual_seed(0)
    model = built(run)
    if not any(weight.requires_grad for weight in model.parameters()):
        pytest.skip("nothing to learn by steps")
    pair = averaged_pair(speech(4096), inputs(run))
    model.prepare([pair])
    weights, losses = content(run.weights), []
    training = Training(model, OptimizerConfig(learning_rate=3e-3, grad_clip=5.0))
    fit(
        training,
        Enhancing(run.mel, weights),
        repeat(pair),
        weights,
        steps=50,
        report=lambda _, progress: losses.append(float(progress.values["loss"])),
    )
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_weight(name: str, autocast: bool, corpus: Path, speech) -> None:
    """The output is float32, also under autocast to bfloat16."""
    run = settings(name, corpus, Path("x"))
    model, pair = built(run), averaged_pair(speech(4096), inputs(run))
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    if not trainable:
        pytest.skip("nothing to learn by steps")
    model.prepare([pair])
    weights = content(run.weights)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert model(pair.degraded).dtype == torch.float32
        terms = Enhancing(run.mel, weights)(model, pair).terms
    total(terms, weights).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in trainable)


@pytest.mark.parametrize("name", NAMES)
def test_convolutions_in_bfloat16_are_close_to_float32(name: str, corpus: Path) -> None:
    torch.manual_seed(0)
    run = settings(name, corpus, Path("x"))
    model, audio = built(run), 0.1 * torch.randn(1, inputs(run), 4096)
    model.fold()
    model.eval().requires_grad_(False)
    for weight in model.parameters():  # with initial weights, some pass almost nothing on
        weight.copy_(torch.randn(weight.shape) * (weight[0].numel() if weight.ndim > 1 else 100) ** -0.5)
    exact = model(audio)
    approximate = convert(model, "bf16")(audio)
    assert approximate.dtype == torch.float32
    has_convolutions = any(isinstance(module, CONVOLUTIONS) for module in model.modules())
    assert bool(approximate.ne(exact).any()) == has_convolutions
    assert (approximate - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A system's name and the directory of its training of four steps."""
    run = tmp_path_factory.mktemp("runs") / request.param
    recipes.train_enhancer(settings(request.param, corpus, run, "steps=4"))
    return request.param, run


def test_a_training_changes_all_weights_and_resumes_bitwise(
    trained: tuple[str, Path], corpus: Path, tmp_path: Path
) -> None:
    name, whole = trained
    header = checkpoint.read_header(whole / "last.safetensors")
    run = settings(name, corpus, tmp_path / "parts", "steps=4")
    assert header.kind == run.enhancer
    if not (whole / "state.pt").exists():
        assert header.provenance["steps"] == 0
        return
    recipes.train_enhancer(settings(name, corpus, tmp_path / "parts", "steps=2"))
    torch.rand(5)  # the process that resumes has another random state
    recipes.train_enhancer(run, resume=True)
    assert_same_training(whole, tmp_path / "parts")
    torch.manual_seed(run.seed)
    before = built(run)
    after = checkpoint.load_state(whole / "state.pt")["model"]
    unchanged = [key for key, weight in before.named_parameters() if torch.equal(weight, after[key])]
    assert not unchanged


def test_a_trained_system_restores_a_file(trained: tuple[str, Path], tmp_path: Path, speech) -> None:
    name, run = trained
    sound = np.stack([speech(12345)] * inputs(settings(name, Path(__file__), run)))
    sound_files.write(tmp_path / "in.wav", sound, 16000)
    weights = str(run / "last.safetensors")
    assert main(["restore", str(tmp_path / "in.wav"), "-o", str(tmp_path / "out"), "--model", weights]) == 0
    (output,) = (tmp_path / "out").iterdir()
    restored = sound_files.read(output)[0][0]
    degraded = np.squeeze(sound_files.read(tmp_path / "in.wav")[0])
    np.testing.assert_allclose(restored, restore(checkpoint.load(weights), degraded, 16000).reshape(-1), atol=2e-4)
    assert np.abs(restored).max() > 0.01


@pytest.mark.slow
def test_a_system_is_exported_or_reports_why_not(trained: tuple[str, Path], tmp_path: Path, capsys) -> None:
    """`twostage export` itself checks that a file equals PyTorch to 1e-4 before it writes one."""
    name, run = trained
    if name == "two-stage":
        pytest.skip("exported in test_export")
    out, weights = tmp_path / "m.onnx", run / "last.safetensors"
    if main(["export", str(weights), str(out)]):
        kind = checkpoint.read_header(weights).kind
        printed = capsys.readouterr().err
        assert re.fullmatch(rf"twostage: error: .*m\.onnx: a {kind} cannot become ONNX: .+\n", printed)
        assert not out.exists()
    else:
        assert OnnxEnhancer(out).header.kind == checkpoint.read_header(weights).kind
