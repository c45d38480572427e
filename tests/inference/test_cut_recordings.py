"""Claims about recordings that end in the middle of speech: no system makes a click of the cut."""

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
    """Ten stretches of the sample recording, throat and air, 0.7 s each and cut in a voice."""
    throat, clean = (leveled(sound_files.read(f"samples/{name}.flac")[0][0], RATE) for name in ("throat", "clean"))
    starts = (12_800, 20_800, 36_504, 54_126, 85_356)  # each ends where zeros make the shipped model click
    return [side[start : start + 11_200] for side in (throat, clean) for start in starts]


def output(model: nn.Module, audio: np.ndarray) -> np.ndarray:
    blocks = [after for _, after in enhance(model, [audio[None]], 10.0, [0])]  # type: ignore[arg-type]
    return np.concatenate(blocks, axis=1)[0]


def loudness(audio: np.ndarray) -> tuple[float, float]:
    """Peak of the last 20 ms, and of what precedes them."""
    return float(np.abs(audio[-LAST:]).max()), float(np.abs(audio[:-LAST]).max())


def test_the_shipped_stream_ends_as_quietly_as_it_was(recordings: list[np.ndarray]) -> None:
    model = twostage.load("causal")
    for recording in recordings:
        for cut in (len(recording), len(recording) - 777):
            last, before = loudness(output(model, recording[:cut]))
            assert last < 2 * before


def test_zeros_after_a_cut_would_click(recordings: list[np.ndarray]) -> None:
    """The claim above is not an empty one."""
    model = twostage.load("causal")
    audio = torch.from_numpy(recordings[1][: 43 * 256])[None, None]
    with torch.no_grad():
        clicks = model.forward_chunk(nn.functional.pad(audio, (0, model.delay)))[0, 0, model.delay :]
    assert clicks[-LAST:].abs().max() > 2 * clicks[:-LAST].abs().max()


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_system_of_the_field_clicks(name: str, recordings: list[np.ndarray]) -> None:
    torch.manual_seed(0)
    model = SYSTEMS[name]().eval().requires_grad_(False)
    for recording in recordings:
        last, before = loudness(output(model, recording[:9_999]))
        goes_on, _ = loudness(output(model, recording)[:9_999])  # random weights may make a louder end of a louder end
        assert 0 < last < 2 * max(before, goes_on)


def test_a_causal_vocoder_alone_ends_at_the_level_of_its_mels(recordings: list[np.ndarray]) -> None:
    vocoder = checkpoint.load_stage("causal/vocoder", "vocoder", folded=True).eval().requires_grad_(False)
    assert isinstance(vocoder, Vocoder)
    mel, voice = LogMel(vocoder.config.mel), torch.from_numpy(recordings[5])[None, None]
    cut, goes_on = vocoder(mel(voice[..., :8_192]))[..., -LAST:], vocoder(mel(voice))[..., 8_192 - LAST : 8_192]
    assert 0.7 < cut.square().mean().sqrt() / goes_on.square().mean().sqrt() < 1.4


def test_a_signal_is_continued_without_a_jump() -> None:
    time = torch.arange(2000) / RATE
    tone = torch.sin(2 * torch.pi * 100 * time)[None]
    longer = continued(tone, 800)
    assert torch.equal(longer[:, :2000], tone)
    # neither of value nor of slope: no difference is larger than those within
    for order in (1, 2):
        inside, all_of_it = (x.diff(n=order).abs().max() for x in (tone, longer[:, : 2000 + 500]))
        assert all_of_it < 1.05 * inside
    assert longer[:, 2520:2680].mean().abs() < 0.01  # a period, and no level besides
    assert torch.equal(continued(tone, 300), longer[:, :2300])
    assert not continued(torch.zeros(2, 0), 5).any()
