"""Claims about what lies below speech: it goes, speech and its length stay, and how a signal is cut does not matter."""

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
LOUD = 10 * 2**0.5 * 10 ** (levels.LEVEL / 20)  # of a sine 20 dB above speech at the usual level


def below(kind: str, frames: int) -> np.ndarray:
    time = np.arange(frames) / RATE
    output = {
        "offset": np.full(frames, 3.0),
        "ramp": np.linspace(-LOUD, LOUD, frames),
        "5 Hz": LOUD * np.sin(2 * np.pi * 5 * time + 1),
        "8 Hz": LOUD * np.sin(2 * np.pi * 8 * time),
    }
    return output[kind]


def difference_db(actual: np.ndarray, wanted: np.ndarray) -> float:
    return float(20 * np.log10(max(np.linalg.norm(actual - wanted), 1e-30) / np.linalg.norm(wanted)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["offset", "ramp", "5 Hz", "8 Hz"])
def test_what_lies_below_speech_goes_from_the_first_sample_to_the_last(speech: Speech, kind: str, causal: bool) -> None:
    inputs = levels.leveled(speech(2 * RATE), RATE)
    alone = highpass(inputs, RATE, causal=causal)
    both = highpass(inputs + below(kind, len(inputs)), RATE, causal=causal)
    assert difference_db(both, alone) < -60
    ends = [both[:800] - alone[:800], both[-800:] - alone[-800:]]
    assert max(np.abs(end).max() for end in ends) < 10 ** (-60 / 20)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rate", [1000, 16000, 192000])
def test_cuts_do_not_show_and_the_length_stays(causal: bool, rate: int) -> None:
    inputs = 0.1 * np.random.default_rng(0).standard_normal((2, 2 * rate + 7)) + 0.5
    whole = highpass(inputs, rate, causal=causal)
    cuts = [1, 2, 3, rate // 100, rate // 3, rate // 3, rate + 1]
    cut = np.concatenate(list(highpassed(np.split(inputs, cuts, axis=1), rate, 2, causal=causal)), axis=1)
    assert cut.shape == inputs.shape
    np.testing.assert_array_equal(cut, whole)


@pytest.mark.parametrize("frequency", [70.0, 100.0, 1000.0])
def test_speech_passes_and_without_delay_both_ways(frequency: float) -> None:
    tone = np.sin(2 * np.pi * frequency * np.arange(4 * RATE) / RATE)
    inside = slice(RATE, 3 * RATE)
    assert np.abs(highpass(tone, RATE)[inside] - tone[inside]).max() < 5e-3
    assert levels.rms(highpass(tone, RATE, causal=True)[inside]) == pytest.approx(0.5**0.5, rel=2e-3)


def test_an_hour_is_filtered_as_its_parts_are() -> None:
    """The backward run begins anew for every chunk; where it began cannot be heard."""
    inputs = 0.1 * np.random.default_rng(0).standard_normal(6 * 65536)
    whole, part = highpass(inputs, RATE), highpass(inputs[:200000], RATE)
    assert np.abs(whole[:150000] - part[:150000]).max() < 1e-6


def test_a_sample_or_two_are_left_as_they_are() -> None:
    assert highpass(np.array([0.5, 0.4]), RATE).tolist() == pytest.approx([0.5, 0.4])
    assert highpass(np.zeros((2, 0)), RATE).shape == (2, 0)


@pytest.mark.parametrize("kind", ["offset", "ramp", "5 Hz"])
@pytest.mark.parametrize("name", ["default", "causal"])
def test_the_shipped_models_restore_the_same(name: str, kind: str) -> None:
    inputs = sound_files.read("samples/throat.flac")[0][0, : 2 * RATE]
    model = twostage.load(name)
    moved = inputs + below(kind, len(inputs)).astype(np.float32) * 10 ** ((levels.active_level(inputs, RATE) + 26) / 20)
    assert difference_db(restore(model, moved, RATE), restore(model, inputs, RATE)) < -40


def test_an_offset_makes_no_ring_at_the_ends_of_a_file_at_another_rate(
    tiny: TwoStage, speech: Speech, tmp_path: object
) -> None:
    inputs = np.stack([speech(48000, 48000), speech(48000, 48000) + 5.0])
    for place, sound in enumerate(inputs):
        sound_files.write(f"{tmp_path}/{place}.wav", sound[None], 48000, subtype="FLOAT")
        restore_file(tiny, f"{tmp_path}/{place}.wav", f"{tmp_path}/out{place}.wav")
    plain, moved = (sound_files.read(f"{tmp_path}/out{place}.wav")[0][0] for place in range(2))
    assert difference_db(moved, plain) < -60


def test_a_stream_is_rid_of_an_offset_as_restore_is(speech: Speech) -> None:
    model, inputs = twostage.load("causal"), speech(2 * RATE)
    level = levels.active_level(highpass(inputs, RATE, causal=True), RATE)
    with twostage.Stream(model, gain_db=levels.LEVEL - level) as stream:
        parts = [stream.push(part + np.float32(0.5)) for part in np.array_split(inputs, 37)]
        streamed = np.concatenate([*parts, stream.flush()])
    gain = 10 ** ((levels.LEVEL - level) / 20)
    wanted = restore(model, inputs, RATE, level="model") / gain
    assert difference_db(streamed, wanted) < -80
