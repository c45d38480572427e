"""Tests of resuming: a training that is stopped or killed at any moment ends bitwise like an uninterrupted one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from trainings import assert_same_training, data_overrides

from twostage.models import checkpoint
from twostage.training import recipes
from twostage.training.config import RestorerRun, VocoderRun, load_config
from twostage.training.fingerprint import changed, fingerprint
from twostage.utils.errors import CheckpointError, ConfigError

STEPS = 6


def vocoder_settings(corpus: Path, run: Path, *extra: str) -> VocoderRun:
    files = data_overrides(corpus, run)
    fast = (
        f"steps={STEPS}",
        "save_every=2",
        "log_every=1",
        "valid.every=3",
        "valid.items=1",
        "valid.show=1",
        "data.segment_length=2048",
    )
    return load_config(VocoderRun, ["vocoder", "tiny"], [*files, *fast, *extra])


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted training."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    recipes.train_vocoder(vocoder_settings(corpus, run))
    return run


def test_a_repeated_training_is_bitwise_the_same(corpus: Path, uninterrupted: Path, tmp_path: Path) -> None:
    recipes.train_vocoder(vocoder_settings(corpus, tmp_path / "again"))
    assert_same_training(tmp_path / "again", uninterrupted)


def test_a_resumed_training_is_bitwise_the_same(corpus: Path, uninterrupted: Path, tmp_path: Path) -> None:
    recipes.train_vocoder(vocoder_settings(corpus, tmp_path / "parts", "steps=3"))
    torch.rand(5)  # the process that resumes has another random state
    recipes.train_vocoder(vocoder_settings(corpus, tmp_path / "parts"), resume=True)
    assert_same_training(tmp_path / "parts", uninterrupted)
    steps = [line.split()[1] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines() if "train" in line]
    assert steps == [f"{step}," for step in range(1, STEPS + 1)]


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("writing weights", marks=pytest.mark.slow),
        "writing state",
        pytest.param("between steps", marks=pytest.mark.slow),
    ],
)
def test_a_killed_and_resumed_training_is_bitwise_the_same(
    corpus: Path, uninterrupted: Path, tmp_path: Path, moment: str
) -> None:
    run = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_TRAINING, str(corpus), str(run), moment], env=_environment()
    )
    assert process.wait() == -signal.SIGKILL
    partial_files = [path for path in run.iterdir() if path.suffix == ".part"]
    assert len(partial_files) == (moment != "between steps")
    recipes.train_vocoder(vocoder_settings(corpus, run), resume=True)
    assert_same_training(run, uninterrupted)
    assert not any(path.exists() for path in partial_files)


# killed at step 4, half-way through a file or before it writes any
KILLED_TRAINING = f"""
import os, signal, sys
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parents[level]) for level in (0, 1)]!r}
import torch
torch.set_num_threads(1)
from twostage.models import checkpoint
from twostage.training import monitor
from twostage.training import prepared, recipes
from test_resume import vocoder_settings

corpus, run, moment = sys.argv[1:]
class KillingMonitor(monitor.Monitor):
    def __call__(self, training, progress):
        if training.step == 4:
            if moment == "between steps":
                os.kill(os.getpid(), signal.SIGKILL)
            write = Path.write_bytes if moment == "writing weights" else torch.save
            def write_half(*args):
                target = args[0] if moment == "writing weights" else args[1].name
                with open(target, "wb") as file:
                    file.write(b"half")
                    file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            if moment == "writing weights":
                Path.write_bytes = write_half
            else:
                torch.save = write_half
        super().__call__(training, progress)
prepared.Monitor = KillingMonitor
recipes.train_vocoder(vocoder_settings(Path(corpus), Path(run)))
"""


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_an_interrupted_training_stores_its_state_and_says_how_to_resume(
    corpus: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "stopped"
    command = [sys.executable, "-m", "twostage", "train-vocoder", "vocoder", "tiny", "steps=100000", "save_every=50000"]
    settings = [f"data.train=[{corpus}]", f"data.valid=[{corpus}]", "valid.every=50000", "log_every=1"]
    fast = ["valid.items=1", "data.segment_length=2048", "--run", str(run)]
    process = subprocess.Popen([*command, *settings, *fast], env=_environment(), stderr=subprocess.PIPE, text=True)
    while not (run / "log.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    step = checkpoint.load_state(run / "state.pt")["step"]
    assert f"stopped at step {step}; continue with --resume" in printed
    assert "Traceback" not in printed


def test_a_training_does_not_replace_another_one(corpus: Path, uninterrupted: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_dir: .*whole contains a training; continue it with --resume"):
        recipes.train_vocoder(vocoder_settings(corpus, uninterrupted))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.learning_rate=0.1", "optimizer.learning_rate is 0.1, was 0.0002"),
        ("data.batch_size=3", "data.batch_size is 3, was 2"),
        ("adversary.loss=hinge", "adversary.loss is hinge, was least_squares"),
        ("seed=7", "seed is 7, was 0"),
    ],
)
def test_a_training_is_not_resumed_with_other_settings(
    corpus: Path, uninterrupted: Path, setting: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        recipes.train_vocoder(vocoder_settings(corpus, uninterrupted, setting), resume=True)


def test_a_damaged_state_is_an_error_that_names_it(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"state\.pt: not a training state"):
        recipes.train_vocoder(vocoder_settings(corpus, tmp_path), resume=True)


def restorer_settings(corpus: Path, run: Path, steps: int, *extra: str) -> RestorerRun:
    files = *data_overrides(corpus, run), f"steps={steps}"
    fast = "optimizer.cooldown=0", "save_every=2", "valid.every=4", "valid.items=1"
    return load_config(RestorerRun, ["restorer", "tiny"], [*files, *fast, *extra])


ADVERSARIAL = "weights.adv=1", "weights.fm=1", "weights.ssim=1", "adversary.mel_discriminator.channels=[4,8]"


@pytest.mark.parametrize(
    "extra",
    [
        ("precision=bfloat16", "weights.delta=1"),
        ADVERSARIAL,
        (
            *ADVERSARIAL,
            "precision=bfloat16",
            "adversary.start=1",
            "adversary.generator_steps=2",
            "adversary.adaptive=true",
        ),
        (*ADVERSARIAL, "adversary.adaptive=each"),
    ],
    ids=["content", "adversarial", "adversarial by all rules", "balanced"],
)
def test_a_resumed_restorer_training_is_bitwise_the_same(corpus: Path, tmp_path: Path, extra: tuple[str, ...]) -> None:
    recipes.train_restorer(restorer_settings(corpus, tmp_path / "whole", 4, *extra))
    recipes.train_restorer(restorer_settings(corpus, tmp_path / "parts", 2, *extra))
    recipes.train_restorer(restorer_settings(corpus, tmp_path / "parts", 4, *extra), resume=True)
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
    discriminators = checkpoint.load_state(tmp_path / "whole" / "state.pt")["adversary"]
    assert bool(discriminators) == ("weights.adv=1" in extra)
    logged = (tmp_path / "whole" / "log.jsonl").read_text()
    assert ('"adaptive_adv"' in logged) == any("adaptive" in setting for setting in extra)
    assert bool(discriminators and discriminators["lengths"]) == ("adversary.adaptive=each" in extra)


def test_a_listener_is_compared_up_to_rounding() -> None:
    listener = torch.nn.Linear(300, 300)
    ours = fingerprint([], [], [], listener)
    with torch.no_grad():
        listener.weight *= 1 + 1e-12  # as the order of a sum changes it
    assert changed(ours, fingerprint([], [], [], listener)) == ""
    with torch.no_grad():
        listener.weight *= 1.001
    assert changed(ours, fingerprint([], [], [], listener)) == "valid.vocoder"
    assert changed(ours, fingerprint([], [], [], None)) == "valid.vocoder"
    assert changed(ours, {**ours, "valid.vocoder": "the digest of an earlier version"}) == ""


def test_a_restorer_state_of_an_older_version_without_adversary_is_resumed(corpus: Path, tmp_path: Path) -> None:
    recipes.train_restorer(restorer_settings(corpus, tmp_path / "run", 2))
    state = checkpoint.load_state(tmp_path / "run" / "state.pt")
    del state["settings"]["adversary"]
    for name in ("ssim", "adv", "fm"):
        del state["settings"]["weights"][name]
    checkpoint.save_state(tmp_path / "run" / "state.pt", state)
    with pytest.raises(ConfigError, match=r"weights.adv is 1.0, was 0.0"):
        recipes.train_restorer(restorer_settings(corpus, tmp_path / "run", 4, "weights.adv=1"), resume=True)
    recipes.train_restorer(restorer_settings(corpus, tmp_path / "run", 4), resume=True)
    assert checkpoint.load_state(tmp_path / "run" / "state.pt")["step"] == 4
