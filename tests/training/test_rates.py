"""Tests of other sample rates than 16 kHz: scores, losses, and 22.05 kHz from training to evaluation."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from twostage import cli
from twostage.audio import sound_files
from twostage.evaluation import metrics
from twostage.models import checkpoint
from twostage.models.features import LogMel, MelConfig
from twostage.models.vocoder import VocoderConfig
from twostage.training.losses import mel_l1
from twostage.training.tasks import Vocoding, VocodingWeights
from twostage.training.validation import Estimate, Example, score_examples

RATE = 22050
MEL = MelConfig(RATE)
Speech = Callable[..., np.ndarray]
FAST = (
    *(
        "steps=2",
        "threads=1",
        "device=cpu",
        "save_every=2",
        "log_every=1",
        "valid.every=2",
        "valid.items=1",
        "valid.seconds=0.8",
    ),
    *(
        "data.sample_rate=22050",
        "data.segment_length=8192",
        "data.batch_size=1",
        "valid.metrics=[mel_l1,stoi]",
        "valid.best=mel_l1",
    ),
)
SMALL = ("vocoder.upsample_initial_channel=16", "vocoder.mel.sample_rate=22050")


@pytest.fixture(scope="module")
def noisy(speech: Speech) -> tuple[np.ndarray, np.ndarray]:
    """Clean speech at 22.05 kHz, and the same with some noise and a low-pass."""
    clean = speech(2 * RATE, RATE)
    noise = np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    return clean, np.convolve(clean + 0.01 * noise, np.ones(6) / 6, "same").astype(np.float32)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_score_is_computed_at_16_khz(name: str, noisy: tuple[np.ndarray, np.ndarray]) -> None:
    resampled = [sound_files.resample(side, RATE, 16000) for side in noisy]
    expected = metrics.METRICS[name](*resampled)
    assert metrics.METRICS[name](*noisy, sample_rate=RATE) == pytest.approx(expected, abs=1e-6)
    assert metrics.score(*noisy, [name], sample_rate=RATE)[0][name] == pytest.approx(expected, abs=1e-6)
    # without resampling, the score differs; only the SI-SDR does not depend on frequencies
    assert name == "si_sdr" or abs(metrics.METRICS[name](*noisy) - expected) > 5e-3


def test_errors_by_frequency_are_computed_at_16_khz(noisy: tuple[np.ndarray, np.ndarray]) -> None:
    resampled = [sound_files.resample(side, RATE, 16000) for side in noisy]
    np.testing.assert_allclose(
        metrics.band_errors(*noisy, sample_rate=RATE), metrics.band_errors(*resampled), atol=1e-6
    )


def test_held_out_speech_is_scored_at_its_sample_rate(noisy: tuple[np.ndarray, np.ndarray]) -> None:
    clean, degraded = (torch.from_numpy(side[: 170 * 256])[None, None] for side in noisy)
    estimate = Estimate(LogMel(MEL)(degraded)[0], degraded[0, 0].numpy())
    actual = score_examples(
        nn.Identity(), lambda *_: estimate, [Example("a", degraded, clean, True)], ["stoi"], LogMel(MEL)
    )
    resampled = [sound_files.resample(side[0, 0].numpy(), RATE, 16000) for side in (clean, degraded)]
    assert actual["stoi"] == pytest.approx(metrics.stoi(*resampled), abs=1e-6)


@pytest.fixture(scope="module")
def pairs(speech: Speech, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of two pairs at 22.05 kHz."""
    folder = tmp_path_factory.mktemp("fast pairs")
    for seed in range(2):
        clean = speech(RATE, RATE, seed=seed)
        sound_files.write(folder / f"{seed}_air.wav", clean, RATE)
        sound_files.write(folder / f"{seed}_bone.wav", np.convolve(clean, np.ones(9) / 9, "same"), RATE)
    rows = "".join(f"{seed}_bone.wav,{seed}_air.wav,s{seed},1.0\n" for seed in range(2))
    (folder / "pairs.csv").write_text(f"bone,air,speaker,seconds\n{rows}")
    return folder / "pairs.csv"


@pytest.mark.slow
@pytest.mark.usefixtures("quick_quality")
def test_training_and_evaluation_at_22_khz(pairs: Path, tmp_path: Path) -> None:
    data, run = [f"data.train=[{pairs}]", f"data.valid=[{pairs}]"], {s: str(tmp_path / s) for s in ("r", "v", "f")}
    tiny = ["tiny", *data, *FAST]
    restorer = [
        "restorer.mel.sample_rate=22050",
        "data.real_fraction=1",
        "data.sensors=[eben]",
        "data.sensor_weights=[]",
    ]
    plain = ["valid.metrics=[mel_l1]"]
    assert cli.main(["train-vocoder", "vocoder", *tiny, *SMALL, f"run_dir={run['v']}"]) == 0
    assert cli.main(["train-restorer", "restorer", *tiny, *restorer, *plain, f"run_dir={run['r']}"]) == 0
    models = f"models=[{run['r']},{run['v']}]"
    real = ["data.real_fraction=1", "data.sensors=[eben]", "data.sensor_weights=[]"]
    assert cli.main(["finetune", "finetune", *tiny, *real, models, f"run_dir={run['f']}"]) == 0
    scores = json.loads((tmp_path / "f" / "log.jsonl").read_text().splitlines()[-1])
    assert scores["kind"] == "valid"
    assert checkpoint.load(run["f"]).sample_rate == RATE
    assert cli.main(["evaluate", "--pairs", str(pairs), "--model", f"m={run['f']}", "-o", str(tmp_path / "e")]) == 0
    rows = (tmp_path / "e" / "utterances.csv").read_text().splitlines()
    assert sum(",m," in row for row in rows) == 2
    assert -1.0 < scores["stoi"] < 1.0


def test_losses_extend_to_half_the_sample_rate_by_default(noisy: tuple[np.ndarray, np.ndarray]) -> None:
    audio = torch.from_numpy(noisy[0][:8192])[None, None]
    time = torch.arange(8192) / RATE
    high_tone = 0.1 * torch.sin(2 * torch.pi * 10_000 * time)  # above the 8 kHz of the vocoder's input mels

    def loss(config: VocoderConfig) -> float:
        task = Vocoding(config.mel, VocodingWeights(adv=0, fm=0), config.mel_of_losses)
        model = Fixed(audio + high_tone)
        output = task(model, type("Pair", (), {"degraded": audio, "clean": audio})())
        assert model.mel_shape == LogMel(MEL)(audio).shape
        return float(output.terms["mel"])

    input_mel = LogMel(MEL)
    assert loss(VocoderConfig(MEL, fmax_for_loss=8000.0)) == pytest.approx(
        float(mel_l1(input_mel(audio + high_tone), input_mel(audio))), abs=1e-5
    )
    assert loss(VocoderConfig(MEL)) > loss(VocoderConfig(MEL, fmax_for_loss=8000.0)) + 0.1


class Fixed(nn.Module):
    """A vocoder that returns ``audio`` for every log-mel, and stores the shape of the log-mel."""

    def __init__(self, audio: torch.Tensor) -> None:
        super().__init__()
        self.audio, self.mel_shape = audio, torch.Size()

    def forward(self, mel: torch.Tensor, sensor: torch.Tensor) -> torch.Tensor:
        self.mel_shape = mel.shape
        return self.audio
