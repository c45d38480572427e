"""Tests of the streaming step in C, which is compiled if ONNX Runtime's headers are installed."""

import os
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from twostage.models.onnx_enhancer import OnnxEnhancer

ROOT = Path(__file__).parents[2]
STEP = ROOT / "checkpoints" / "causal" / "step.onnx"
HEADER = "onnxruntime_c_api.h"
INCLUDE_FOLDERS = ("/usr/include/onnxruntime", "/usr/local/include/onnxruntime", "/usr/include", "/usr/local/include")
Speech = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, linked to the library of the Python package; ONNXRUNTIME_INCLUDE may name a folder of headers."""
    folders = [os.environ.get("ONNXRUNTIME_INCLUDE", ""), *INCLUDE_FOLDERS]
    headers = next(
        (folder_of_headers for folder_of_headers in folders if Path(folder_of_headers, HEADER).is_file()), None
    )
    compiler, package = shutil.which("cc"), find_spec("onnxruntime")
    if headers is None or compiler is None or package is None or package.origin is None:
        pytest.skip(f"needs a C compiler, onnxruntime and its {HEADER} (Debian's libonnxruntime-dev)")
    libraries = sorted(Path(package.origin).parent.glob("capi/libonnxruntime.so.*"))
    if not libraries:
        pytest.skip("this package of onnxruntime holds no library of its own")
    folder = tmp_path_factory.mktemp("step")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(libraries[-1])
    command = [compiler, "-O2", "-std=c11", "-Wall", "-Wextra", "-Werror", str(ROOT / "scripts" / "stream_step.c")]
    command += ["-I", headers, "-L", str(folder), "-lonnxruntime", f"-Wl,-rpath,{folder}", "-o", str(folder / "step")]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return folder / "step"


@pytest.mark.parametrize("samples", [0, 1, 256, 10000])
def test_the_program_streams_like_python(program: Path, speech: Speech, samples: int) -> None:
    audio, model = speech(samples), OnnxEnhancer(STEP, threads=1)
    process = subprocess.run([program, STEP], input=audio.tobytes(), capture_output=True, check=True)
    actual = np.frombuffer(process.stdout, np.float32)
    silence = -samples % model.stride + 4 * model.stride
    expected = model.stream()(np.pad(audio, (0, silence))[None])[model.delay :][:samples]
    assert actual.shape == (samples,)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert samples < 10000 or np.abs(expected).max() > 0.01
    assert f"of {model.stride} samples, {model.delay} samples late".encode() in process.stderr


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "usage: stream_step step.onnx"),
        (["nothing.onnx"], "nothing.onnx"),
        ([str(ROOT / "checkpoints/default/model.onnx")], "not a model of one step: export it with --stream"),
        ([str(ROOT / "checkpoints/causal/vocoder.safetensors")], "failed"),
    ],
)
def test_a_file_that_is_no_streaming_step_is_refused(program: Path, arguments: list[str], error: str) -> None:
    process = subprocess.run([program, *arguments], input=b"", capture_output=True, check=False)
    assert process.returncode == 1
    assert process.stderr.decode().startswith("stream_step: ")
    assert error in process.stderr.decode()
    assert process.stdout == b""
