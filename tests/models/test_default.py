"""Tests of the shipped models: size, and the restored sample, which has the missing band and no buzz."""

from pathlib import Path

import numpy as np
import pytest

import twostage
from twostage.audio import sound_files
from twostage.evaluation import costs, metrics
from twostage.models import checkpoint

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"


@pytest.fixture(scope="module")
def sample() -> dict[str, np.ndarray]:
    """The sample: clean, by the sensor, restored by default and by `causal`, (T,) each at 16 kHz."""
    clean, throat = (sound_files.read(SAMPLES / f"{name}.flac")[0][0] for name in ("clean", "throat"))
    restored = {name: twostage.restore(twostage.load(name), throat, 16000) for name in ("default", "causal")}
    return {"clean": clean, "throat": throat, "restored": restored["default"], "causal": restored["causal"]}


def power(signal: np.ndarray, low: float, high: float) -> float:
    spectrum = np.abs(np.fft.rfft(signal)) ** 2
    frequencies = np.fft.rfftfreq(len(signal), 1 / 16000)
    return float(spectrum[(frequencies >= low) & (frequencies < high)].sum())


def test_the_default_model_is_small_enough():
    files = list((ROOT / "checkpoints" / "default").glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 12e6
    assert costs.gmac_per_second(twostage.load()) < 6


def test_the_restored_sample_has_the_band_that_the_sensor_lacks(sample):
    high_band_fraction = {name: power(signal, 4500, 7500) / power(signal, 0, 4000) for name, signal in sample.items()}
    assert high_band_fraction["throat"] < 1e-4
    assert high_band_fraction["restored"] > 100 * high_band_fraction["throat"]
    assert metrics.lsd(sample["clean"], sample["restored"]) < 0.7 * metrics.lsd(sample["clean"], sample["throat"])


@pytest.mark.parametrize(
    "band", [(2048, 4096), (4608, 7552)], ids=["2 to 4 kHz", "4.5 to 7.4 kHz, which the sensor lacks"]
)
@pytest.mark.parametrize("model", ["restored", "causal"])
def test_the_restored_sample_does_not_buzz_at_the_frame_rate(sample, model, band):
    window = np.hanning(16384)
    frames = [sample[model][start : start + 16384] * window for start in range(0, 98304, 8192)]
    spectrum = np.mean([np.abs(np.fft.rfft(frame)) ** 2 for frame in frames], axis=0)
    multiples = np.arange(*band, 64)  # bins at multiples of 62.5 Hz
    lines, between = spectrum[multiples].mean(), spectrum[multiples + 32].mean()
    assert 10 * np.log10(lines / between) < 6


def test_the_restored_sample_is_as_loud_as_the_input_and_not_clipped(sample):
    assert np.abs(sample["restored"]).max() < 1
    levels = [20 * np.log10(np.sqrt(np.mean(sample[name] ** 2))) for name in ("throat", "restored")]
    assert abs(levels[0] - levels[1]) < 2


def test_the_base_restorer_fits_the_default_vocoder():
    base = checkpoint.load_stage("base", "restorer")
    assert not base.config.mel.difference(checkpoint.load_stage("default", "vocoder").config.mel)


def test_the_shipped_restored_sample_is_the_output_of_the_default_model(sample):
    """`twostage restore samples/throat.flac -o samples/restored.flac --overwrite` writes it anew."""
    shipped = sound_files.read(SAMPLES / "restored.flac")[0][0]
    error = shipped - sample["restored"]
    assert 10 * np.log10(np.mean(shipped**2) / np.mean(error**2)) > 65  # the file has 16 bits
