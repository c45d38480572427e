"""Tests of recordings that end in the middle of speech: no system makes a click at the cut."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import twostage
from twostage.audio import sound_files
from twostage.audio.levels import leveled
from twostage.inference.chunks import enhance
from twostage.models import checkpoint
from twostage.models.baselines.bsrnn import Bsrnn, BsrnnConfig
from twostage.models.baselines.dccrn import Dccrn, DccrnConfig
from twostage.models.baselines.dpcrn import Dpcrn, DpcrnConfig
from twostage.models.baselines.eben import Eben, EbenConfig
from twostage.models.baselines.seanet import Seanet, SeanetConfig
from twostage.models.features import LogMel
from twostage.models.vocoder import Vocoder
from twostage.nn.streaming import continued

RATE, LAST = 16000, 320  # the last 20 ms
SYSTEMS: dict[str, Callable[[], nn.Module]] = {
    "dccrn": lambda: Dccrn(DccrnConfig(channels=(8, 8, 8, 8), lstm_units=8, lookahead=4, masking="C")),
    "dpcrn": lambda: Dpcrn(DpcrnConfig(channels=(4, 4, 4), strides=(2, 2, 1), blocks=1, units=8)),
    "dpcrn, mapping": lambda: Dpcrn(DpcrnConfig(channels=(4, 4), strides=(2, 2), blocks=1, units=8, output="mapping")),
    "bsrnn": lambda: Bsrnn(BsrnnConfig(features=4, layers=1, causal=True)),
    "seanet": lambda: Seanet(SeanetConfig(channels=4, strides=(2, 4), bottleneck=8, causal=True)),
    "eben": lambda: Eben(EbenConfig(channels=4, strides=(2, 4), bottleneck=8, causal=True)),
    "eben, centered": lambda: Eben(EbenConfig(channels=4, strides=(2, 4), bottleneck=8)),
}


@pytest.fixture(scope="module")
def recordings() -> list[np.ndarray]:
    """Ten segments of 0.7 s of the sample recordings, throat and air, that end in the middle of a vowel."""
    throat, clean = (leveled(sound_files.read(f"samples/{name}.flac")[0][0], RATE) for name in ("throat", "clean"))
    starts = (12_800, 20_800, 36_504, 54_126, 85_356)  # with zeros appended, the shipped model would click there
    return [side[start : start + 11_200] for side in (throat, clean) for start in starts]


def output(model: nn.Module, audio: np.ndarray) -> np.ndarray:
    blocks = [after for _, after in enhance(model, [audio[None]], 10.0, [0])]  # type: ignore[arg-type]
    return np.concatenate(blocks, axis=1)[0]


def peaks(audio: np.ndarray) -> tuple[float, float]:
    """The peaks of the last 20 ms and of everything before."""
    return float(np.abs(audio[-LAST:]).max()), float(np.abs(audio[:-LAST]).max())


def test_the_shipped_causal_model_does_not_click_at_the_end(recordings: list[np.ndarray]) -> None:
    model = twostage.load("causal")
    for recording in recordings:
        for cut in (len(recording), len(recording) - 777):
            last, before = peaks(output(model, recording[:cut]))
            assert last < 2 * before


def test_zeros_after_a_cut_click(recordings: list[np.ndarray]) -> None:
    """The test above can fail: with zeros in place of a continuation, the model clicks."""
    model = twostage.load("causal")
    audio = torch.from_numpy(recordings[0][: 43 * 256])[None, None]
    with torch.no_grad():
        output_with_zeros = model.forward_chunk(nn.functional.pad(audio, (0, model.delay)))[0, 0, model.delay :]
    assert output_with_zeros[-LAST:].abs().max() > 2 * output_with_zeros[:-LAST].abs().max()


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_baseline_clicks_at_the_end(name: str, recordings: list[np.ndarray]) -> None:
    torch.manual_seed(0)
    model = SYSTEMS[name]().eval().requires_grad_(False)
    for recording in recordings:
        last, before = peaks(output(model, recording[:9_999]))
        uncut, _ = peaks(output(model, recording)[:9_999])  # random weights may amplify a loud ending
        assert 0 < last < 2 * max(before, uncut)


def test_a_causal_vocoder_ends_at_the_level_of_its_mels(recordings: list[np.ndarray]) -> None:
    vocoder = checkpoint.load_stage("causal/vocoder", "vocoder", folded=True).eval().requires_grad_(False)
    assert isinstance(vocoder, Vocoder)
    mel, ratios = LogMel(vocoder.config.mel), []
    for recording in recordings:
        voice = torch.from_numpy(recording)[None, None]
        start = voice[..., :8_192]
        cut = vocoder(mel(start), sensor=start)[..., -LAST:]
        uncut = vocoder(mel(voice), sensor=voice)[..., 8_192 - LAST : 8_192]
        ratios.append(float(cut.square().mean().sqrt() / uncut.square().mean().sqrt()))
    assert 0.87 < np.exp(np.log(ratios).mean()) < 1.15
    assert 0.6 < min(ratios) < max(ratios) < 1.6


def test_a_signal_is_continued_smoothly() -> None:
    time = torch.arange(2000) / RATE
    tone = torch.sin(2 * torch.pi * 100 * time)[None]
    extended = continued(tone, 800)
    assert torch.equal(extended[:, :2000], tone)
    # neither value nor slope jumps: no difference exceeds those within the signal
    for order in (1, 2):
        largest_within, largest = (x.diff(n=order).abs().max() for x in (tone, extended[:, : 2000 + 500]))
        assert largest < 1.05 * largest_within
    assert extended[:, 2520:2680].mean().abs() < 0.01  # one period, without an offset
    assert torch.equal(continued(tone, 300), extended[:, :2300])
    assert not continued(torch.zeros(2, 0), 5).any()
