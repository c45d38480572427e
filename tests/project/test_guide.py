"""Tests of docs/guide: its commands exist, and its examples run as they are written."""

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from test_readme import TRAININGS, commands
from torch import nn
from trainings import assert_same_training, data_overrides

from twostage import cli
from twostage.audio import sound_files
from twostage.commands.options import training_settings
from twostage.data.pairs import Pair
from twostage.evaluation import costs, metrics
from twostage.models import checkpoint, registry
from twostage.models.onnx_enhancer import OnnxEnhancer
from twostage.training import config
from twostage.training.config import EnhancerRun, load_config
from twostage.training.optim import OptimizerConfig
from twostage.training.tasks import Enhancing
from twostage.training.trainer import Training, fit
from twostage.utils.errors import ConfigError

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide"
PAGES = sorted(GUIDE.glob("*.md"))
SCHEMAS = {**TRAININGS, "train-enhancer": EnhancerRun}


def text_of(page: str) -> str:
    return (GUIDE / page).read_text(encoding="utf-8")


def shells(page: Path) -> Iterator[list[str]]:
    """Commands in a page's code blocks without a language."""
    for language, block in re.findall(
        r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        yield from () if language else commands(block)


def run_as_written(page: str) -> Iterator[list[str]]:
    """Commands in the block that is marked ``<!-- run -->``."""
    (block,) = re.findall(r"^<!-- run -->\n```\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)
    return commands(block)


def files_of(page: str) -> dict[str, str]:
    """Blocks that are marked ``<!-- file: NAME -->``, by name."""
    return dict(re.findall(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL))


def log_of(run: Path) -> list[float]:
    """The held-out L1 of log-mels that a training logged."""
    lines = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["mel_l1"] for line in lines if line["kind"] == "valid"]


DOCUMENTED = [(page.stem, arguments) for page in PAGES for arguments in shells(page)]
TRAINED = [arguments for _, arguments in DOCUMENTED if arguments[0] in SCHEMAS and "--resume" not in arguments]


def test_the_pages_contain_commands() -> None:
    assert {name for name, _ in DOCUMENTED} == {"own-sensor", "few-pairs", "add-an-enhancer", "corpora"}
    assert len(DOCUMENTED) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_point_to_files_of_the_documentation(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    targets = [page.parent.joinpath(link).resolve() for link in links if "://" not in link]
    assert targets
    for target in targets:
        assert target.is_file()
        assert target.is_relative_to(ROOT / "docs")  # the site contains nothing else


@pytest.mark.parametrize("picture", sorted(GUIDE.glob("*.png")), ids=lambda path: path.name)
def test_pictures_are_small_and_used(picture: Path) -> None:
    assert picture.stat().st_size < 150_000
    assert any(f"({picture.name})" in page.read_text(encoding="utf-8") for page in PAGES)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The system of add-an-enhancer.md, added to a folder and to the tables as the page describes."""
    for name, text in files_of("add-an-enhancer.md").items():
        path = tmp_path / "example" / ("baselines" if name.endswith(".yaml") else ".") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(
        "twostage.models.baselines.gru_gains", tmp_path / "example" / "gru_gains.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for name in ("gru_gains", "twostage.models.baselines.gru_gains"):
        monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    for table in (registry.ENHANCERS, registry.KINDS):
        monkeypatch.setitem(table, "gru-gains", (module.GruGainsConfig, module.GruGains))
    monkeypatch.setattr(config, "SHIPPED", (tmp_path / "example", *config.SHIPPED))
    return module


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a link to samples/, as in a clone of the repository."""
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("arguments", TRAINED, ids=" ".join)
def test_settings_of_documented_trainings_are_valid(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = [path.read_text() for path in (ROOT / "configs" / "corpora").glob("*.yaml") if path.stem in arguments]
    for path in re.findall(r"[\w./-]+\.(?:jsonl|csv)", " ".join([*arguments, *shipped])):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    for folder in re.findall(r"data\.noise=(\S+)", " ".join(arguments)):
        Path(folder).mkdir()
    assert training_settings(
        cli.parse(arguments), SCHEMAS[arguments[0]]
    ).run_dir  # an unknown or invalid setting raises


@pytest.mark.slow
@pytest.mark.usefixtures("quick_quality")
def test_the_guide_for_an_own_sensor_runs_as_written(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "real_time_factor", lambda *_: 0.0)  # it takes half of the time, and no test asserts it
    assert "`steps=60` at the end of the fourth is enough" in " ".join(text_of("own-sensor.md").split())
    for number, arguments in enumerate(run_as_written("own-sensor.md"), 1):
        assert cli.main([*arguments, *["steps=60"] * (number == 4)]) == 0, arguments
    actual = json.loads((workplace / "trial" / "scores" / "summary.json").read_text(encoding="utf-8"))["systems"]
    raw, small, copied = (actual[name] for name in ("raw input", "small", "small, copy-synthesis"))
    for metric in ("lsd", "mel_l1"):
        assert copied[metric]["mean"] < small[metric]["mean"] < 0.8 * raw[metric]["mean"]
    for picture in ("restored.png", "sensor.png"):
        assert (workplace / "trial" / picture).stat().st_size > 10_000
    assert len(sound_files.read(workplace / "trial" / "restored.flac")[0][0]) == len(
        sound_files.read("samples/throat.flac")[0][0]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("example")
def test_the_example_of_an_enhancer_runs_as_written(workplace: Path) -> None:
    for arguments in run_as_written("add-an-enhancer.md"):
        assert cli.main(arguments) == 0, arguments
    assert (losses := log_of(workplace / "trial" / "gru-gains"))[-1] < losses[0]
    restored, streamed = (
        sound_files.read(workplace / "trial" / f"{name}.flac")[0][0] for name in ("restored", "streamed")
    )
    throat = sound_files.read(ROOT / "samples" / "throat.flac")[0][0]
    assert (
        np.corrcoef(restored, streamed)[0, 1] > 0.9999
    )  # not equal, since a stream does not match the level of its input
    assert metrics.lsd(throat, restored) > 0.5
    assert OnnxEnhancer(workplace / "trial" / "step.onnx").header.kind == "gru-gains"


def test_the_example_has_the_documented_size_and_row_in_the_table_of_tests(example: ModuleType, corpus: Path) -> None:
    from test_baselines import SYSTEMS

    model = example.GruGains(example.GruGainsConfig())
    ((name, (millions, small)),) = ast.literal_eval("{" + files_of("add-an-enhancer.md")["row.txt"] + "}").items()
    assert set(map(type, (millions, small))) == set(map(type, SYSTEMS["dpcrn"]))
    assert costs.parameters(model) / 1e6 == pytest.approx(millions, abs=0.006)
    run = load_config(EnhancerRun, [name], [*data_overrides(corpus), *small])
    assert costs.parameters(example.GruGains(run.architecture)) < 0.02e6
    documented = re.search(r"([\d.]+) M weights, ([\d.]+) GMAC", files_of("add-an-enhancer.md")["gru-gains.yaml"])
    assert documented is not None
    assert costs.parameters(model) / 1e6 == pytest.approx(float(documented[1]), abs=0.005)
    assert costs.gmac_per_second(model) == pytest.approx(float(documented[2]), abs=0.005)


def test_the_example_overfits_one_batch(example: ModuleType, corpus: Path, speech: Callable[..., np.ndarray]) -> None:
    run = load_config(EnhancerRun, ["gru-gains"], data_overrides(corpus))
    torch.manual_seed(0)
    model = example.GruGains(example.GruGainsConfig(bands=16, units=16, layers=1))
    clean = torch.from_numpy(speech(4096)).view(1, 1, -1)
    pair = Pair(nn.functional.avg_pool1d(clean, 9, 1, 4), clean)
    losses: list[float] = []
    fit(
        Training(model, OptimizerConfig(learning_rate=3e-3, grad_clip=5.0)),
        Enhancing(run.mel, run.weights),
        repeat(pair),
        run.weights,
        steps=50,
        report=lambda _, progress: losses.append(float(progress.values["loss"])),
    )
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.usefixtures("example")
def test_the_example_resumes_a_training(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = [
        "train-enhancer",
        "gru-gains",
        "tiny",
        f"data.train=[{corpus}]",
        f"data.valid=[{corpus}]",
        "save_every=1",
        "optimizer.cooldown=0",
    ]
    assert cli.main([*command, "steps=4", "run_dir=whole"]) == 0
    assert cli.main([*command, "steps=2", "run_dir=parts"]) == 0
    assert cli.main([*command, "steps=4", "run_dir=parts", "--resume"]) == 0
    assert_same_training(tmp_path / "whole", tmp_path / "parts")


def test_the_test_of_the_example_passes(example: ModuleType) -> None:
    scope: dict[str, Callable[[], None]] = {}
    exec(files_of("add-an-enhancer.md")["test_gru_gains.py"], scope)
    scope["test_pieces_joined_are_the_whole"]()
    with pytest.raises(ConfigError, match=r"^model\.units is 0, must be at least 1$"):
        example.GruGainsConfig(units=0)
    with pytest.raises(ConfigError, match=r"^model\.hop_length is 300, .* at most half of model\.n_fft, 512$"):
        example.GruGainsConfig(hop_length=300)


def test_a_user_script_registers_the_example(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (registry.ENHANCERS, registry.KINDS):
        monkeypatch.delitem(table, "gru-gains")
    scope = {"__name__": "mine"}
    exec(files_of("add-an-enhancer.md")["mine.py"], scope)
    assert checkpoint.KINDS["gru-gains"] == config.ENHANCERS["gru-gains"] == (example.GruGainsConfig, example.GruGains)
