"""Tests of error messages: what they say first, and that they come before long imports."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from twostage.app.limits import Limits
from twostage.app.work import restore_all
from twostage.audio import plots
from twostage.cli import main
from twostage.corpus import storage
from twostage.inference.restore_options import Options
from twostage.models.onnx_enhancer import OnnxEnhancer
from twostage.models.two_stage import TwoStage
from twostage.utils.errors import AudioError, CheckpointError


def test_the_page_reports_random_bytes_as_no_sound_file(tiny: TwoStage, tmp_path: Path) -> None:
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(60000))
    outcome = restore_all(tiny, [tmp_path / "noise.mp3"], tmp_path / "out", Limits(), Options())
    (line,) = outcome.failures
    assert line.startswith("noise.mp3: not a sound file that can be read")
    assert "pipe" not in line


def test_a_missing_extra_is_reported_before_a_corpus_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "find_spec", lambda name: None)
    (tmp_path / "a.csv").write_text("path\na.wav\n")
    assert main(["restore-corpus", str(tmp_path / "a.csv"), "-o", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert "twostage[cluster]" in err
    assert out == ""
    assert not (tmp_path / "out").exists()


def test_compare_checks_its_folders_before_it_imports_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from twostage.cli import main; code = main(['compare', 'missing', '-o', 'out'])\n"
        "sys.exit(code + 10 * ('torch' in sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr == "twostage: error: missing: no such folder\n"


def test_errors_of_onnx_runtime_follow_the_reason(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / f"{'long-' * 30}name.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"not an ONNX file, or damaged \(\[ONNXRuntimeError\]"):
        OnnxEnhancer(path)


def test_errors_while_drawing_become_warnings() -> None:
    warnings: list[str] = []
    for error in (RuntimeError("no font"), AudioError("cannot be read", subject="a.wav")):
        with plots.optional("a.png", warnings.append):
            raise error
    assert warnings == ["a.png: not drawn (no font)", "not drawn: a.wav: cannot be read"]
