"""Tests of held-out speech: selection, alignment, silence, and scores."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from twostage.audio import sound_files
from twostage.data.manifest import Entry
from twostage.data.pairs import PairConfig
from twostage.models.features import LogMel, MelConfig
from twostage.training.validation import Estimate, Example, bounds, examples, score_examples
from twostage.utils.errors import DataError

RATE = 16000
CONFIG = PairConfig(sensors=("eben",))
Speech = Callable[..., np.ndarray]


def held_out(entries: list[Entry], items: int = 9, seconds: float = 1.0, config: PairConfig = CONFIG) -> list[Example]:
    return examples(entries, config, items=items, seconds=seconds, hop_length=256)


@pytest.fixture
def entries(tmp_path: Path, speech: Speech) -> list[Entry]:
    """Nine clean files of half a second."""
    for number in range(9):
        sound_files.write(tmp_path / f"{number}.wav", speech(8000, seed=number), RATE)
    return [Entry(str(tmp_path / f"{number}.wav"), None, "s", 0.5) for number in range(9)]


def test_limited_examples_are_spread_over_the_manifest(entries: list[Entry]) -> None:
    names = [Path(example.name).stem for example in held_out(entries, items=3)]
    assert names == ["0", "4", "8"]
    assert len(held_out(entries, items=20)) == 9


def test_held_out_examples_are_reproducible(entries: list[Entry]) -> None:
    config = PairConfig(sensors=("throat",))
    for first, second in zip(held_out(entries, config=config), held_out(entries, config=config), strict=True):
        assert torch.equal(first.degraded, second.degraded)
        assert not torch.equal(first.degraded, first.clean)


@pytest.mark.parametrize("delay", [300, -300])
def test_a_pair_is_aligned_whichever_side_leads(tmp_path: Path, speech: Speech, delay: int) -> None:
    clean = speech(RATE)
    sound_files.write(tmp_path / "air.wav", np.pad(clean, (max(0, -delay), 0)), RATE)
    sound_files.write(tmp_path / "bone.wav", np.pad(clean, (max(0, delay), 0)), RATE)
    entry = Entry(str(tmp_path / "air.wav"), str(tmp_path / "bone.wav"), "s", 1.0, delay=delay / RATE)
    (example,) = held_out([entry])
    torch.testing.assert_close(example.degraded, example.clean, atol=2e-3, rtol=0)


def test_speech_that_starts_with_silence_on_either_side_is_refused(tmp_path: Path, speech: Speech) -> None:
    late = np.pad(speech(RATE), (RATE, 0))
    for side, names in (("clean", ("late", "now")), ("degraded", ("now", "late"))):
        sound_files.write(tmp_path / "late.wav", late, RATE, overwrite=True)
        sound_files.write(tmp_path / "now.wav", np.tile(speech(RATE), 2), RATE, overwrite=True)
        entry = Entry(*(str(tmp_path / f"{name}.wav") for name in names), "s", 2.0)
        with pytest.raises(DataError, match=rf"data.valid: the {side} channel is silent in its first 0.5 s"):
            held_out([entry], seconds=0.5)


def constant_offset_example(audio: torch.Tensor, real: bool, offset: float = 0.0) -> Example:
    return Example(f"{real}", audio + offset, audio, real)


def test_scores_are_means_over_all_real_and_simulated_examples() -> None:
    mel = LogMel(MelConfig())
    audio = 0.1 * torch.randn(1, 1, 8192, generator=torch.Generator().manual_seed(0))
    errors = iter([1.0, 2.0, 6.0])

    def estimate(_: torch.nn.Module, example: Example) -> Estimate:
        return Estimate(mel(example.clean)[0] + next(errors), None)

    items = [constant_offset_example(audio, real) for real in (True, True, False)]
    scores = score_examples(torch.nn.Identity(), estimate, items, ["mel_l1"], mel)
    assert scores == pytest.approx({"mel_l1": 3.0, "mel_l1_real": 1.5, "mel_l1_simulated": 6.0}, abs=1e-4)


def test_audio_is_scored_against_the_clean_side_at_its_sample_rate(speech: Speech) -> None:
    mel = LogMel(MelConfig(sample_rate=22050, fmax=8000.0))
    clean = torch.from_numpy(speech(22050, 22050))[None, None]
    example = Example("a", torch.randn(1, 1, 22050), clean, real=True)

    def estimate(_: torch.nn.Module, example: Example) -> Estimate:
        return Estimate(mel(example.clean)[0], example.clean[0, 0].numpy()[:20000])

    scores = score_examples(torch.nn.Identity(), estimate, [example], ["mel_l1", "lsd"], mel)
    assert scores == pytest.approx({"mel_l1": 0.0, "lsd": 0.0}, abs=1e-3)


@pytest.mark.usefixtures("quick_quality")
def test_bounds_are_the_scores_of_the_input_and_of_the_clean_speech(speech: Speech) -> None:
    clean = torch.from_numpy(speech(RATE))[None, None]
    example = Example("a", 0.5 * clean, clean, real=True)
    scores = bounds([example], ["mel_l1", "mos"], RATE)
    assert scores["raw"]["mos"] - 1 == pytest.approx((scores["clean"]["mos"] - 1) / 2, rel=1e-3)
    assert scores["raw"].keys() == {"mos"}
