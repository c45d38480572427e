"""Claims about scripts/training_memory.py: every recipe is measured, with settings that its command takes."""

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
WITHOUT = {"adapt", "causal", "tiny", "seanet-fusion"}  # the batch and the sizes of another recipe, or next to none


@pytest.fixture
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("training_memory")


def test_every_recipe_with_weights_to_learn_is_measured(script: ModuleType) -> None:
    shipped = {path.stem for path in [*CONFIGS.glob("*.yaml"), *(CONFIGS / "baselines").glob("*.yaml")]}
    measured = {word for words in script.RECIPES.values() for word in words}
    assert shipped - measured == WITHOUT | {"lowpass", "shift"}


def test_its_commands_take_its_settings(script: ModuleType, tmp_path: Path) -> None:
    data = script.sample_data(tmp_path)
    for name in script.RECIPES:
        words = script.command(name, data, tmp_path / "run")
        settings = training_settings(cli.parse(words), SCHEMAS[words[0]])
        assert (settings.steps, settings.threads) == (3, 1)


def test_a_command_s_most_memory_is_measured_in_a_process_of_its_own(script: ModuleType) -> None:
    assert 20 < script.peak_megabytes(["config", "list"]) < 600


def test_an_unknown_recipe_is_named(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["restore"])
    assert "restore: no such recipe; there are restorer," in capsys.readouterr().err
