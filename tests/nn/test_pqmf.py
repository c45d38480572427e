"""Claims about the filter bank: it gives back what went in, late, and keeps bands apart."""

import numpy as np
import pytest
import torch

from twostage.nn.pqmf import Pqmf, prototype
from twostage.nn.streaming import streaming


def noise(samples=32000):
    return torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(0))


# eight taps a band are as many as EBEN takes, and sixteen make it better
@pytest.mark.parametrize(("bands", "taps", "decibels"), [(4, 32, 49.0), (2, 16, 55.4), (8, 64, 50.1), (4, 64, 61.6)])
def test_there_and_back_is_the_same_but_for_the_delay(bands, taps, decibels):
    bank, audio = Pqmf(bands, taps), noise()
    split = bank.analysis(audio)
    assert split.shape == (1, bands, 32000 // bands)
    again = bank.synthesis(split)
    assert again.shape == audio.shape
    assert bank.delay == taps - bands
    inputs = audio[..., : -bank.delay]
    error = again[..., bank.delay :] - inputs
    assert float(10 * (inputs.square().mean() / error.square().mean()).log10()) == pytest.approx(decibels, abs=0.2)
    assert not again[..., : bank.delay].abs().gt(0.02).any()


def test_the_prototype_is_symmetric_and_all_but_orthogonal_to_its_shifts():
    low = prototype(4, 32)
    assert low == pytest.approx(low[::-1])
    products = [float(low[shift:] @ low[: 32 - shift]) for shift in (0, 8, 16, 24)]
    assert max(map(abs, products[1:])) < 1e-3 * products[0]


def test_a_tone_is_in_its_band_and_a_trace_of_it_in_the_next():
    bank, time = Pqmf(4, 32), torch.arange(16000.0) / 16000
    for band, hertz in enumerate((1000, 3000, 5000, 7000)):
        powers = bank.analysis(torch.sin(2 * torch.pi * hertz * time)[None, None])[0, :, 50:].square().mean(-1)
        assert int(powers.argmax()) == band
        assert powers[[abs(other - band) == 1 for other in range(4)]].max() < 5e-3 * powers.max()
        assert powers[[abs(other - band) > 1 for other in range(4)]].max() < 1e-6 * powers.max()


def test_white_noise_is_in_all_alike():
    powers = Pqmf(4, 32).analysis(noise()).square().mean(-1)[0]
    assert float(powers.max() / powers.min()) == pytest.approx(1, abs=0.1)


def test_pieces_are_the_whole():
    bank, audio = Pqmf(4, 32), noise(400)
    whole = bank.synthesis(bank.analysis(audio))
    with torch.no_grad(), streaming(bank):
        parts = [bank.synthesis(bank.analysis(part)) for part in audio.split(40, -1)]
    torch.testing.assert_close(torch.cat(parts, -1), whole, atol=1e-6, rtol=0)


def test_it_stays_exact_under_autocast():
    bank, audio = Pqmf(4, 32), noise(400)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bank.analysis(audio), bank.analysis(audio.double().float()))
        assert bank.synthesis(bank.analysis(audio)).dtype == torch.float32
    assert not bank.state_dict()


def test_the_filters_are_those_of_the_paper_and_of_published_weights():
    """Nguyen (1994), equation 1, with the sign of the phase by which EBEN's weights were trained."""
    bands, taps = 4, 32
    low, time, band = prototype(bands, taps), np.arange(taps), np.arange(bands)[:, None]
    angle = (2 * band + 1) * np.pi / (2 * bands) * (time - (taps - 1) / 2)
    filters = 2 * low * np.cos(angle + (-1.0) ** band * np.pi / 4)
    audio = noise(400)
    expected = [np.convolve(audio[0, 0].double().numpy(), one)[bands - 1 : 400 : bands] for one in filters]
    np.testing.assert_allclose(Pqmf(bands, taps).analysis(audio)[0].numpy(), expected, atol=1e-5)
