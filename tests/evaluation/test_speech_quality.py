"""Tests of the scores without a reference: equal to those of the packages, at any gain."""

import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from twostage.audio import sound_files
from twostage.evaluation import metrics, speech_quality
from twostage.evaluation.metrics import MetricWarning

RATE = 16000
SAMPLES = Path(__file__).parents[2] / "samples"


@pytest.fixture(scope="module")
def samples():
    """4.6 s of clean synthetic speech and of a simulated throat microphone, two windows of DistillMOS."""
    return {name: sound_files.read(SAMPLES / f"{name}.flac")[0][0, :73600] for name in ("clean", "throat")}


@pytest.mark.parametrize(("name", "margin"), [("mos", 1.0), ("dnsmos", 0.2)])
def test_muffled_speech_scores_below_clean_speech_at_any_gain(samples, name, margin):
    clean, throat = (metrics.NO_REFERENCE[name](samples[side]) for side in ("clean", "throat"))
    assert 1 < throat < clean - margin
    assert metrics.NO_REFERENCE[name](0.1 * samples["throat"]) == pytest.approx(throat, abs=1e-3)
    assert metrics.HIGHER_IS_BETTER[name]


@pytest.mark.parametrize("seconds", [4.6, 8.2])
def test_distillmos_equals_the_package_for_whole_and_partial_windows(samples, seconds):
    audio = np.append(samples["clean"], samples["throat"])[: round(seconds * RATE)]
    actual = speech_quality.distillmos(audio)
    from distillmos import sqa

    with contextlib.redirect_stdout(io.StringIO()):  # it prints which weights it loads
        model = sqa.ConvTransformerSQAModel().eval()
    with torch.no_grad():
        assert actual == pytest.approx(float(model(torch.from_numpy(audio)[None])), abs=1e-5)


def test_dnsmos_equals_the_package(samples):
    from speechmos import dnsmos

    audio = np.append(samples["clean"], samples["throat"][:RATE])  # two windows, when the audio is repeated

    assert speech_quality.dnsmos(audio) == pytest.approx(dnsmos.run(audio, RATE)["ovrl_mos"], abs=1e-5)


def test_loading_distillmos_uses_no_random_numbers_imports_no_torchaudio_and_prints_nothing(
    samples, monkeypatch, capsys
):
    for module in [name for name in sys.modules if name.partition(".")[0] in ("torchaudio", "distillmos")]:
        monkeypatch.delitem(sys.modules, module)
    before = torch.get_rng_state()
    speech_quality._distillmos.cache_clear()
    assert 1 <= speech_quality.distillmos(samples["clean"]) <= 5
    assert torch.equal(torch.get_rng_state(), before)
    assert "torchaudio" not in sys.modules
    assert capsys.readouterr().out == ""
    assert speech_quality._distillmos() is speech_quality._distillmos()


@pytest.mark.parametrize("name", metrics.NO_REFERENCE)
@pytest.mark.parametrize(
    ("estimate", "reason"),
    [
        (np.zeros(RATE), "the estimate is silent"),
        (np.full(RATE, np.nan), "the estimate has NaN or infinite samples"),
        (np.full(RATE // 2 - 1, 0.1), r"too short, less than 0\.5 s"),
        (np.zeros(0), "there are no samples"),
    ],
)
def test_signals_that_cannot_be_scored_give_nan_with_the_reason(name, estimate, reason):
    with pytest.warns(MetricWarning, match=f"{name}: {reason}"):
        assert np.isnan(metrics.NO_REFERENCE[name](estimate.astype(np.float32)))


def test_a_silent_reference_does_not_affect_metrics_without_reference(samples):
    values, reasons = metrics.score(np.zeros_like(samples["clean"]), samples["clean"], ("stoi", "mos"))
    assert np.isnan(values["stoi"])
    assert values["mos"] == metrics.mos(samples["clean"])
    assert reasons == ["stoi: the reference is silent"]
