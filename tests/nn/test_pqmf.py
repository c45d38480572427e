"""Tests of the filter bank: near-perfect reconstruction with a delay, and separation of the bands."""

import numpy as np
import pytest
import torch

from twostage.nn.pqmf import Pqmf, prototype
from twostage.nn.streaming import streaming


def noise(samples=32000):
    return torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(0))


# EBEN uses eight taps per band; sixteen reduce the error
@pytest.mark.parametrize(("bands", "taps", "decibels"), [(4, 32, 49.0), (2, 16, 55.4), (8, 64, 50.1), (4, 64, 61.6)])
def test_analysis_and_synthesis_reconstruct_the_delayed_signal(bands, taps, decibels):
    bank, audio = Pqmf(bands, taps), noise()
    split = bank.analysis(audio)
    assert split.shape == (1, bands, 32000 // bands)
    reconstructed = bank.synthesis(split)
    assert reconstructed.shape == audio.shape
    assert bank.delay == taps - bands
    inputs = audio[..., : -bank.delay]
    error = reconstructed[..., bank.delay :] - inputs
    assert float(10 * (inputs.square().mean() / error.square().mean()).log10()) == pytest.approx(decibels, abs=0.2)
    assert not reconstructed[..., : bank.delay].abs().gt(0.02).any()


def test_the_prototype_is_symmetric_and_nearly_orthogonal_to_its_shifts():
    low = prototype(4, 32)
    assert low == pytest.approx(low[::-1])
    products = [float(low[shift:] @ low[: 32 - shift]) for shift in (0, 8, 16, 24)]
    assert max(map(abs, products[1:])) < 1e-3 * products[0]


def test_a_tone_is_in_its_band_with_little_leakage():
    bank, time = Pqmf(4, 32), torch.arange(16000.0) / 16000
    for band, hertz in enumerate((1000, 3000, 5000, 7000)):
        powers = bank.analysis(torch.sin(2 * torch.pi * hertz * time)[None, None])[0, :, 50:].square().mean(-1)
        assert int(powers.argmax()) == band
        assert powers[[abs(other - band) == 1 for other in range(4)]].max() < 5e-3 * powers.max()
        assert powers[[abs(other - band) > 1 for other in range(4)]].max() < 1e-6 * powers.max()


def test_white_noise_has_the_same_power_in_all_bands():
    powers = Pqmf(4, 32).analysis(noise()).square().mean(-1)[0]
    assert float(powers.max() / powers.min()) == pytest.approx(1, abs=0.1)


def test_filtering_in_chunks_equals_filtering_the_whole():
    bank, audio = Pqmf(4, 32), noise(400)
    whole = bank.synthesis(bank.analysis(audio))
    with torch.no_grad(), streaming(bank):
        parts = [bank.synthesis(bank.analysis(part)) for part in audio.split(40, -1)]
    torch.testing.assert_close(torch.cat(parts, -1), whole, atol=1e-6, rtol=0)


def test_the_filter_bank_stays_in_float32_under_autocast():
    bank, audio = Pqmf(4, 32), noise(400)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bank.analysis(audio), bank.analysis(audio.double().float()))
        assert bank.synthesis(bank.analysis(audio)).dtype == torch.float32
    assert not bank.state_dict()


def test_the_filters_are_those_of_the_paper_and_of_the_published_weights():
    """Nguyen (1994), equation 1, with the sign of the phase with which EBEN's weights were trained."""
    bands, taps = 4, 32
    low, time, band = prototype(bands, taps), np.arange(taps), np.arange(bands)[:, None]
    angle = (2 * band + 1) * np.pi / (2 * bands) * (time - (taps - 1) / 2)
    filters = 2 * low * np.cos(angle + (-1.0) ** band * np.pi / 4)
    audio = noise(400)
    expected = [
        np.convolve(audio[0, 0].double().numpy(), taps_of_band)[bands - 1 : 400 : bands] for taps_of_band in filters
    ]
    np.testing.assert_allclose(Pqmf(bands, taps).analysis(audio)[0].numpy(), expected, atol=1e-5)
