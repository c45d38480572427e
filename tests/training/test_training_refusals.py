"""Claims about trainings that cannot mean what they say: they are refused before the first step, by name."""

from pathlib import Path

import numpy as np
import pytest
import torch

from twostage.audio import sound_files
from twostage.models import checkpoint
from twostage.training import recipes
from twostage.training.config import EnhancerRun, RestorerRun, load_config
from twostage.utils.errors import ConfigError, DataError

FAST = (
    *("steps=2", "save_every=1", "log_every=1", "valid.every=1", "valid.items=2", "valid.seconds=0.5", "threads=1"),
    *("device=cpu", "data.segment_length=2048", "data.batch_size=1"),
)


def settings(train: Path, valid: Path, run: Path, *more: str) -> RestorerRun:
    overrides = [f"data.train=[{train}]", f"data.valid=[{valid}]", f"run_dir={run}"]
    return load_config(RestorerRun, ["restorer", "tiny"], [*overrides, *FAST, *more])


@pytest.fixture
def begun(corpus: Path, tmp_path: Path) -> Path:
    recipes.train_restorer(settings(corpus, corpus, tmp_path / "run", "steps=1"))
    return tmp_path / "run"


def moved(corpus: Path, folder: Path, drop: int = 0) -> Path:
    """A copy of the corpus elsewhere, without its first ``drop`` files."""
    head, *rows = corpus.read_text().splitlines()
    folder.mkdir()
    for row in rows:
        name = row.partition(",")[0]
        (folder / name).write_bytes((corpus.parent / name).read_bytes())
    (folder / "clean.csv").write_text("\n".join([head, *rows[drop:]]) + "\n")
    return folder / "clean.csv"


def steps(run: Path) -> int:
    return int(checkpoint.load_state(run / "state.pt")["step"])


def test_files_that_moved_are_the_same_data(corpus: Path, begun: Path, tmp_path: Path) -> None:
    other = moved(corpus, tmp_path / "elsewhere")
    recipes.train_restorer(settings(other, other, begun), resume=True)
    assert steps(begun) == 2


@pytest.mark.parametrize("place", ["data.train", "data.valid"])
def test_other_data_is_not_gone_on_with(corpus: Path, begun: Path, tmp_path: Path, place: str) -> None:
    other = moved(corpus, tmp_path / "other", drop=1)
    train, valid = (other, corpus) if place == "data.train" else (corpus, other)
    with pytest.raises(ConfigError, match=rf"{place} is not what this training began with in .*run"):
        recipes.train_restorer(settings(train, valid, begun), resume=True)
    assert steps(begun) == 1


def test_other_speech_in_files_of_the_same_name_is_noticed(corpus: Path, begun: Path, tmp_path: Path) -> None:
    other = moved(corpus, tmp_path / "other")
    for path in other.parent.glob("*.wav"):
        sound, rate = sound_files.read(path)
        sound_files.write(path, sound[:, ::-1].copy(), rate, overwrite=True)
    with pytest.raises(ConfigError, match=r"data.valid is not what"):
        recipes.train_restorer(settings(corpus, other, begun), resume=True)


def test_a_state_from_before_there_were_fingerprints_goes_on(corpus: Path, begun: Path) -> None:
    state = checkpoint.load_state(begun / "state.pt")
    del state["data"]
    checkpoint.save_state(begun / "state.pt", state)
    recipes.train_restorer(settings(corpus, corpus, begun), resume=True)
    assert steps(begun) == 2


def test_resuming_what_is_not_there_begins_nothing(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_dir: .*rnu contains no training to resume"):
        recipes.train_restorer(settings(corpus, corpus, tmp_path / "rnu"), resume=True)
    assert not (tmp_path / "rnu").exists()


def test_a_training_that_was_killed_before_its_first_state_can_be_resumed(corpus: Path, begun: Path) -> None:
    (begun / "state.pt").unlink()
    recipes.train_restorer(settings(corpus, corpus, begun), resume=True)
    assert steps(begun) == 2


def manifest(folder: Path, clean: np.ndarray, bone: np.ndarray, delay: float = 0.0) -> Path:
    sound_files.write(folder / "air.wav", clean.astype(np.float32), 16000)
    sound_files.write(folder / "bone.wav", bone.astype(np.float32), 16000)
    (folder / "pair.csv").write_text(
        f"bone,air,speaker,seconds,delay\nbone.wav,air.wav,s,{len(clean) / 16000},{delay}\n"
    )
    return folder / "pair.csv"


@pytest.mark.parametrize("silent", ["clean", "degraded", "both"])
def test_held_out_silence_is_no_best_score(corpus: Path, tmp_path: Path, speech, silent: str) -> None:
    voice, nothing = speech(16000), np.zeros(16000)
    clean, bone = (nothing if silent in (side, "both") else voice for side in ("clean", "degraded"))
    valid = manifest(tmp_path, clean, bone)
    named = "degraded" if silent == "both" else silent
    with pytest.raises(DataError, match=rf"bone.wav: data.valid: the {named} channel is silent in its first 0.5 s"):
        recipes.train_restorer(settings(corpus, valid, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_held_out_clip_shorter_than_a_frame_is_named(corpus: Path, tmp_path: Path, speech) -> None:
    valid = manifest(tmp_path, speech(255), speech(255))
    with pytest.raises(DataError, match=r"bone.wav: data.valid: shorter than a frame of 256 samples"):
        recipes.train_restorer(settings(corpus, valid, tmp_path / "run"))


@pytest.mark.parametrize("delay", [10.0, -10.0])
def test_a_delay_that_leaves_nothing_in_common_is_not_trained_on(
    corpus: Path, tmp_path: Path, speech, delay: float
) -> None:
    train = manifest(tmp_path, speech(16000), speech(16000), delay)
    with pytest.raises(DataError, match=r"delay is -?160000 samples"):
        recipes.train_restorer(settings(train, corpus, tmp_path / "run", "data.real_fraction=1"))
    assert not (tmp_path / "run").exists()


def test_a_score_that_is_none_is_no_best(corpus: Path, tmp_path: Path, monkeypatch, capsys) -> None:
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
def test_systems_of_other_hops_are_measured_and_shown(
    name: str, small: list[str], corpus: Path, tmp_path: Path
) -> None:
    """Their output ends a frame earlier than the clean speech: 7168 samples are 28 hops of 256, not of theirs."""
    overrides = [f"data.train=[{corpus}]", f"data.valid=[{corpus}]", f"run_dir={tmp_path / 'run'}", *FAST]
    plain = ["valid.metrics=[mel_l1]", "valid.best=mel_l1", "valid.show=2", "optimizer.warmup=0", "valid.seconds=0.45"]
    recipes.train_enhancer(load_config(EnhancerRun, [name], [*overrides, *plain, *small]))
    assert torch.isfinite(torch.tensor(checkpoint.load_state(tmp_path / "run" / "state.pt")["best"]))
