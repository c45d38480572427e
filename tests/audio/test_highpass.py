"""Tests of the high-pass filter: it removes what lies below speech, keeps the length, and works in blocks."""

from collections.abc import Callable

import numpy as np
import pytest

import twostage
from twostage.audio import levels, sound_files
from twostage.audio.highpass import highpass, highpassed
from twostage.inference.restoration import restore, restore_file
from twostage.models.two_stage import TwoStage

Speech = Callable[..., np.ndarray]
RATE = 16000
LOUD = 10 * 2**0.5 * 10 ** (levels.LEVEL / 20)  # amplitude of a sine 20 dB above speech at the usual level


def disturbance(kind: str, frames: int) -> np.ndarray:
    """A signal below the band of speech, (frames,)."""
    time = np.arange(frames) / RATE
    signals = {
        "offset": np.full(frames, 3.0),
        "ramp": np.linspace(-LOUD, LOUD, frames),
        "5 Hz": LOUD * np.sin(2 * np.pi * 5 * time + 1),
        "8 Hz": LOUD * np.sin(2 * np.pi * 8 * time),
    }
    return signals[kind]


def difference_db(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(20 * np.log10(max(np.linalg.norm(actual - expected), 1e-30) / np.linalg.norm(expected)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["offset", "ramp", "5 Hz", "8 Hz"])
def test_disturbances_below_speech_are_removed_including_both_ends(speech: Speech, kind: str, causal: bool) -> None:
    inputs = levels.leveled(speech(2 * RATE), RATE)
    undisturbed = highpass(inputs, RATE, causal=causal)
    disturbed = highpass(inputs + disturbance(kind, len(inputs)), RATE, causal=causal)
    assert difference_db(disturbed, undisturbed) < -60
    ends = [disturbed[:800] - undisturbed[:800], disturbed[-800:] - undisturbed[-800:]]
    assert max(np.abs(end).max() for end in ends) < 10 ** (-60 / 20)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rate", [1000, 16000, 192000])
def test_filtering_in_blocks_equals_filtering_the_whole_and_keeps_the_length(causal: bool, rate: int) -> None:
    inputs = 0.1 * np.random.default_rng(0).standard_normal((2, 2 * rate + 7)) + 0.5
    whole = highpass(inputs, rate, causal=causal)
    cuts = [1, 2, 3, rate // 100, rate // 3, rate // 3, rate + 1]
    joined = np.concatenate(list(highpassed(np.split(inputs, cuts, axis=1), rate, 2, causal=causal)), axis=1)
    assert joined.shape == inputs.shape
    np.testing.assert_array_equal(joined, whole)


@pytest.mark.parametrize("frequency", [70.0, 100.0, 1000.0])
def test_speech_passes_and_has_no_delay_unless_causal(frequency: float) -> None:
    tone = np.sin(2 * np.pi * frequency * np.arange(4 * RATE) / RATE)
    middle = slice(RATE, 3 * RATE)
    assert np.abs(highpass(tone, RATE)[middle] - tone[middle]).max() < 5e-3
    assert levels.rms(highpass(tone, RATE, causal=True)[middle]) == pytest.approx(0.5**0.5, rel=2e-3)


def test_a_long_signal_is_filtered_like_its_beginning() -> None:
    """The backward pass starts anew for every chunk, and where it started makes no difference."""
    inputs = 0.1 * np.random.default_rng(0).standard_normal(6 * 65536)
    whole, part = highpass(inputs, RATE), highpass(inputs[:200000], RATE)
    assert np.abs(whole[:150000] - part[:150000]).max() < 1e-6


def test_one_or_two_samples_are_not_changed() -> None:
    assert highpass(np.array([0.5, 0.4]), RATE).tolist() == pytest.approx([0.5, 0.4])
    assert highpass(np.zeros((2, 0)), RATE).shape == (2, 0)


@pytest.mark.parametrize("kind", ["offset", "ramp", "5 Hz"])
@pytest.mark.parametrize("name", ["default", "causal"])
def test_disturbances_do_not_change_what_the_shipped_models_restore(name: str, kind: str) -> None:
    inputs = sound_files.read("samples/throat.flac")[0][0, : 2 * RATE]
    model = twostage.load(name)
    disturbed = inputs + disturbance(kind, len(inputs)).astype(np.float32) * 10 ** (
        (levels.active_level(inputs, RATE) + 26) / 20
    )
    assert difference_db(restore(model, disturbed, RATE), restore(model, inputs, RATE)) < -40


def test_an_offset_does_not_ring_at_the_ends_of_a_resampled_file(
    tiny: TwoStage, speech: Speech, tmp_path: object
) -> None:
    inputs = np.stack([speech(48000, 48000), speech(48000, 48000) + 5.0])
    for number, sound in enumerate(inputs):
        sound_files.write(f"{tmp_path}/{number}.wav", sound[None], 48000, subtype="FLOAT")
        restore_file(tiny, f"{tmp_path}/{number}.wav", f"{tmp_path}/out{number}.wav")
    without_offset, with_offset = (sound_files.read(f"{tmp_path}/out{number}.wav")[0][0] for number in range(2))
    assert difference_db(with_offset, without_offset) < -60


def test_a_stream_removes_an_offset_as_restore_does(speech: Speech) -> None:
    model, inputs = twostage.load("causal"), speech(2 * RATE)
    level = levels.active_level(highpass(inputs, RATE, causal=True), RATE)
    with twostage.Stream(model, gain_db=levels.LEVEL - level) as stream:
        parts = [stream.push(part + np.float32(0.5)) for part in np.array_split(inputs, 37)]
        streamed = np.concatenate([*parts, stream.flush()])
    gain = 10 ** ((levels.LEVEL - level) / 20)
    expected = restore(model, inputs, RATE, level="model") / gain
    assert difference_db(streamed, expected) < -80
