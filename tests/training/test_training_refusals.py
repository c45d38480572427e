"""Tests of trainings that are refused before the first step: other data, silence, too short or misaligned pairs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import data_overrides

from twostage.audio import sound_files
from twostage.models import checkpoint
from twostage.training import recipes
from twostage.training.config import EnhancerRun, RestorerRun, load_config
from twostage.utils.errors import ConfigError, DataError

FAST = (
    *("steps=2", "save_every=1", "log_every=1", "valid.every=1", "valid.items=2", "valid.seconds=0.5", "threads=1"),
    *("device=cpu", "data.segment_length=2048", "data.batch_size=1"),
)


def settings(train: Path, valid: Path, run: Path, *extra: str) -> RestorerRun:
    overrides = [f"data.train=[{train}]", f"data.valid=[{valid}]", f"run_dir={run}"]
    return load_config(RestorerRun, ["restorer", "tiny"], [*overrides, *FAST, *extra])


@pytest.fixture
def run_dir(corpus: Path, tmp_path: Path) -> Path:
    """The run folder of a training of one step."""
    recipes.train_restorer(settings(corpus, corpus, tmp_path / "run", "steps=1"))
    return tmp_path / "run"


def copied_corpus(corpus: Path, folder: Path, drop: int = 0) -> Path:
    """A copy of the corpus in another folder, without its first ``drop`` files."""
    head, *rows = corpus.read_text().splitlines()
    folder.mkdir()
    for row in rows:
        name = row.partition(",")[0]
        (folder / name).write_bytes((corpus.parent / name).read_bytes())
    (folder / "clean.csv").write_text("\n".join([head, *rows[drop:]]) + "\n")
    return folder / "clean.csv"


def trained_steps(run: Path) -> int:
    return int(checkpoint.load_state(run / "state.pt")["step"])


def test_a_training_is_resumed_after_its_files_moved(corpus: Path, run_dir: Path, tmp_path: Path) -> None:
    other = copied_corpus(corpus, tmp_path / "elsewhere")
    recipes.train_restorer(settings(other, other, run_dir), resume=True)
    assert trained_steps(run_dir) == 2


@pytest.mark.parametrize("setting", ["data.train", "data.valid"])
def test_a_training_is_not_resumed_with_other_files(corpus: Path, run_dir: Path, tmp_path: Path, setting: str) -> None:
    other = copied_corpus(corpus, tmp_path / "other", drop=1)
    train, valid = (other, corpus) if setting == "data.train" else (corpus, other)
    with pytest.raises(ConfigError, match=rf"{setting} is not what this training began with in .*run"):
        recipes.train_restorer(settings(train, valid, run_dir), resume=True)
    assert trained_steps(run_dir) == 1


def test_other_speech_in_files_of_the_same_name_is_detected(corpus: Path, run_dir: Path, tmp_path: Path) -> None:
    other = copied_corpus(corpus, tmp_path / "other")
    for path in other.parent.glob("*.wav"):
        sound, rate = sound_files.read(path)
        sound_files.write(path, sound[:, ::-1].copy(), rate, overwrite=True)
    with pytest.raises(ConfigError, match=r"data.valid is not what"):
        recipes.train_restorer(settings(corpus, other, run_dir), resume=True)


def test_a_state_of_an_older_version_without_fingerprints_is_resumed(corpus: Path, run_dir: Path) -> None:
    state = checkpoint.load_state(run_dir / "state.pt")
    del state["data"]
    checkpoint.save_state(run_dir / "state.pt", state)
    recipes.train_restorer(settings(corpus, corpus, run_dir), resume=True)
    assert trained_steps(run_dir) == 2


def test_resuming_a_missing_training_is_an_error_and_creates_nothing(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_dir: .*rnu contains no training to resume"):
        recipes.train_restorer(settings(corpus, corpus, tmp_path / "rnu"), resume=True)
    assert not (tmp_path / "rnu").exists()


def test_a_training_killed_before_its_first_state_is_resumed(corpus: Path, run_dir: Path) -> None:
    (run_dir / "state.pt").unlink()
    recipes.train_restorer(settings(corpus, corpus, run_dir), resume=True)
    assert trained_steps(run_dir) == 2


def manifest(folder: Path, clean: np.ndarray, bone: np.ndarray, delay: float = 0.0) -> Path:
    sound_files.write(folder / "air.wav", clean.astype(np.float32), 16000)
    sound_files.write(folder / "bone.wav", bone.astype(np.float32), 16000)
    (folder / "pair.csv").write_text(
        f"bone,air,speaker,seconds,delay\nbone.wav,air.wav,s,{len(clean) / 16000},{delay}\n"
    )
    return folder / "pair.csv"


@pytest.mark.parametrize("silent", ["clean", "degraded", "both"])
def test_silent_held_out_speech_is_refused(corpus: Path, tmp_path: Path, speech, silent: str) -> None:
    voice, silence = speech(16000), np.zeros(16000)
    clean, bone = (silence if silent in (side, "both") else voice for side in ("clean", "degraded"))
    valid = manifest(tmp_path, clean, bone)
    named_channel = "degraded" if silent == "both" else silent
    with pytest.raises(
        DataError, match=rf"bone.wav: data.valid: the {named_channel} channel is silent in its first 0.5 s"
    ):
        recipes.train_restorer(settings(corpus, valid, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_held_out_speech_shorter_than_a_frame_is_refused(corpus: Path, tmp_path: Path, speech) -> None:
    valid = manifest(tmp_path, speech(255), speech(255))
    with pytest.raises(DataError, match=r"bone.wav: data.valid: shorter than a frame of 256 samples"):
        recipes.train_restorer(settings(corpus, valid, tmp_path / "run"))


@pytest.mark.parametrize("delay", [10.0, -10.0])
def test_a_pair_whose_delay_exceeds_its_length_is_refused(corpus: Path, tmp_path: Path, speech, delay: float) -> None:
    train = manifest(tmp_path, speech(16000), speech(16000), delay)
    with pytest.raises(DataError, match=r"delay is -?160000 samples"):
        recipes.train_restorer(settings(train, corpus, tmp_path / "run", "data.real_fraction=1"))
    assert not (tmp_path / "run").exists()


def test_a_score_that_is_nan_does_not_select_the_best_weights(
    corpus: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("twostage.training.monitor.score_examples", lambda *_: {"mel_l1": float("nan")})
    recipes.train_restorer(settings(corpus, corpus, tmp_path / "run"))
    assert "(best)" not in capsys.readouterr().err
    assert not (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("dccrn", ["model={channels: [8, 8, 8], lstm_units: 8, lookahead: 3}"]),
        ("dpcrn", ["model={channels: [4, 4], strides: [2, 2], blocks: 1, units: 8}"]),
    ],
)
def test_systems_with_other_hops_are_scored_and_shown(
    name: str, small: list[str], corpus: Path, tmp_path: Path
) -> None:
    """Their output is shorter than the clean speech: 7168 samples are a whole number of hops of 256, not of theirs."""
    overrides = [*data_overrides(corpus, tmp_path / "run"), *FAST]
    plain = ["valid.metrics=[mel_l1]", "valid.best=mel_l1", "valid.show=2", "optimizer.warmup=0", "valid.seconds=0.45"]
    recipes.train_enhancer(load_config(EnhancerRun, [name], [*overrides, *plain, *small]))
    assert torch.isfinite(torch.tensor(checkpoint.load_state(tmp_path / "run" / "state.pt")["best"]))
