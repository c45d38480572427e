"""Tests of the training loop: reports, averaged weights, state, logs, best weights, and values that are not finite."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainings import data_overrides

from twostage.data.manifest import read_manifest
from twostage.data.pairs import Pair, PairConfig
from twostage.evaluation.metrics import NO_REFERENCE
from twostage.models import checkpoint
from twostage.models.features import MelConfig
from twostage.models.restorer import Restorer, RestorerConfig
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.training import recipes
from twostage.training.config import RestorerRun, VocoderRun, load_config
from twostage.training.logs import RunLog, colored
from twostage.training.optim import OptimizerConfig
from twostage.training.tasks import Restoring, RestoringWeights
from twostage.training.trainer import Training, fit
from twostage.training.validation import Example, bounds, examples
from twostage.utils.errors import ConfigError, TwoStageError

RESTORER = RestorerConfig(MelConfig(n_mels=16), channels=(4, 8), time_strides=(2,), blocks=1, dilations=(1,))


def small_training(**settings) -> Training:
    torch.manual_seed(0)
    return Training(Restorer(RESTORER), OptimizerConfig(**settings))


def pairs():
    while True:
        yield Pair(torch.randn(1, 1, 1024), torch.randn(1, 1, 1024))


def test_every_step_is_reported_and_counted():
    training, reported = small_training(), []
    fit(
        training,
        Restoring(RESTORER, RestoringWeights()),
        pairs(),
        RestoringWeights(),
        steps=3,
        report=lambda t, p: reported.append((t.step, p)),
    )
    assert [step for step, _ in reported] == [1, 2, 3]
    assert all(p.values.keys() == {"loss", "mel", "grad_norm"} and 0 <= p.waited <= p.seconds for _, p in reported)


def test_averaged_weights_without_decay_equal_the_weights():
    training = small_training(ema_decay=0.0)
    fit(training, Restoring(RESTORER, RestoringWeights()), pairs(), RestoringWeights(), steps=2)
    for key, tensor in training.model.state_dict().items():
        torch.testing.assert_close(training.ema.state_dict()[key], tensor)
    assert not any(p.requires_grad for p in training.ema.parameters())


def test_the_first_average_has_the_decay_of_the_ramp():
    training = small_training(ema_decay=0.999)
    before = {key: tensor.clone() for key, tensor in training.model.state_dict().items()}
    fit(training, Restoring(RESTORER, RestoringWeights()), pairs(), RestoringWeights(), steps=1)
    for key, after in training.model.state_dict().items():  # the decay is min(0.999, (1 + 1) / (10 + 1))
        torch.testing.assert_close(training.ema.state_dict()[key], before[key].lerp(after, 1 - 2 / 11))


def test_the_model_is_in_training_mode_and_its_average_in_evaluation_mode():
    training, modes = small_training(), []
    training.model.eval()
    fit(
        training,
        Restoring(RESTORER, RestoringWeights()),
        pairs(),
        RestoringWeights(),
        steps=1,
        wrap=lambda module: module,  # as with a single process; the default sets the mode itself
        report=lambda t, _: modes.append((t.model.training, t.ema.training)),
    )
    assert modes == [(True, False)]


def test_a_state_contains_the_whole_training():
    training, loaded = small_training(), small_training()
    fit(training, Restoring(RESTORER, RestoringWeights()), pairs(), RestoringWeights(), steps=2)
    training.best = 0.5
    earlier = torch.rand(3)
    state = training.state_dict()
    later = torch.rand(3)
    loaded.load_state_dict(state)
    assert (loaded.step, loaded.best) == (2, 0.5)
    assert torch.equal(torch.rand(3), later)  # random numbers continue where they were
    assert not torch.equal(earlier, later)
    for original, copy in ((training.model, loaded.model), (training.ema, loaded.ema)):
        for key, tensor in original.state_dict().items():
            assert torch.equal(tensor, copy.state_dict()[key])
    moments = [t.optimizer.state_dict()["state"][0]["exp_avg"] for t in (training, loaded)]
    assert torch.equal(*moments)
    assert moments[0].any()


def test_a_resumed_training_takes_only_the_batches_of_its_steps():
    training, taken = small_training(), []
    training.step = 2
    fit(
        training,
        Restoring(RESTORER, RestoringWeights()),
        (taken.append(1) or pair for pair in pairs()),
        RestoringWeights(),
        steps=5,
    )
    assert len(taken) == 3


@pytest.fixture
def overrides(corpus: Path, tmp_path: Path) -> list[str]:
    fast = ["steps=4", "save_every=2", "log_every=2", "valid.every=2", "data.segment_length=2048"]
    return [*data_overrides(corpus, tmp_path / "run"), *fast]


def test_a_run_writes_weights_state_logs_and_tensorboard(overrides, tmp_path):
    recipes.train_vocoder(load_config(VocoderRun, ["vocoder", "tiny"], overrides))
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "log.jsonl", "state.pt", "best.safetensors", "last.safetensors", "tensorboard"),
    }
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["step"]) for row in rows] == [("train", 2), ("valid", 2), ("train", 4), ("valid", 4)]
    assert rows[0].keys() >= {
        "loss",
        "mel",
        "adv",
        "fm",
        "discriminator_loss",
        "grad_norm",
        "learning_rate",
        "steps_per_second",
        "data_share",
    }
    board = EventAccumulator(str(run / "tensorboard"), {"images": 0, "audio": 0}).Reload().Tags()
    assert set(board["scalars"]) >= {"train/loss", "valid/mel_l1"}
    assert set(board["images"]) == {"held_out_0", "held_out_1"}
    assert set(board["audio"]) >= {"held_out_0/output", "held_out_0/degraded", "held_out_0/clean"}


def test_the_best_weights_are_those_of_the_best_score(overrides, tmp_path):
    recipes.train_vocoder(
        load_config(VocoderRun, ["vocoder", "tiny"], [*overrides, "steps=8", "optimizer.learning_rate=0.02"])
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["mel_l1"] for row in rows if row["kind"] == "valid"}
    assert len(scores) == 4
    kept = checkpoint.read_header(tmp_path / "run" / "best.safetensors").provenance
    assert kept["steps"] == min(scores, key=scores.get)
    assert kept["held_out"]["mel_l1"] == pytest.approx(min(scores.values()), abs=1e-4)
    assert checkpoint.load_state(tmp_path / "run" / "state.pt")["best"] == pytest.approx(min(scores.values()), abs=1e-4)


def test_a_restorer_is_validated_through_a_vocoder(overrides, paired_corpus, corpus, tmp_path):
    vocoder = load_config(VocoderRun, ["vocoder", "tiny"], overrides).vocoder
    restorer = load_config(RestorerRun, ["restorer", "tiny"], overrides).restorer
    model = TwoStage(TwoStageConfig(restorer, vocoder))  # the vocoder of a model with both stages is used
    checkpoint.save(tmp_path / "model.safetensors", model, provenance={})
    both = [
        f"data.valid=[{corpus},{paired_corpus}]",
        "valid.items=9",
        "valid.metrics=[mel_l1,lsd]",
        "valid.best=lsd_real",
    ]
    vocoder_setting = f"valid.vocoder={tmp_path / 'model.safetensors'}"
    recipes.train_restorer(load_config(RestorerRun, ["restorer", "tiny"], [*overrides, *both, vocoder_setting]))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    names = {f"{name}{kind}" for name in ("mel_l1", "lsd") for kind in ("", "_real", "_simulated")}
    assert names <= rows[1].keys()


def test_scores_without_a_reference_are_logged_for_input_and_clean_speech_too(overrides, tmp_path, monkeypatch, speech):
    monkeypatch.setitem(NO_REFERENCE, "mos", lambda sound: float(np.abs(sound).max()))
    run = ["valid.metrics=[mel_l1,mos]", "valid.best=mos", "valid.show=0"]
    recipes.train_vocoder(load_config(VocoderRun, ["vocoder", "tiny"], [*overrides, *run]))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    kinds = [row["kind"] for row in rows if row["kind"].startswith("valid")]
    assert kinds == ["valid_raw", "valid_clean", "valid", "valid"]
    best = checkpoint.read_header(tmp_path / "run" / "best.safetensors").provenance["held_out"]["mos"]
    assert best == pytest.approx(max(row["mos"] for row in rows if row["kind"] == "valid"), abs=1e-4)

    clean = torch.from_numpy(speech(8000))[None, None]
    pair = Example("a", torch.cat([0.5 * clean, clean], 1), clean, real=False)  # bone and air
    peak = float(clean.abs().max())
    assert bounds([pair], ["stoi", "mos"], 16000) == {"raw": {"mos": 0.5 * peak}, "clean": {"mos": peak}}
    assert bounds([pair], ["stoi"], 16000) == {}


def test_held_out_examples_are_reproducible(corpus):
    entries, config = read_manifest(corpus), PairConfig()
    training, other = (examples(entries, config, items=2, seconds=0.5, hop_length=256) for _ in range(2))
    assert [e.name for e in training] == [e.name for e in other]
    assert all(torch.equal(a.degraded, b.degraded) for a, b in zip(training, other, strict=True))
    assert all(e.clean.shape == e.degraded.shape == (1, 1, 31 * 256) for e in training)
    assert not torch.equal(training[0].degraded, training[0].clean)


def test_weights_that_are_not_finite_are_never_stored(overrides, tmp_path):
    bad = load_config(
        RestorerRun, ["restorer", "tiny"], [*overrides, "optimizer.learning_rate=1e30", "optimizer.warmup=0"]
    )
    with pytest.raises(TwoStageError, match=r"run: \w+ is not finite at step \d, stopped before it was saved"):
        recipes.train_restorer(bad)
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_metric_that_is_not_measured_cannot_select_the_best_weights(overrides):
    settings = load_config(RestorerRun, ["restorer", "tiny"], [*overrides, "valid.best=mel_l1_real"])
    with pytest.raises(ConfigError, match=r"valid\.best is 'mel_l1_real', but all held-out pairs are simulated"):
        recipes.train_restorer(settings)


def test_a_resumed_log_drops_lines_after_the_state(tmp_path):
    log = RunLog(tmp_path, console=io.StringIO())
    for step in (1, 2, 3):
        log.scalars(step, {"loss": 0.5}, "train")
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "ki')  # a line of a killed run
    RunLog(tmp_path, 2, console=io.StringIO()).close()
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]


def test_a_picture_is_dark_at_the_lower_and_bright_at_the_upper_limit():
    picture = colored(np.array([[-1.0, 0.0, 5.0]], np.float32), low=0, high=1)
    assert picture.shape == (3, 1, 3)
    assert picture[:, 0, 0].sum() == picture[:, 0, 1].sum() < 0.05
    assert picture[:, 0, 2].sum() > 2
