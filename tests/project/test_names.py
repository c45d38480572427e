"""Tests of renamed identifiers and settings: old names are not used, old settings are refused, old files load."""

import io
import json
import re
import tokenize
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import small_vocoder
from trainings import data_overrides

from twostage.models import checkpoint
from twostage.models.baselines.eben import Eben, EbenConfig
from twostage.models.features import MelConfig
from twostage.models.vocoder import Vocoder
from twostage.training import recipes
from twostage.training.config import EnhancerRun, RestorerRun, VocoderRun, load_config
from twostage.utils.errors import ConfigError
from twostage.utils.renamed import RENAMED
from twostage.utils.schema import build

ROOT = Path(__file__).parents[2]
MAY_HOLD_OLD_NAMES = {ROOT / "twostage" / "utils" / "renamed.py", ROOT / "CHANGELOG.md", Path(__file__)}
# identifiers that were replaced by the terms of the field; those that are also ordinary words are searched in code only
OLD_NAMES = {
    *("least_squares_fool", "least_squares_real_fake", "hinge_fool", "hinge_real_fake"),
    *("bounded_hinge_fool", "Hearing", "with_height", "frames_heard", "heard_below", "hears_sensor", "characterise"),
    *("Carry", "against_the_clock", "in_hops", "Wishes", "wishes_of", "Cutter", "real_share", "eq_chance"),
    *("ambient_chance", "disc_grad"),
}
OLD_IN_CODE = {
    *("judge", "judges", "judged", "told", "found", "made", "given", "forget", "carried", "carries", "converse"),
    *("Relay", "Made", "Spill", "Survey", "Balance", "Guided", "Voice", "Guard", "Crew", "honest", "Once"),
    *(
        "Separation",
        "Character",
        "Late",
        "Pieces",
        "reach",
        "heard",
        "hears",
        "hears_clean",
        "piece",
        "pieces",
        "drawn",
    ),
}
OLD_SETTINGS = re.compile(
    r"\b(data\.(samples|batch|ahead)|optimizer\.(ema|clip)|adversary\.init)\b(?!\()"
    r"|(?<![\w.-])(run|init|report|save)=(?=[\w$*./\[]+)|^  (samples|batch|ahead|clip|ema): |^(run|init|report|save): ",
    re.MULTILINE,
)
FAST = ["steps=1", "valid.every=1", "valid.items=1", "valid.seconds=0.5", "threads=1", "data.segment_length=2048"]


def _files(*patterns: str) -> list[Path]:
    folders = [ROOT / name for name in ("twostage", "scripts", "tests", "docs", "configs", "checkpoints")]
    files = {file for folder in folders for pattern in patterns for file in folder.rglob(pattern)}
    return sorted((files | {file for pattern in patterns for file in ROOT.glob(pattern)}) - MAY_HOLD_OLD_NAMES)


def test_no_code_uses_an_old_name():
    files = _files("*.py")
    assert len(files) > 200
    for file in files:
        tokens = tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline)
        names = {token.string.strip("_") for token in tokens if token.type == tokenize.NAME}
        assert not names & (OLD_NAMES | OLD_IN_CODE), file


def test_no_text_uses_an_old_name():
    words = re.compile(rf"\b({'|'.join(OLD_NAMES)})\b")
    files = _files("*.py", "*.md", "*.yaml", "*.sh", "*.ipynb", "*.toml")
    assert len(files) > 250
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not words.findall(text), file
        if file.suffix in (".md", ".yaml", ".sh", ".ipynb") and file.name != "changes.yaml":
            assert not [match.group() for match in OLD_SETTINGS.finditer(text)], file


@pytest.fixture
def overrides(corpus, tmp_path):
    return [*data_overrides(corpus, tmp_path / "run"), *FAST]


@pytest.mark.parametrize(
    ("cls", "old", "new"),
    [
        (VocoderRun, "data.samples=8192", "data.segment_length"),
        (VocoderRun, "data.batch=8", "data.batch_size"),
        (VocoderRun, "data.ahead=8", "data.prefetch"),
        (RestorerRun, "data.real_share=0.5", "data.real_fraction"),
        (RestorerRun, "data.eq_chance=0.5", "data.eq_prob"),
        (RestorerRun, "data.ambient_chance=0.5", "data.ambient_prob"),
        (RestorerRun, "report=5", "log_every"),
        (RestorerRun, "save=5", "save_every"),
        (RestorerRun, "run=x", "run_dir"),
        (RestorerRun, "init=base", "init_from"),
        (VocoderRun, "adversary.init=x", "adversary.init_from"),
        (RestorerRun, "optimizer.ema=0.9", "optimizer.ema_decay"),
        (RestorerRun, "optimizer.clip=1", "optimizer.grad_clip"),
        (VocoderRun, "vocoder.hears_sensor=true", "vocoder.sensor_input"),
        (VocoderRun, "vocoder.heard_below=1000", "vocoder.input_phase_below"),
    ],
)
def test_an_old_setting_is_refused_with_its_new_name(overrides, tmp_path, cls, old, new):
    name = old.partition("=")[0]
    recipe = "vocoder" if cls is VocoderRun else "restorer"
    with pytest.raises(ConfigError, match=rf"^{name} is called {new} now$"):
        load_config(cls, [recipe], [*overrides, old])
    *sections, key = name.split(".")
    text = f"{key}: {old.partition('=')[2]}\n"
    for section in reversed(sections):
        text = f"{section}:\n" + "".join(f"  {line}\n" for line in text.splitlines())
    (tmp_path / "old.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"^{name} is called {new} now$"):
        load_config(cls, [recipe, str(tmp_path / "old.yaml")], overrides)


def test_an_old_setting_of_a_baseline_is_refused(overrides):
    with pytest.raises(ConfigError, match=r"^model.heard is called model.input_bands now$"):
        load_config(EnhancerRun, ["eben"], [*overrides, "model.heard=2"])


def _with_old_names(values: object, table: dict[str, str]) -> object:
    if not isinstance(values, dict):
        return values
    return {table.get(key, key): _with_old_names(value, table) for key, value in values.items()}


def _rewritten(path: Path, table: dict[str, str]) -> None:
    """Rewrite the metadata of a file of weights with old names."""
    header = checkpoint.read_header(path)
    with checkpoint.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    metadata["config"] = json.dumps(_with_old_names(header.config, table))
    assert any(f'"{name}"' in metadata["config"] for name in table.values())
    save_file(load_file(path), path, metadata)


@pytest.mark.parametrize(
    ("config", "table"),
    [(EbenConfig(input_bands=2), {"input_bands": "heard"})],
)
def test_weights_with_old_settings_are_loaded(tmp_path, config, table):
    torch.manual_seed(0)
    model, path = Eben(config).eval(), tmp_path / "old.safetensors"
    checkpoint.save(path, model, provenance={})
    _rewritten(path, table)
    loaded = checkpoint.load(path)
    assert loaded.config == config
    audio = torch.randn(1, 1, 4096, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded(audio), model.fold()(audio))


def test_a_vocoder_with_old_settings_is_loaded(tmp_path):
    config, path = small_vocoder(MelConfig(), griffin_lim=1, input_phase_below=32000.0), tmp_path / "old.safetensors"
    checkpoint.save(path, Vocoder(config), provenance={})
    _rewritten(path, {new: old for old, new in RENAMED["VocoderConfig"].items()})
    with checkpoint.safe_open(path, framework="pt") as file:
        stored = json.loads(file.metadata()["config"])
    assert stored["heard_below"] == 32000
    assert checkpoint.load_stage(path).config == config


def test_a_training_with_old_settings_is_resumed(overrides, tmp_path):
    """Its state and its settings file contain old names, and both are read."""
    small = ["restorer.channels=[4,8]", "restorer.time_strides=[2]", "restorer.mel.n_mels=16", "optimizer.grad_clip=2"]
    settings = load_config(RestorerRun, ["restorer"], [*overrides, *small, "data.batch_size=1", "save_every=1"])
    recipes.train_restorer(settings)
    table = {new: old for names in RENAMED.values() for old, new in names.items()}
    state = checkpoint.load_state(tmp_path / "run" / "state.pt")
    state["settings"] = _with_old_names(state["settings"], table)
    assert {"run", "save", "report", "init"} <= state["settings"].keys()
    assert {"batch", "ahead", "samples", "real_share"} <= state["settings"]["data"].keys()
    checkpoint.save_state(tmp_path / "run" / "state.pt", state)
    text = (tmp_path / "run" / "config.yaml").read_text()
    for new, old in table.items():
        text = text.replace(f"{new}:", f"{old}:")
    (tmp_path / "run" / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="is called"):
        load_config(RestorerRun, [str(tmp_path / "run" / "config.yaml")])
    resumed = load_config(RestorerRun, [str(tmp_path / "run" / "config.yaml")], ["steps=2"], stored=True)
    assert (resumed.data.batch_size, resumed.optimizer.grad_clip, resumed.save_every) == (1, 2.0, 1)
    recipes.train_restorer(resumed, resume=True)
    assert checkpoint.load_state(tmp_path / "run" / "state.pt")["step"] == 2


def test_every_new_name_is_a_field_and_every_old_one_is_refused():
    from twostage.data.pairs import PairConfig
    from twostage.models.vocoder import VocoderConfig
    from twostage.training.adversary import AdversaryRules
    from twostage.training.config import DataConfig, RunConfig
    from twostage.training.optim import OptimizerConfig

    known = (PairConfig, DataConfig, RunConfig, AdversaryRules, OptimizerConfig, VocoderConfig, EbenConfig)
    assert RENAMED.keys() == {cls.__name__ for cls in known}
    for cls in known:
        names = RENAMED[cls.__name__]
        assert set(names.values()) <= set(cls.__dataclass_fields__)
        assert not set(names) & set(cls.__dataclass_fields__)
        for old, new in names.items():
            with pytest.raises(ConfigError, match=rf"^x\.{old} is called x\.{new} now$"):
                build(cls, {old: 1}, "x")
