"""Tests of the architecture: imports point down, without cycles, and dependencies have owners.

A subpackage is a folder of the package, or a module beside the folders. It imports only subpackages with smaller
numbers.
"""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import twostage
from twostage.cli import COMMANDS

PACKAGE = Path(__file__).parents[2] / "twostage"
ARCHITECTURE = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")

LAYERS = {
    "utils": 0,
    "nn": 1,
    "audio": 1,
    "models": 2,
    "data": 2,
    "inference": 3,
    "evaluation": 4,
    "training": 5,
    "export": 5,
    "corpus": 6,
    "app": 6,
    "commands": 7,
    "cli": 8,
    "__main__": 9,
}
# modules whose names `import twostage` provides lazily
PUBLIC = (
    *("models.loading", "models.protocol", "models.two_stage", "inference.restoration", "inference.stream"),
    "utils.errors",
)

OWNERS = {
    "signal": {"utils.signals"},
    "soundfile": {"audio.containers", "audio.parts", "audio.reading", "audio.sound_files"},
    "soxr": {"audio.resampling"},
    "av": {"audio.media_files"},
    "omegaconf": {"training.config"},
    "safetensors": {"models.checkpoint"},
    "pesq": {"evaluation.metrics"},
    "pystoi": {"evaluation.metrics"},
    "distillmos": {"evaluation.speech_quality"},
    "matplotlib": {"audio.plots", "data.sensor_plot"},
    "torchaudio": set(),  # its import fails with some builds of torch
    "sounddevice": {"inference.realtime"},
    "onnxruntime": {"models.onnx_enhancer", "export.int8", "evaluation.speech_quality"},
    "onnx": {"export.onnx", "export.int8", "export.shared_weights"},
    "onnx_ir": {"export.onnx"},
    "gradio": {"app.page"},
    "starlette": {"app.server"},
    "uvicorn": {"app.server"},
    "ray": {"corpus.ray_cluster"},
    "pyarrow": {"corpus.table", "data.parquet"},
    "fsspec": {"corpus.storage"},
    "librosa": set(),  # its import takes longer than torch's; tests compare with it
}
HEAVY = {"torch", "numpy", "scipy", "librosa", "matplotlib", "soundfile", "omegaconf", "safetensors", "tqdm"}
HEAVY |= {"gradio", "ray"}

LIGHT = ("utils.devices", "utils.packages", "utils.errors", "utils.logs", "utils.memory", "utils.signals")

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.stem != "__init__")


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def subpackage_of(module):
    return module.partition(".")[0]


def is_module(name):
    path = PACKAGE.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def imports(path, *, everywhere=True):
    """Full names that a file imports; without ``everywhere``, only those that are imported with the file itself."""
    names = set()
    nodes = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif everywhere or (not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not typing_only(node)):
            nodes += ast.iter_child_nodes(node)
    return names


def typing_only(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def ours(names):
    """Modules of the package among imported names: audio for twostage.audio.read, none for twostage.__version__."""
    for name in names:
        top, _, rest = name.partition(".")
        if top == "twostage" and rest and not rest.startswith("__"):
            yield rest if is_module(rest) else rest.rpartition(".")[0]


def test_every_subpackage_has_a_number():
    assert {subpackage_of(name_of(path)) for path in FILES} == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_its_own_and_lower_subpackages(path):
    name, own = name_of(path), subpackage_of(name_of(path))
    for other in sorted(set(ours(imports(path)))):
        theirs = subpackage_of(other)
        lower = LAYERS[theirs] < LAYERS[own]
        assert theirs == own or lower, f"{name} (layer {LAYERS[own]}) imports {other} (layer {LAYERS[theirs]})"


@pytest.mark.parametrize("subpackage", LAYERS)
def test_a_subpackage_has_no_import_cycle(subpackage):
    imports_of = {
        name_of(path): set(ours(imports(path))) for path in FILES if subpackage_of(name_of(path)) == subpackage
    }
    graph = {name: {other for other in imported if other in imports_of} for name, imported in imports_of.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


@pytest.mark.parametrize("dependency", OWNERS)
def test_a_dependency_is_imported_only_by_its_owners(dependency):
    users = {name_of(path) for path in FILES for used in imports(path) if used.partition(".")[0] == dependency}
    assert users <= OWNERS[dependency]


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p).startswith(("commands", "cli", *LIGHT))], ids=name_of)
def test_commands_import_no_heavy_package(path):
    names = imports(path, everywhere=False)
    assert not HEAVY & {used.partition(".")[0] for used in names}
    assert all(other.startswith(("commands", *LIGHT)) for other in ours(names))


def test_slow_and_rarely_used_modules_are_imported_lazily():
    """The import of scipy.signal takes a second, which would delay every command."""
    rarely_used = ("scipy.signal", "scipy.optimize")
    imported_at_start = {name_of(path): imports(path, everywhere=False) for path in FILES}
    assert not {
        name for name, imported in imported_at_start.items() if any(other.startswith(rarely_used) for other in imported)
    }


@pytest.mark.parametrize("path", (PACKAGE / "commands").glob("*.py"), ids=name_of)
def test_commands_import_no_other_command(path):
    """Code that commands share is in a module that is no command."""
    commands = {f"commands.{name.replace('-', '_')}" for name in COMMANDS}
    assert len(commands) == len(COMMANDS) > 10
    assert all(is_module(name) for name in commands)
    assert not commands & set(ours(imports(path)))


def test_public_names_are_imported_lazily():
    init = PACKAGE / "__init__.py"
    assert set(ours(imports(init))) == set(PUBLIC)
    assert not set(ours(imports(init, everywhere=False)))
    assert set(twostage._MODULES.values()) == set(PUBLIC)
    assert set(twostage._MODULES) == set(twostage.__all__)
    assert all(getattr(twostage, name).__name__ == name for name in twostage.__all__)


@pytest.mark.parametrize("walk", re.findall(r"^## (How .*)$", ARCHITECTURE, re.MULTILINE))
def test_a_documented_walk_visits_subpackages_in_descending_order(walk: str) -> None:
    text = ARCHITECTURE.partition(f"## {walk}\n")[2].partition("\n## ")[0]
    files = re.findall(r"`(twostage/[\w/]+\.py)`", "\n".join(re.split(r"\n(?=\d+\. )", text)[1:]).partition("\n\n")[0])
    subpackages = [LAYERS[Path(file).with_suffix("").parts[1]] for file in files]
    assert all((PACKAGE.parent / file).is_file() for file in files)
    assert len(files) >= 10
    assert subpackages == sorted(subpackages, reverse=True)
    assert len(set(subpackages)) >= 4
    assert 9 <= len(re.findall(r"^\d+\. ", text, re.MULTILINE)) <= 10
