"""Tests of the recurrent baselines on the command line: training, resuming, restoring, and the refusal to export."""

from pathlib import Path

import numpy as np
import pytest
import torch

from twostage.audio import sound_files
from twostage.cli import main
from twostage.models import checkpoint

FAST = ["data.segment_length=2048", "data.batch_size=2", "threads=1", "save_every=1", "log_every=1"]
VALID = ["valid.every=2", "valid.items=1", "valid.seconds=0.3", "valid.metrics=[mel_l1]"]
SMALL = {
    "bsrnn": ["model.n_fft=64", "model.hop_length=16", "model.bands=[3,13,17]", "model.features=4", "model.layers=1"],
    "bilstm": ["model.n_fft=64", "model.hop_length=16", "model.units=4", "model.layers=1"],
}


@pytest.mark.parametrize("name", SMALL)
def test_a_recurrent_system_is_trained_resumed_and_restores(name, paired_corpus, speech, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = [
        f"data.train=[{paired_corpus}]",
        f"data.valid=[{paired_corpus}]",
        "data.real_fraction=1",
        "data.sensors=[]",
    ]
    command = ["train-enhancer", name, *FAST, *VALID, *SMALL[name], *pairs, "valid.best=mel_l1", "--run"]
    assert main([*command, "whole", "steps=2"]) == 0
    assert main([*command, "parts", "steps=1"]) == 0
    assert main([*command, "parts", "steps=2", "--resume"]) == 0
    uninterrupted, resumed = (checkpoint.load(Path(run, "last.safetensors")).state_dict() for run in ("whole", "parts"))
    assert all(torch.equal(uninterrupted[key], resumed[key]) for key in uninterrupted)
    sound_files.write("in.wav", speech(3000), 16000)
    for precision in ("float32", "bf16"):
        options = ["--precision", precision, "--device", "cpu", "-o", f"{precision}.wav"]
        assert main(["restore", "in.wav", "--model", "whole/last.safetensors", *options]) == 0
        restored = sound_files.read(f"{precision}.wav")[0]
        assert restored.shape[-1] == 3000
        assert np.abs(restored).max() > 0.001
    capsys.readouterr()
    assert main(["export", "whole/last.safetensors", "model.onnx"]) == 1
    assert f"a {name} cannot become ONNX" in capsys.readouterr().err
    assert not Path("model.onnx").exists()
