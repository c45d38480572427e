"""Tests of the systems without training: Lowpass returns its input, and Shift copies the low band upward."""

from math import log2, log10

import pytest
import torch

from twostage.evaluation.costs import gmac_per_second, parameters
from twostage.models.baselines.shift import Lowpass, LowpassConfig, Shift, ShiftConfig
from twostage.utils.errors import ConfigError, DataError

TIME = torch.arange(16000) / 16000


def noise(seconds=4.0, seed=0):
    """White noise (1, 1, T)."""
    return 0.1 * torch.randn(1, 1, int(16000 * seconds), generator=torch.Generator().manual_seed(seed))


def shaped(audio, response):
    """Audio filtered by a function of Hz, zero phase."""
    hertz = torch.fft.rfftfreq(audio.shape[-1], 1 / 16000)
    return torch.fft.irfft(torch.fft.rfft(audio) * response(hertz), audio.shape[-1])


def level(audio, low, high):
    """Power in dB between two frequencies in Hz."""
    hertz = torch.fft.rfftfreq(audio.shape[-1], 1 / 16000)
    inside = torch.fft.rfft(audio)[..., (hertz >= low) & (hertz < high)]
    return 10 * inside.abs().square().sum().log10().item()


def test_lowpass_returns_its_input_at_no_cost():
    model, audio = Lowpass(LowpassConfig()), noise(0.1)[..., :1237]
    assert torch.equal(model(audio), audio)
    assert (parameters(model), gmac_per_second(model)) == (0, 0)
    assert (model.sample_rate, model.hop_length, model.stride, model.context, model.latency) == (16000, 1, 1, 0, 0)


def test_a_tone_is_copied_at_distances_of_a_band_with_the_slope():
    tone = torch.sin(2 * torch.pi * 800 * TIME)[None, None]
    out = Shift(ShiftConfig())(tone)[0, 0, 2000:14000]  # 12000 samples: every tone has a whole number of cycles
    lines = torch.fft.rfft(out).abs() / 6000
    bins = [round((800 + 1000 * copy) * 12000 / 16000) for copy in range(8)]
    for copy, bin_of_copy in enumerate(bins):
        assert 20 * log10(lines[bin_of_copy]) == pytest.approx(-6 * log2(1 + copy * 1000 / 800), abs=0.2)
    lines[bins] = 0
    assert lines.max() < 1e-3  # no other lines, such as at the hop rate


def test_the_band_below_the_cutoff_is_not_changed():
    audio = noise()
    change = Shift(ShiftConfig())(audio) - audio
    assert level(change, 0, 1400) < level(audio, 0, 1400) - 50
    assert level(change, 1600, 8000) > level(audio, 1600, 8000) - 3


def test_a_spectrum_that_falls_by_the_slope_is_continued():
    whole = shaped(noise(8), lambda hertz: 100 / hertz.clamp_min(100))  # 6.02 dB per octave
    dull = shaped(whole, lambda hertz: (hertz < 1500).float())
    output = Shift(ShiftConfig())(dull)
    for low, high in ((1500, 2000), (2000, 3000), (3000, 4500), (4500, 6000), (6000, 7900)):
        assert level(output, low, high) == pytest.approx(level(whole, low, high), abs=1)
        assert level(dull, low, high) < level(whole, low, high) - 60


def test_prepare_measures_the_gains_of_the_pairs():
    expected = 6 * torch.sin(torch.arange(16) / 2) - 3
    truth, model = Shift(ShiftConfig()), Shift(ShiftConfig())
    truth.correction.copy_(expected)
    pairs = [(bone, truth(bone)) for bone in (torch.cat([noise(1, 2 * i), 3 * noise(1, 2 * i + 1)]) for i in range(4))]
    model.prepare(pairs)
    torch.testing.assert_close(model.correction, expected, atol=0.7, rtol=0)  # neighboring bands leak into each other
    prepared = model.correction.clone()
    model.prepare(pairs)  # independent of the previous gains
    torch.testing.assert_close(model.correction, prepared)
    restored = Shift(ShiftConfig())
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored(pairs[0][0]), model(pairs[0][0]))
    assert list(model.state_dict()) == ["correction"]


def test_pauses_do_not_affect_the_measured_gains():
    model, pauses = Shift(ShiftConfig()), Shift(ShiftConfig())
    bone = noise(1)
    air = shaped(noise(1), lambda hertz: 10 / hertz.clamp_min(10))
    model.prepare([(bone, air)])
    room = 1e-5 * noise(1, 5)  # noise of the room, 60 dB louder in the bone channel
    pauses.prepare([(torch.cat([bone, 1000 * room], -1), torch.cat([air, room], -1))])
    torch.testing.assert_close(
        pauses.correction, model.correction, atol=0.5, rtol=0
    )  # not equal because of frames at the join
    with pytest.raises(DataError, match="silent"):
        model.prepare([(bone, torch.zeros_like(bone))])


@pytest.mark.parametrize("length", [128, 200, 1000, 4096])
def test_the_output_is_a_whole_number_of_hops(length):
    out = Shift(ShiftConfig())(noise(1)[..., :length].repeat(2, 1, 1))
    assert out.shape == (2, 1, length // 128 * 128)
    assert out.isfinite().all()


def test_a_sample_affects_the_output_exactly_within_the_context():
    model, audio, receptive_field = Shift(ShiftConfig()), noise(0.25), 0
    for position in range(2000, 2000 + model.stride):
        perturbed = audio.clone()
        perturbed[..., position] += 1
        changed = (model(audio) != model(perturbed))[0, 0].nonzero().flatten()
        receptive_field = max(receptive_field, position - int(changed[0]), int(changed[-1]) - position)
    assert model.context - 8 <= receptive_field <= model.context  # the window is almost zero at its ends


def test_a_window_with_its_context_equals_the_whole():
    model, audio = Shift(ShiftConfig()), noise(1)
    part = model(audio[..., 40 * 128 : 80 * 128])[..., 4 * 128 : -4 * 128]
    torch.testing.assert_close(part, model(audio)[..., 44 * 128 : 76 * 128], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutoff": 9000.0}, "model.cutoff is 9000.0, must"),
        ({"source": 1500.0}, "model.source is 1500.0, must"),
        ({"source": -1.0}, "model.source is -1.0, must"),
        ({"bands": 0}, "model.bands is 0, must be 1 to 209"),
        ({"hop_length": 512}, "model.hop_length is 512, must"),
        ({"hop_length": 100}, "model.hop_length is 100, must"),
    ],
)
def test_invalid_settings_are_errors_that_name_the_field(settings, message):
    with pytest.raises(ConfigError, match=message):
        ShiftConfig(**settings)
