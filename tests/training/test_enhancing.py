"""Tests of training one-stage systems: loss terms, preparation, adversary, and errors."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from twostage.cli import main
from twostage.data.pairs import Pair
from twostage.models import checkpoint, registry
from twostage.models.enhancer import EnhancerConfig, EnhancerModule
from twostage.models.features import MelConfig
from twostage.training import recipes
from twostage.training.config import EnhancerRun, load_config
from twostage.training.losses import negative_si_sdr
from twostage.training.tasks import Enhancing, EnhancingWeights, total
from twostage.utils.errors import ConfigError

FAST = ["threads=1", "data.segment_length=4096", "data.batch_size=2", "valid.items=1", "valid.seconds=0.5"]


@dataclass(frozen=True)
class GainConfig(EnhancerConfig):
    start: float = 1.0


class Gain(EnhancerModule):
    """A system with one trained factor of the audio, and one value that is measured before training."""

    mean: Tensor
    sample_rate, context, latency = 16000, 0, 0.0

    def __init__(self, config: GainConfig) -> None:
        super().__init__()
        self.config, self.gain = config, nn.Parameter(torch.tensor([[config.start]]))
        self.register_buffer("mean", torch.tensor(0.0))

    def forward(self, audio: Tensor) -> Tensor:
        return audio * self.gain

    def terms(self, degraded: Tensor, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        output = self(degraded)
        return output, {"square": (output - clean).square().mean(), "other": output.abs().mean()}

    def prepare(self, pairs: list[Pair]) -> None:
        self.mean.copy_(torch.stack([pair.clean.abs().mean() for pair in pairs]).mean())


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.ENHANCERS, "gain", (GainConfig, Gain))
    monkeypatch.setitem(registry.KINDS, "gain", (GainConfig, Gain))


@pytest.fixture
def overrides(paired_corpus: Path, tmp_path: Path) -> list[str]:
    pairs = [
        f"data.train=[{paired_corpus}]",
        f"data.valid=[{paired_corpus}]",
        "data.real_fraction=1",
        "data.sensors=[]",
    ]
    return [*FAST, *pairs, f"run_dir={tmp_path / 'run'}", "enhancer=gain", "steps=60", "optimizer.learning_rate=0.05"]


def test_simulated_segments_without_a_sensor_are_refused(overrides):
    with pytest.raises(ConfigError, match=r"data\.sensors is empty, and data\.real_fraction below 1"):
        load_config(EnhancerRun, [], [*overrides, "data.real_fraction=0.5"])


def trained(overrides: list[str], *extra: str) -> Gain:
    settings = load_config(EnhancerRun, [], [*overrides, *extra])
    recipes.train_enhancer(settings)
    model = checkpoint.load(Path(settings.run_dir) / "last.safetensors")
    assert isinstance(model, Gain)
    return model


def test_a_system_is_trained_with_its_own_terms_and_keeps_measured_values(overrides):
    model = trained(overrides, "weights.own.square=1", "model.start=0.2", "optimizer.ema_decay=0")
    # a moving average over 8 samples removes little of a low voice
    assert float(model.gain) == pytest.approx(1.0, abs=0.15)
    assert model.config == GainConfig(0.2)
    assert 0.01 < float(model.mean) < 0.2


def test_own_terms_of_a_system_are_used_only_with_a_weight():
    pair = Pair(torch.randn(2, 1, 4096), torch.randn(2, 1, 4096))
    for own in ({"square": 2.0}, {"square": 1, "other": 3.0}):
        weights = EnhancingWeights(wave=1.0, own=own)
        output = Enhancing(MelConfig(), weights)(Gain(GainConfig()), pair)
        assert output.terms.keys() == {"mel", "wave", *own}
        expected = output.terms["wave"] + sum(weight * output.terms[name] for name, weight in own.items())
        torch.testing.assert_close(total(output.terms, weights), expected)


@pytest.mark.parametrize("term", ["wave", "mel", "multi_mel", "stft", "si_sdr", "intelligibility"])
def test_every_term_falls_as_the_output_approaches_the_clean_speech(term):
    generator = torch.Generator().manual_seed(0)
    clean = 0.1 * torch.randn(1, 1, 8192, generator=generator)
    noisy = clean + 0.1 * torch.randn(1, 1, 8192, generator=generator)
    task = Enhancing(MelConfig(), EnhancingWeights(**{term: 1.0}))

    def term_of(audio: Tensor) -> float:
        return float(task(nn.Identity(), Pair(audio, clean)).terms[term])

    values = [term_of(noisy), term_of((noisy + clean) / 2), term_of(clean)]
    assert values == sorted(values, reverse=True)
    assert values[2] < values[0] - 0.01


def test_the_si_sdr_loss_equals_the_metric_and_ignores_gain_and_offset():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(1, 1, 4096, generator=generator)
    noise = torch.randn(1, 1, 4096, generator=generator)
    noise = noise - noise.mean() - (clean - clean.mean()) * (noise * (clean - clean.mean())).sum() / clean.var() / 4095
    output = clean + noise * (clean.std() / noise.std() / 10)  # exactly 20 dB of orthogonal noise
    assert float(negative_si_sdr(output, clean)) == pytest.approx(-20, abs=0.01)
    assert float(negative_si_sdr(3 * output + 1, clean)) == pytest.approx(-20, abs=0.01)


def test_a_system_is_trained_with_an_adversary(overrides):
    discriminator = ["adversary.discriminator.periods=[2]", "adversary.discriminator.scales=0"]
    small = ["adversary.discriminator.width=0.0625", "steps=2", "weights.adv=1", "weights.fm=2"]
    trained(overrides, *discriminator, *small)
    state = checkpoint.load_state(Path(overrides[-4].partition("=")[2]) / "state.pt")
    assert state["adversary"]["discriminators"]


def test_both_stages_are_trained_as_one_system(overrides):
    extra = ["enhancer=two-stage", "model.restorer.channels=[4,8]", "model.restorer.time_strides=[2]", "steps=1"]
    settings = load_config(
        EnhancerRun, [], [*overrides, *extra, "model.vocoder.upsample_initial_channel=16", "weights.mel=1"]
    )
    recipes.train_enhancer(settings)
    assert checkpoint.read_header(Path(settings.run_dir) / "last.safetensors").kind == "two-stage"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("enhancer=nothing", r"enhancer is 'nothing', must be one of .*two-stage"),
        ("model.strat=1", r"model.strat: no such setting; there are start"),
        ("model.start=soon", r"model.start is 'soon', must be of type float"),
        ("weights.own.square=much", r"weights.own.square is 'much', must be a number"),
    ],
)
def test_invalid_settings_are_errors_that_name_them(overrides, setting, message):
    with pytest.raises(ConfigError, match=message):
        load_config(EnhancerRun, [], [*overrides, setting])


def test_a_weight_without_a_term_is_an_error(overrides, capsys):
    assert main(["train-enhancer", "--run", "x", *overrides, "weights.own.sqare=1"]) == 1
    assert "give a YAML file" in capsys.readouterr().err
    settings = load_config(EnhancerRun, [], [*overrides, "weights.own.sqare=1"])
    with pytest.raises(ConfigError, match=r"weights.sqare is 1, but there is no loss term of that name"):
        recipes.train_enhancer(settings)
