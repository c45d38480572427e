"""Tests of scripts/training_memory.py: it measures every recipe, with valid settings."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from twostage import cli
from twostage.commands.options import training_settings
from twostage.training.config import EnhancerRun, FinetuneRun, RestorerRun, VocoderRun

CONFIGS = Path(__file__).parents[2] / "configs"
SCHEMAS = {
    "train-restorer": RestorerRun,
    "train-vocoder": VocoderRun,
    "train-enhancer": EnhancerRun,
    "finetune": FinetuneRun,
}
NOT_MEASURED = {"adapt", "causal", "tiny", "seanet-fusion"}  # they have the sizes of another recipe, or are tiny


@pytest.fixture
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("training_memory")


def test_every_recipe_with_trainable_weights_is_measured(script: ModuleType) -> None:
    shipped = {path.stem for path in [*CONFIGS.glob("*.yaml"), *(CONFIGS / "baselines").glob("*.yaml")]}
    measured = {name for recipe in script.RECIPES.values() for name in recipe}
    assert shipped - measured == NOT_MEASURED | {"lowpass", "shift"}


def test_the_commands_have_valid_settings(script: ModuleType, tmp_path: Path) -> None:
    data = script.sample_data(tmp_path)
    for name in script.RECIPES:
        command = script.command(name, data, tmp_path / "run")
        settings = training_settings(cli.parse(command), SCHEMAS[command[0]])
        assert (settings.steps, settings.threads) == (3, 1)


@pytest.mark.slow
def test_the_peak_memory_of_a_command_is_measured(script: ModuleType) -> None:
    assert 20 < script.peak_megabytes(["config", "list"]) < 600


def test_an_unknown_recipe_is_named(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["restore"])
    assert "restore: no such recipe; there are restorer," in capsys.readouterr().err
