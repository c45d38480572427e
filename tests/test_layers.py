"""Imports point down, and one module owns each dependency.

A new file gets a line in LAYERS: the lowest layer above all that it imports. A line may name a folder and then stands
for every file in it that has none of its own.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "twostage"

LAYERS = {
    "errors": 0,
    "distributed": 0,
    "levels": 0,
    "memory": 0,
    "nn.short": 0,
    "nn.streaming": 0,
    "nn.layers": 1,
    "nn.dilated_unet": 2,
    "nn.pqmf": 1,
    "files": 1,
    "stores": 2,
    "results": 3,
    "schema": 1,
    "precision": 1,
    "features": 1,
    "band_discriminator": 2,
    "discriminators": 3,
    "optim": 1,
    "logs": 2,
    "data.spectra": 1,
    "audio": 2,
    "data.gate": 2,
    "pitch": 2,
    "restorer": 2,
    "hearing": 3,
    "griffinlim": 2,
    "vocoder": 3,
    "losses": 2,
    "metrics": 2,
    "jobs": 3,
    "plots": 3,
    "windows": 3,
    "mel_discriminator": 3,
    "balance": 3,
    "adversary": 4,
    "pipeline": 4,
    "data.presets": 3,
    "data.manifest": 3,
    "onnx_file": 4,
    "costs": 5,
    "signals": 0,
    "pieces": 4,
    "restoration": 5,
    "stream": 5,
    "live": 6,
    "data.simulate": 4,
    "data.air": 5,
    "data.align": 4,
    "data.calibration": 5,
    "data.simulation": 6,
    "app.guard": 0,
    "app.shift": 1,
    "app.limits": 3,
    "app.views": 4,
    "app.work": 7,
    "app.results": 9,
    "app.service": 10,
    "app.page": 11,
    "quantization": 5,
    "baselines": 4,
    "enhancers": 5,
    "report": 6,
    "checkpoint": 6,
    "corpus": 7,
    "cluster": 8,
    "data.pairs": 6,
    "data.sensor": 6,
    "data.picture": 7,
    "hifigan": 7,
    "export": 7,
    "tasks": 7,
    "validation": 7,
    "config": 8,
    "evaluate": 8,
    "trainer": 8,
    "compare": 9,
    "monitor": 9,
    "recipes": 10,
    "commands": 12,
    "cli": 13,
    "__main__": 14,
}
PUBLIC = ("checkpoint", "pipeline", "restoration", "stream")  # what `import twostage` hands out, when asked

OWNERS = {
    "soundfile": {"audio"},
    "soxr": {"audio"},
    "omegaconf": {"config"},
    "safetensors": {"checkpoint"},
    "pesq": {"metrics"},
    "pystoi": {"metrics"},
    "matplotlib": {"plots", "data.picture"},
    "torchaudio": {"features"},
    "sounddevice": {"live"},
    "onnxruntime": {"onnx_file", "quantization"},
    "onnx": {"export", "quantization"},
    "onnx_ir": {"export"},
    "gradio": {"app.page"},
    "starlette": {"app.page"},
    "ray": {"cluster"},
    "pyarrow": {"results"},
    "fsspec": {"stores"},
    "librosa": set(),  # the oracle of tests
}
HEAVY = {"torch", "numpy", "scipy", "librosa", "matplotlib", "soundfile", "omegaconf", "safetensors", "tqdm"}
HEAVY |= {"gradio", "ray"}

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.stem != "__init__")


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def layer_of(module):
    """The layer of "data.pairs" is its own line's, or that of its folder."""
    while module:
        if module in LAYERS:
            return LAYERS[module]
        module = module.rpartition(".")[0]
    return None


def is_module(name):
    path = PACKAGE.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def imports(path, *, everywhere=True):
    """Full names that a file imports; without ``everywhere``, those that importing the file itself runs."""
    found = set()
    nodes = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif everywhere or (not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not typing_only(node)):
            nodes += ast.iter_child_nodes(node)
    return found


def typing_only(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def ours(names):
    """Modules of the package among imported names: twostage.audio.read is audio, twostage.__version__ none."""
    for name in names:
        top, _, rest = name.partition(".")
        if top == "twostage" and rest and not rest.startswith("__"):
            yield rest if is_module(rest) else rest.rpartition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_from_lower_layers(path):
    name = name_of(path)
    layer = layer_of(name)
    assert layer is not None, f"{name} has no line in LAYERS"
    for other in sorted(set(ours(imports(path)))):
        siblings = name.partition(".")[0] == other.partition(".")[0] == "commands"
        assert siblings or layer_of(other) < layer, f"{name} (layer {layer}) imports {other} (layer {layer_of(other)})"


@pytest.mark.parametrize("dependency", OWNERS)
def test_one_module_owns_each_dependency(dependency):
    users = {name_of(path) for path in FILES for used in imports(path) if used.partition(".")[0] == dependency}
    assert users <= OWNERS[dependency]


@pytest.mark.parametrize(
    "path", [p for p in FILES if name_of(p).startswith(("commands", "cli", "errors", "memory", "signals"))], ids=name_of
)
def test_commands_are_light_to_import(path):
    names = imports(path, everywhere=False)
    assert not HEAVY & {used.partition(".")[0] for used in names}
    assert all(other.partition(".")[0] in ("commands", "errors", "memory", "signals") for other in ours(names))


def test_the_public_names_are_imported_when_asked():
    init = PACKAGE / "__init__.py"
    assert set(ours(imports(init))) == set(PUBLIC)
    assert not set(ours(imports(init, everywhere=False)))


def test_every_line_stands_for_a_file():
    assert [name for name in LAYERS if not is_module(name)] == []
