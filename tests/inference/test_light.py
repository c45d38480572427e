"""Tests of an installation without PyTorch: it restores the same, and names what is missing."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

import twostage
from twostage.audio import sound_files
from twostage.inference.restoration import restore_file
from twostage.inference.restore_options import Options
from twostage.models import checkpoint, loading, model_files
from twostage.models.onnx_enhancer import OnnxEnhancer, _checked_weights
from twostage.utils import packages
from twostage.utils.errors import CheckpointError

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "configs" / "requirements-light.txt"
SHIPPED = {"default": "model.onnx", "causal": "step.onnx"}
Speech = Callable[..., np.ndarray]


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"} | variables
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, speech: Speech) -> Path:
    path = tmp_path_factory.mktemp("light")
    audio = np.stack([speech(22050, 22050), 0.3 * speech(22050, 22050, seed=1)])
    sound_files.write(path / "in.wav", audio, 22050)
    return path


@pytest.fixture(scope="module")
def light(folder: Path) -> dict[str, Any]:
    """The results of the program in which PyTorch cannot be imported."""
    process = python(str(Path(__file__).with_name("without_torch.py")), str(folder))
    assert process.returncode == 0, process.stderr
    results: dict[str, Any] = json.loads(process.stdout)
    return results


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal except for rounding errors, which Griffin-Lim amplifies, and for rounding to 16 bits."""
    assert actual.shape == expected.shape
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(actual, expected, atol=2e-3)
    assert np.linalg.norm(actual - expected) < 1e-3 * np.linalg.norm(expected)


def test_pytorch_and_its_companions_are_not_imported(light: dict[str, Any]) -> None:
    assert light["imported"] == []


def test_files_are_restored_like_with_pytorch(light: dict[str, Any], folder: Path) -> None:
    assert [light[name]["code"] for name in ("restore", "options")] == [0, 0]
    assert light["restore"]["out"].endswith("s on cpu\n")
    report = restore_file(checkpoint.load(), folder / "in.wav", folder / "expected.flac")
    assert_close(*(sound_files.read(folder / name)[0] for name in ("default.flac", "expected.flac")))
    (file,) = json.loads((folder / "default.json").read_text())["files"]
    for name in ("seconds", "channels", "input_sample_rate", "sample_rate", "warnings", "high_band_db", "copied"):
        assert file[name] == getattr(report, name), name
    options = Options(seconds=0.5, level="model", keep_low_band=400.0, sample_rate="input")
    restore_file(checkpoint.load("causal"), folder / "in.wav", folder / "expected.wav", options)
    assert_close(*(sound_files.read(folder / name)[0] for name in ("options.wav", "expected.wav")))


def test_arrays_are_restored_like_with_pytorch(light: dict[str, Any], folder: Path) -> None:
    audio, rate = sound_files.read(folder / "in.wav")
    assert_close(np.load(folder / "array.npy"), twostage.restore(checkpoint.load("causal"), audio, rate))
    assert light["arrays"]["dtype"] == "int16"
    assert light["arrays"]["progress"] == pytest.approx(1.0, abs=1e-3)
    assert light["arrays"]["nan"] == "audio: NaN or infinite samples, the first at 0.000 s"


def test_streams_equal_those_of_pytorch(light: dict[str, Any], folder: Path) -> None:
    audio, _ = sound_files.read(folder / "in.wav")
    with twostage.Stream(checkpoint.load("causal")) as stream:
        expected = np.concatenate([stream.push(audio[0, :16000]), stream.flush()])
    assert_close(np.load(folder / "pushed.npy"), expected)
    assert light["stream"]["code"] == 0
    assert "latency 48 ms, in hops of 16 ms" in light["stream"]["out"]
    assert sound_files.info(folder / "stream.wav").frames == 16000


def test_the_list_of_models_names_the_runtime(light: dict[str, Any]) -> None:
    _, *rows = light["models"]["out"].splitlines()
    assert [row.split()[0] for row in rows] == list(SHIPPED)
    assert all(row.endswith("ONNX Runtime") for row in rows)
    assert light["models"]["err"] == (
        f"twostage: warning: {packages.WITHOUT_TORCH}: ONNX Runtime runs the models; "
        f"{', '.join(name for name in model_files.names() if name not in SHIPPED)} cannot be used\n"
    )


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("again", "default.flac: exists already"),
        ("plot", "--plot: needs matplotlib, which is not installed (pip install matplotlib)"),
        ("cuda", "--device cuda: PyTorch is not installed"),
        ("weights", "base: PyTorch is not installed (pip install twostage installs it); without it, ONNX files"),
        ("missing", "nothing: no such file, folder or shipped model (base, "),
        ("no sound", "without_torch.py: not a sound file that can be read"),
        ("simulate", "needs scipy, which is not installed here"),
        ("train", "needs omegaconf, which is not installed here"),
    ],
)
def test_unavailable_functions_are_reported_in_one_line(
    light: dict[str, Any], folder: Path, name: str, error: str
) -> None:
    assert light[name]["code"] == 1
    (line,) = [line for line in light[name]["err"].splitlines() if line.startswith("twostage: error: ")]
    assert error in line
    assert not list(folder.glob("*.png")) + list(folder.glob("[pcwm]*.wav"))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_onnx_files_agree_with_the_shipped_weights(name: str, speech: Speech) -> None:
    """If this fails, the weights were replaced: ``python scripts/export_shipped.py`` writes the files anew."""
    home = ROOT / "checkpoints" / name
    model, onnx_model = checkpoint.load(name), OnnxEnhancer(home / SHIPPED[name])
    assert sorted(onnx_model.weights) == sorted(model_files.stage_files(name))
    assert onnx_model.path.stat().st_size < 1e6  # it contains no weights
    assert onnx_model.header.config == json.loads(json.dumps(asdict(model.config)))
    assert (onnx_model.causal, onnx_model.stride, onnx_model.delay, onnx_model.inputs) == (
        name == "causal",
        model.stride,
        model.delay,
        1,
    )
    assert onnx_model.header.parameters == sum(weight.numel() for weight in model.parameters())
    assert onnx_model.header.provenance == checkpoint.provenances(name)
    audio = speech(16000)[None, None]
    actual = onnx_model(audio)
    expected = model(torch.from_numpy(audio)).numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert np.abs(expected).max() > 0.01


def test_an_onnx_file_refuses_other_weights_beside_it(tmp_path: Path) -> None:
    home = Path(shutil.copytree(ROOT / "checkpoints" / "causal", tmp_path / "causal"))
    weights = home / "vocoder.safetensors"
    assert twostage.load(home / "step.onnx").sample_rate == 16000
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    message = r"step\.onnx: was exported for other weights than those in vocoder\.safetensors, or that file is damaged"
    with pytest.raises(CheckpointError, match=message):
        twostage.load(home / "step.onnx")
    weights.rename(home / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match=r"step\.onnx: .*vocoder\.safetensors") as error:
        twostage.load(home / "step.onnx")
    assert "\n" not in str(error.value)


def test_weights_are_only_read_from_the_folder_of_the_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    header = replace(OnnxEnhancer(ROOT / "checkpoints/causal/step.onnx").header, weights={"../secret": "0"})
    with pytest.raises(CheckpointError, match=r"step\.onnx: was exported for other weights than those in secret"):
        _checked_weights(tmp_path / "folder" / "step.onnx", header)


def test_a_folder_with_weights_and_onnx_uses_onnx_only_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading.onnx_for("default") is None
    monkeypatch.setattr(loading, "installed", lambda package: package != "torch")
    home = ROOT / "checkpoints"
    assert loading.onnx_for() == loading.onnx_for("default") == home / "default" / "model.onnx"
    assert loading.onnx_for(home / "causal") == home / "causal" / "step.onnx"
    for paths in (["base"], ["default/vocoder"], ["default", "causal"]):
        with pytest.raises(CheckpointError, match=r"without it, ONNX files can be used, and default, causal"):
            loading.onnx_for(*paths)


def test_an_onnx_file_is_used_without_importing_pytorch(folder: Path) -> None:
    program = (
        "import sys; from twostage.cli import main; "
        "model = ['--model', sys.argv[3]]; "
        "codes = main(['stream', '--file', sys.argv[1], *model]), main(['restore', *sys.argv[1:3], *model]); "
        "print(codes, sorted({'torch', 'scipy', 'librosa'} & set(sys.modules)))"
    )
    step = ROOT / "checkpoints" / "causal" / "step.onnx"
    process = python("-c", program, str(folder / "in.wav"), f"-o{folder / 'onnx.wav'}", str(step))
    assert process.stdout.splitlines()[-1] == "(0, 0) []", process.stderr


def test_the_light_requirements_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    light = [line for line in lines if line and not line.startswith("#")]
    assert set(light) <= {*project["dependencies"], *project["optional-dependencies"]["onnx"]}
    names = {Requirement(line).name for line in light}
    assert names == {"numpy", "onnxruntime", "pyyaml", "soundfile", "soxr", "tqdm"}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation as in the Docker image. Skipped where pip cannot install, unless TWOSTAGE_REQUIRE_LIGHT=1."""
    path = tmp_path_factory.mktemp("installation") / "twostage"
    script = [str(ROOT / "scripts" / "install_light.sh"), str(path)]
    process = subprocess.run(script, capture_output=True, text=True, check=False)
    if process.returncode and os.environ.get("TWOSTAGE_REQUIRE_LIGHT") != "1":
        pytest.skip(f"pip does not install here: {process.stderr.strip().splitlines()[-1:]}")
    assert process.returncode == 0, process.stderr
    return path


@pytest.mark.slow
def test_the_light_installation_is_small_and_restores(installation: Path, folder: Path) -> None:
    installed = {path.name for path in next(installation.glob("lib/python3*/site-packages")).iterdir()}
    assert {"numpy", "onnxruntime", "soxr", "twostage"} <= installed
    assert not {"torch", "torchaudio", "librosa", "scipy", "omegaconf", "matplotlib", "pip"} & installed
    size = sum(path.lstat().st_size for path in installation.rglob("*"))
    assert size < 220e6  # Debian and Python take about 130 MB of an image of 350 MB
    program, environment = str(installation / "bin" / "twostage"), {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}

    def run(*arguments: str) -> str:
        process = subprocess.run(
            [program, *arguments], capture_output=True, text=True, env=environment, cwd=folder, check=False
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    assert "1 restored" in run("restore", "in.wav", "-o", "installed.flac")
    restore_file(checkpoint.load(), folder / "in.wav", folder / "with.flac")
    assert_close(*(sound_files.read(folder / name)[0] for name in ("installed.flac", "with.flac")))
    assert "latency 48 ms" in run("stream", "--file", "in.wav")
    assert run("models").count("ONNX Runtime") == len(SHIPPED)


@pytest.mark.parametrize("name", ["light", "training"])
def test_docker_images_refer_to_existing_files_and_extras(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "scripts" / "docker" / f"{name}.Dockerfile").read_text(encoding="utf-8")
    (command,) = [line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN ")]
    if name == "light":
        assert command == "/src/scripts/install_light.sh /twostage"
    else:
        (extras,) = re.findall(r"'/src\[(.*)\]'", command)
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert text.rstrip().endswith('ENTRYPOINT ["/twostage/bin/twostage"]')
    assert "twostage" in project["scripts"]
    ignore_file = (ROOT / "scripts" / "docker" / f"{name}.Dockerfile.dockerignore").read_text(encoding="utf-8")
    included = [line[1:] for line in ignore_file.splitlines() if line.startswith("!")]
    assert {"pyproject.toml", "twostage", "checkpoints", "configs", "scripts/install_light.sh"} <= set(included)
    assert all((ROOT / path).exists() for path in included)


@pytest.mark.slow
def test_restoring_with_pytorch_imports_no_other_slow_package(folder: Path) -> None:
    program = (
        "import sys; from twostage.cli import main; slow = {'scipy', 'librosa', 'numba', 'matplotlib', 'omegaconf'}; "
        "print(main(['restore', *sys.argv[1:]]), sorted(slow & set(sys.modules)), 'torch' in sys.modules)"
    )
    process = python("-c", program, str(folder / "in.wav"), "-o", str(folder / "start.wav"))
    assert process.stdout.splitlines()[-1] == "0 [] True", process.stderr


def test_a_stream_runs_the_onnx_step_of_a_shipped_model_where_onnx_runtime_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(loading.load_for_stream("causal"), OnnxEnhancer)
    assert not isinstance(loading.load_for_stream("default"), OnnxEnhancer)  # its graph is not a step
    shutil.copytree(model_files.stage_files("causal")[0].parent, tmp_path / "mine")  # may have been trained further
    assert not isinstance(loading.load_for_stream(tmp_path / "mine"), OnnxEnhancer)
    monkeypatch.setattr(loading, "installed", lambda package: package != "onnxruntime")
    assert not isinstance(loading.load_for_stream("causal"), OnnxEnhancer)
