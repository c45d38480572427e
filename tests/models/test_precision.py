"""Tests of bfloat16: what is converted, closeness to float32, and warnings where a processor does not support it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import twostage
from twostage.audio import sound_files
from twostage.cli import main
from twostage.models import precision
from twostage.models.two_stage import TwoStage
from twostage.utils.errors import ConfigError

NOT_SUPPORTED = "precision bf16: this machine's cpu does not support it; float32 is used"


def noise() -> torch.Tensor:
    return 0.05 * torch.randn(1, 1, 4 * 4096, generator=torch.Generator().manual_seed(0))


def set_capabilities(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **capabilities})


def test_only_convolutions_are_bfloat16_and_the_output_stays_close(
    tiny: TwoStage, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_capabilities(monkeypatch, avx512_bf16=True)
    model = twostage.load(tiny_path, precision="bf16")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    with torch.inference_mode():
        mel = model.mel(noise())
        restored, expected = model.restorer(mel), tiny.restorer(mel)
        output, target = model(noise()), tiny(noise())
    assert restored.dtype == output.dtype == torch.float32
    assert 1e-4 < float((restored - expected).abs().mean()) < 0.03  # log-mels; 0.1 would be a dB
    error = (output - target).square().mean() / target.square().mean()
    assert 10 * float(error.log10()) < -25


def test_a_processor_without_bfloat16_uses_float32_and_warns(
    tiny: TwoStage, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_capabilities(monkeypatch, avx512_bf16=False)
    with pytest.warns(UserWarning, match=f"^{NOT_SUPPORTED}$"):
        model = twostage.load(tiny_path, precision="bf16")
    with torch.inference_mode():
        assert torch.equal(model(noise()), tiny(noise()))


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_support_of_bfloat16_is_read_from_the_processor(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    set_capabilities(monkeypatch)
    assert not precision.computes_bfloat16("cpu")
    assert precision.shortfall("bf16", "cpu") == NOT_SUPPORTED
    assert precision.shortfall("float32", "cpu") == ""
    set_capabilities(monkeypatch, **{name: True})
    assert precision.computes_bfloat16("cpu")
    assert precision.shortfall("bfloat16", "cpu") == ""


def test_an_unknown_precision_is_named(tiny_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^precision is 'float8', must be one of float32, bfloat16, bf16$"):
        twostage.load(tiny_path, precision="float8")


@pytest.mark.parametrize(("capable", "used"), [(False, "float32"), (True, "bfloat16")])
def test_the_command_reports_the_precision_that_it_used(
    tiny_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    capable: bool,
    used: str,
) -> None:
    set_capabilities(monkeypatch, avx512_bf16=capable)
    sound_files.write(tmp_path / "in.wav", np.asarray(noise())[0], 16000)
    paths = [str(tmp_path / "in.wav"), "-o", str(tmp_path / "out.wav"), "--json", str(tmp_path / "r.json")]
    assert main(["restore", *paths, "--model", str(tiny_path), "--device", "cpu", "--precision", "bf16"]) == 0
    warnings = [
        line for line in capsys.readouterr().err.splitlines() if "in.wav" not in line
    ]  # without the warnings about the noise
    assert warnings == ([] if capable else [f"twostage: warning: --{NOT_SUPPORTED}"])
    assert json.loads((tmp_path / "r.json").read_text())["precision"] == used
