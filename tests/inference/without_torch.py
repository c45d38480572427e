"""A program that uses the package where PyTorch and its companions cannot be imported; `test_light.py` runs it.

    python tests/inference/without_torch.py FOLDER

FOLDER contains in.wav, at another sample rate than the models', and gets the outputs. The results are printed as JSON.
"""

import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

MISSING = ("torch", "torchaudio", "librosa", "scipy", "omegaconf", "matplotlib", "safetensors", "tensorboard", "onnx")


class Refusing:
    """An import finder that raises an error for the packages that are to look as if they were not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


if __name__ == "__main__":  # but not when the tests are collected
    sys.meta_path.insert(0, Refusing())

import numpy as np  # noqa: E402

import twostage  # noqa: E402
from twostage.audio import sound_files  # noqa: E402
from twostage.cli import main  # noqa: E402
from twostage.utils.errors import TwoStageError  # noqa: E402


def run_command(*arguments: str) -> dict[str, Any]:
    """Exit code, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def commands(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    source, target = str(folder / "in.wav"), lambda name: ["-o", str(folder / name)]
    yield "restore", run_command("restore", source, *target("default.flac"), "--json", str(folder / "default.json"))
    yield (
        "options",
        run_command(
            *("restore", source, *target("options.wav"), "--model", "causal", "--level", "model"),
            *("--sample-rate", "input", "--keep-low-band", "400", "--seconds", "0.5"),
        ),
    )
    yield "again", run_command("restore", source, *target("default.flac"))
    yield "stream", run_command("stream", "--file", source, *target("stream.wav"), "--gain", "6", "--overwrite")
    yield "models", run_command("models")
    yield "plot", run_command("restore", source, *target("plot.wav"), "--plot")
    yield "cuda", run_command("restore", source, *target("cuda.wav"), "--device", "cuda")
    yield "weights", run_command("restore", source, *target("weights.wav"), "--model", "base")
    yield "missing", run_command("restore", source, *target("missing.wav"), "--model", "nothing")
    yield "no sound", run_command("restore", __file__, *target("sound.wav"))
    yield "simulate", run_command("simulate", source, str(folder / "simulated"))
    yield "train", run_command("train-restorer", "restorer", "--run", str(folder / "run"))


def arrays(folder: Path) -> dict[str, Any]:
    audio, rate = sound_files.read(folder / "in.wav")
    model, seconds_done = twostage.load("causal", threads=1), list[float]()
    np.save(folder / "array.npy", twostage.restore(model, audio, rate, progress=seconds_done.append))
    whole = twostage.restore(model, (audio[:, :4000] * 32767).astype(np.int16), rate)
    with twostage.Stream(model) as stream:
        parts = [stream.push(part) for part in np.array_split(audio[0, :16000], 7)]
        np.save(folder / "pushed.npy", np.concatenate([*parts, stream.flush()]))
    try:
        twostage.restore(model, np.full(100, np.nan), rate)
    except TwoStageError as error:
        return {"dtype": str(whole.dtype), "progress": sum(seconds_done), "nan": str(error)}
    return {}


def run(folder: Path) -> None:
    started = time.perf_counter()
    results: dict[str, Any] = dict(commands(folder))
    results["arrays"] = arrays(folder)
    results["imported"] = sorted({name.partition(".")[0] for name in sys.modules} & set(MISSING))
    results["seconds"] = time.perf_counter() - started
    print(json.dumps(results))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
