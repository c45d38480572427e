"""Claims about what needs no training: the floor is the input, and copies of its low band lie where they should."""

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


def test_lowpass_is_the_input_at_no_cost():
    model, audio = Lowpass(LowpassConfig()), noise(0.1)[..., :1237]
    assert torch.equal(model(audio), audio)
    assert (parameters(model), gmac_per_second(model)) == (0, 0)
    assert (model.sample_rate, model.hop_length, model.stride, model.context, model.latency) == (16000, 1, 1, 0, 0)


def test_a_tone_is_copied_to_tones_a_band_apart_on_the_slope():
    tone = torch.sin(2 * torch.pi * 800 * TIME)[None, None]
    out = Shift(ShiftConfig())(tone)[0, 0, 2000:14000]  # 12000 samples: every tone has a whole number of cycles
    lines = torch.fft.rfft(out).abs() / 6000
    places = [round((800 + 1000 * copy) * 12000 / 16000) for copy in range(8)]
    for copy, place in enumerate(places):
        assert 20 * log10(lines[place]) == pytest.approx(-6 * log2(1 + copy * 1000 / 800), abs=0.2)
    lines[places] = 0
    assert lines.max() < 1e-3  # the hops are not heard


def test_what_lies_below_the_cutoff_stays():
    audio = noise()
    change = Shift(ShiftConfig())(audio) - audio
    assert level(change, 0, 1400) < level(audio, 0, 1400) - 50
    assert level(change, 1600, 8000) > level(audio, 1600, 8000) - 3


def test_a_spectrum_that_falls_by_the_slope_goes_on_falling_by_it():
    whole = shaped(noise(8), lambda hertz: 100 / hertz.clamp_min(100))  # 6.02 dB an octave
    dull = shaped(whole, lambda hertz: (hertz < 1500).float())
    output = Shift(ShiftConfig())(dull)
    for low, high in ((1500, 2000), (2000, 3000), (3000, 4500), (4500, 6000), (6000, 7900)):
        assert level(output, low, high) == pytest.approx(level(whole, low, high), abs=1)
        assert level(dull, low, high) < level(whole, low, high) - 60


def test_prepared_gains_are_those_of_the_pairs():
    wanted = 6 * torch.sin(torch.arange(16) / 2) - 3
    truth, model = Shift(ShiftConfig()), Shift(ShiftConfig())
    truth.correction.copy_(wanted)
    pairs = [(bone, truth(bone)) for bone in (torch.cat([noise(1, 2 * i), 3 * noise(1, 2 * i + 1)]) for i in range(4))]
    model.prepare(pairs)
    torch.testing.assert_close(model.correction, wanted, atol=0.7, rtol=0)  # neighbors of bands leak into each other
    prepared = model.correction.clone()
    model.prepare(pairs)  # from scratch: what was there before does not count
    torch.testing.assert_close(model.correction, prepared)
    restored = Shift(ShiftConfig())
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored(pairs[0][0]), model(pairs[0][0]))
    assert list(model.state_dict()) == ["correction"]


def test_pauses_do_not_count_in_the_fit():
    model, pauses = Shift(ShiftConfig()), Shift(ShiftConfig())
    bone = noise(1)
    air = shaped(noise(1), lambda hertz: 10 / hertz.clamp_min(10))
    model.prepare([(bone, air)])
    hush = 1e-5 * noise(1, 5)  # the room, which the two channels hear at levels 60 dB apart
    pauses.prepare([(torch.cat([bone, 1000 * hush], -1), torch.cat([air, hush], -1))])
    torch.testing.assert_close(pauses.correction, model.correction, atol=0.5, rtol=0)  # frames at the join
    with pytest.raises(DataError, match="silent"):
        model.prepare([(bone, torch.zeros_like(bone))])


@pytest.mark.parametrize("length", [128, 200, 1000, 4096])
def test_the_output_is_a_whole_number_of_hops(length):
    out = Shift(ShiftConfig())(noise(1)[..., :length].repeat(2, 1, 1))
    assert out.shape == (2, 1, length // 128 * 128)
    assert out.isfinite().all()


def test_a_sample_reaches_its_context_and_not_a_sample_further():
    model, audio, receptive_field = Shift(ShiftConfig()), noise(0.25), 0
    for place in range(2000, 2000 + model.stride):
        other = audio.clone()
        other[..., place] += 1
        changed = (model(audio) != model(other))[0, 0].nonzero().flatten()
        receptive_field = max(receptive_field, place - int(changed[0]), int(changed[-1]) - place)
    assert model.context - 8 <= receptive_field <= model.context  # the window's ends are all but 0


def test_a_window_with_its_context_is_as_the_whole():
    model, audio = Shift(ShiftConfig()), noise(1)
    part = model(audio[..., 40 * 128 : 80 * 128])[..., 4 * 128 : -4 * 128]
    torch.testing.assert_close(part, model(audio)[..., 44 * 128 : 76 * 128], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"cutoff": 9000.0}, "model.cutoff is 9000.0, must"),
        ({"source": 1500.0}, "model.source is 1500.0, must"),
        ({"source": -1.0}, "model.source is -1.0, must"),
        ({"bands": 0}, "model.bands is 0, must be 1 to 209"),
        ({"hop_length": 512}, "model.hop_length is 512, must"),
        ({"hop_length": 100}, "model.hop_length is 100, must"),
    ],
)
def test_settings_that_cannot_be_name_the_field(settings, what):
    with pytest.raises(ConfigError, match=what):
        ShiftConfig(**settings)
