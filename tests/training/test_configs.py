"""Tests of configs/: every file defines a training that makes steps."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from trainings import data_overrides

from twostage.models import checkpoint
from twostage.models.restorer import Restorer
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.models.vocoder import Vocoder
from twostage.training import recipes
from twostage.training.config import FinetuneRun, RestorerRun, VocoderRun, load_config
from twostage.utils.errors import CheckpointError

Script = Callable[[str], ModuleType]

CONFIGS = Path(__file__).parents[2] / "configs"
OVERLAYS = {"tiny", "adapt", "fusion", "content", "causal", "sensor", "hifigan_v1", "hifigan_v2", "hifigan_v3"}
FAST = ["steps=2", "save_every=1", "log_every=1", "valid.every=2", "data.segment_length=2048"]


@pytest.fixture
def overrides(corpus: Path, tmp_path: Path) -> list[str]:
    return data_overrides(corpus, tmp_path / "run")


def test_every_file_is_tested_here() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == OVERLAYS | {"restorer", "vocoder", "finetune"}


@pytest.mark.parametrize(("name", "millions"), [("hifigan_v1", 13.9), ("hifigan_v2", 0.93), ("hifigan_v3", 1.46)])
def test_presets_have_the_sizes_of_the_paper(overrides: list[str], name: str, millions: float) -> None:
    with torch.device("meta"):
        model = Vocoder(load_config(VocoderRun, ["vocoder", name], overrides).vocoder)
        weights = sum(p.numel() for p in model.fold().parameters())
    assert weights / 1e6 == pytest.approx(millions, abs=0.05 if millions > 10 else 0.005)


@pytest.mark.parametrize("name", ["vocoder", "content", "causal", "sensor", "hifigan_v1", "hifigan_v2", "hifigan_v3"])
def test_a_vocoder_of_every_configuration_trains(overrides: list[str], name: str, tmp_path: Path) -> None:
    # the layout of the preset with few channels, and discriminators of one kind
    small = ["vocoder.upsample_initial_channel=16", "vocoder.mel.n_mels=16", "data.batch_size=1", "valid.items=1"]
    discriminators = [
        "adversary.discriminator.width=0.0625",
        "adversary.discriminator.periods=[3]",
        "valid.seconds=0.5",
    ]
    metrics = ["valid.metrics=[mel_l1]", "valid.best=mel_l1", "threads=1"]
    sensors = ["sensor"] * (name == "causal")
    settings = load_config(
        VocoderRun, ["vocoder", *sensors, name], [*overrides, *FAST, *small, *discriminators, *metrics]
    )
    recipes.train_vocoder(settings)
    assert checkpoint.load_stage(tmp_path / "run").config == settings.vocoder
    assert checkpoint.load_state(tmp_path / "run" / "state.pt")["step"] == 2


@pytest.mark.parametrize("extra", [[], ["restorer.output=mapping"], ["weights.delta=1", "weights.intelligibility=1"]])
def test_a_restorer_trains(overrides: list[str], extra: list[str], tmp_path: Path) -> None:
    settings = load_config(RestorerRun, ["restorer", "tiny"], [*overrides, *FAST, *extra])
    recipes.train_restorer(settings)
    assert checkpoint.load_stage(tmp_path / "run").config == settings.restorer


@pytest.mark.parametrize("train", ["vocoder", "restorer", "both"])
def test_fine_tuning_changes_exactly_the_trained_stages(
    overrides: list[str], paired_corpus: Path, train: str, tmp_path: Path
) -> None:
    files = ["tiny"]
    restorer = load_config(RestorerRun, ["restorer", *files], overrides).restorer
    vocoder = load_config(VocoderRun, ["vocoder", *files], overrides).vocoder
    checkpoint.save(tmp_path / "r.safetensors", Restorer(restorer), provenance={})
    checkpoint.save(tmp_path / "v.safetensors", Vocoder(vocoder), provenance={})
    models = [f"models=[{tmp_path / 'r.safetensors'},{tmp_path / 'v.safetensors'}]", f"train={train}", "frames=4"]
    pairs = [
        f"data.train=[{paired_corpus}]",
        f"data.valid=[{paired_corpus}]",
        "data.real_fraction=1",
        "data.sensors=[]",
    ]
    weights = [] if train == "vocoder" else ["weights.restored=1"]
    recipes.finetune(load_config(FinetuneRun, ["finetune", *files], [*overrides, *FAST, *models, *pairs, *weights]))
    before = checkpoint.load(tmp_path / "r.safetensors", tmp_path / "v.safetensors")
    after = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert isinstance(before, TwoStage)
    assert after.config == TwoStageConfig(restorer, vocoder)
    changed = {
        key.split(".")[0]
        for key, t in after.state_dict().items()
        if not torch.allclose(t, before.state_dict()[key], atol=1e-7)
    }
    assert changed == ({"restorer", "vocoder"} if train == "both" else {train})


def test_a_training_starts_from_given_weights(overrides: list[str], tmp_path: Path) -> None:
    settings = load_config(VocoderRun, ["vocoder", "tiny"], [*overrides, *FAST])
    torch.manual_seed(5)
    model = Vocoder(settings.vocoder)
    checkpoint.save(tmp_path / "v.safetensors", model, provenance={})
    almost_frozen = [*overrides, *FAST, f"init_from={tmp_path / 'v.safetensors'}", "optimizer.learning_rate=1e-12"]
    recipes.train_vocoder(load_config(VocoderRun, ["vocoder", "tiny"], almost_frozen))
    trained = checkpoint.load_stage(tmp_path / "run")
    for key, tensor in checkpoint.plain_state(model).items():
        torch.testing.assert_close(checkpoint.plain_state(trained)[key], tensor, atol=1e-6, rtol=0)


def test_an_adversary_starts_from_the_discriminators_of_another_training(
    overrides: list[str], tmp_path: Path, load_script: Script
) -> None:
    base = [*FAST, *overrides[:2], "seed=3"]
    first = load_config(VocoderRun, ["vocoder", "tiny"], [*base, f"run_dir={tmp_path / 'one'}"])
    recipes.train_vocoder(first)
    script, folder = load_script("scripts/save_discriminators.py"), tmp_path / "saved"
    folder.mkdir()
    state = checkpoint.load_state(tmp_path / "one" / "state.pt")["adversary"]["discriminators"]
    count = script.save_discriminators(tmp_path / "one" / "state.pt", folder / "discriminators.pt")
    assert count == sum(weight.numel() for weight in state.values())
    for start in (folder, folder / "discriminators.pt", tmp_path / "one", tmp_path / "one" / "state.pt"):
        two = [f"run_dir={tmp_path / 'two'}", f"adversary.init_from={start}", "adversary.start=9"]
        recipes.train_vocoder(load_config(VocoderRun, ["vocoder", "tiny"], [*base, *two]))
        loaded = checkpoint.load_state(tmp_path / "two" / "state.pt")["adversary"]["discriminators"]
        for key, weight in state.items():
            torch.testing.assert_close(loaded[key], weight, atol=1e-3, rtol=1e-3)
        shutil.rmtree(tmp_path / "two")


def test_saved_discriminators_that_cannot_be_used_are_errors(
    overrides: list[str], tmp_path: Path, load_script: Script
) -> None:
    def initialized(source: object) -> None:
        settings = [*FAST, *overrides, f"adversary.init_from={source}"]
        recipes.train_vocoder(load_config(VocoderRun, ["vocoder", "tiny"], settings))

    with pytest.raises(CheckpointError, match=r"holds neither state.pt nor discriminators.pt"):
        initialized(tmp_path)
    with pytest.raises(CheckpointError, match=r"adversary.init_from: .*base/discriminators.pt"):
        initialized("base")  # those of log-mels
    checkpoint.save_state(tmp_path / "plain.pt", {"step": 1})
    with pytest.raises(CheckpointError, match=r"plain.pt: contains no discriminators"):
        load_script("scripts/save_discriminators.py").save_discriminators(tmp_path / "plain.pt", tmp_path / "d.pt")


def test_a_restorer_adapts_to_pairs(overrides: list[str], corpus: Path, paired_corpus: Path, tmp_path: Path) -> None:
    first = load_config(RestorerRun, ["restorer", "tiny"], overrides)
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "r.safetensors", Restorer(first.restorer), provenance={})
    pairs = [f"init_from={tmp_path / 'r.safetensors'}", f"data.train=[{corpus},{paired_corpus}]", "threads=1"]
    settings = load_config(RestorerRun, ["restorer", "tiny", "adapt"], [*overrides, *FAST, *pairs])
    assert settings.data.real_fraction == 0.75
    recipes.train_restorer(settings)
    assert checkpoint.read_header(tmp_path / "run" / "last.safetensors").provenance["steps"] == 2
