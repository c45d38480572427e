"""Tests of types: a user's program passes a strict type checker, and wrong calls are reported."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import twostage
from twostage.models.baselines.seanet import SeanetConfig
from twostage.models.enhancer import Enhancer, EnhancerModule, StreamingModule
from twostage.models.registry import ENHANCERS
from twostage.models.restorer import RestorerConfig
from twostage.models.two_stage import TwoStage, TwoStageConfig

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "typed" / "user_code.py"
INTERFACE = [name for name in vars(Enhancer) if not name.startswith("_") or name == "__call__"]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("user_code", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checked(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--ignore-missing-imports"]
    command += ["--follow-imports=silent", "--cache-dir", str(ROOT / ".mypy_cache" / "user"), str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"MYPYPATH": str(ROOT)})


@pytest.mark.slow
def test_a_correct_program_passes_a_strict_type_checker_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    process = checked(PROGRAM)
    assert process.returncode == 0, process.stdout
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import twostage\n\nmodel: int = twostage.load()\ntwostage.Stream(torch := object())\n"
        "twostage.restore(twostage.load(), [0.0], '16000')\n"
    )
    process = checked(wrong)
    assert [line.split(": ")[0].rpartition(":")[2] for line in process.stdout.splitlines() if ": error: " in line] == [
        "3",
        "4",
        "5",
    ]


def test_the_type_checked_program_runs(program: ModuleType, tiny: TwoStage, speech) -> None:
    audio = speech(8000)
    restored, rate = program.restored_array(audio, 8000)
    assert (rate, restored.shape, restored.dtype) == (16000, (16000,), np.float32)
    restored_tensor = program.restored_tensor(tiny, torch.from_numpy(audio))
    assert torch.equal(restored_tensor, twostage.restore(tiny, torch.from_numpy(audio), 16000))
    streamed, latency = program.streamed(tiny, np.array_split(audio, 5))
    assert streamed.shape == audio.shape
    assert latency == twostage.Stream(tiny, seconds=0.5).latency / 16000 > 0.5
    level = twostage.restore(program.Half(), audio, 16000, level="model")
    assert np.array_equal(program.halved(audio), level)


@pytest.mark.parametrize("name", ENHANCERS)
def test_every_system_implements_the_enhancer_interface(name: str) -> None:
    settings, module = ENHANCERS[name]
    with torch.device("meta"):
        model = module(settings())
    assert set(INTERFACE) == {
        *("sample_rate", "inputs", "hop_length", "stride", "context", "causal", "delay", "latency", "device"),
        "__call__",
    }
    assert isinstance(model, EnhancerModule)
    values = {attribute: getattr(model, attribute) for attribute in INTERFACE}
    assert values["device"].type == "meta" or not model.state_dict()
    assert values["stride"] % values["hop_length"] == 0
    assert model.config.inputs == model.inputs == 1
    assert isinstance(model, StreamingModule) or not model.causal


def test_settings_contain_the_number_of_input_channels() -> None:
    assert SeanetConfig(inputs=2).inputs == 2
    assert TwoStageConfig(restorer=RestorerConfig(inputs=2)).inputs == 2


def test_a_minimal_model_has_defaults_and_names_what_it_must_define() -> None:
    class Bare(EnhancerModule):
        pass

    model = Bare()
    assert (model.inputs, model.hop_length, model.stride, model.delay, model.causal) == (1, 1, 1, 0, False)
    assert model.device.type == "cpu"
    assert model.fold() is model
    for name in ("sample_rate", "context", "latency"):
        with pytest.raises(NotImplementedError, match=r"Bare.(sample_rate|context)"):
            getattr(model, name)
