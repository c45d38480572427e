"""Tests of log-mels and the STFT: librosa's values, numbers of frames, the inverse, and invalid settings."""

from dataclasses import replace

import librosa.filters  # without librosa.feature, which compiles itself for 19 s at first
import numpy as np
import pytest
import torch
from scipy.signal.windows import hann

from twostage.models.features import Istft, LogMel, MelConfig, Stft
from twostage.models.mel_scale import slaney_basis
from twostage.utils.errors import ConfigError

SMALL = MelConfig(sample_rate=8000, n_fft=128, win_length=128, hop_length=32, n_mels=16, fmax=4000)


@pytest.mark.parametrize(
    "config",
    [
        MelConfig(),
        MelConfig(sample_rate=22050, fmax=8000, n_mels=64),
        MelConfig(n_fft=512, win_length=400, hop_length=128, fmin=50, fmax=7000, n_mels=40),
    ],
)
def test_log_mels_equal_librosas(speech, config):
    audio = speech(9000)
    padding = (config.n_fft - config.hop_length) // 2
    whole = audio[: len(audio) // config.hop_length * config.hop_length]
    padded = np.pad(whole, padding, mode="reflect")
    window = np.pad(hann(config.win_length, sym=False), (config.n_fft - config.win_length) // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop_length]
    limits = {"fmin": config.fmin, "fmax": config.fmax}
    basis = librosa.filters.mel(sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.n_mels, **limits)
    power = basis @ np.abs(np.fft.rfft(frames * window)).T
    ours = LogMel(config)(torch.from_numpy(audio)[None, None])[0].numpy()
    np.testing.assert_allclose(ours, np.log(np.maximum(power, config.clamp)), atol=1e-4)


def test_every_length_has_the_exact_number_of_frames():
    mel, hop = LogMel(SMALL), SMALL.hop_length
    for length in range(3 * hop + 1):
        assert mel(torch.randn(2, 1, length)).shape == (2, 16, length // hop), length


def test_samples_beyond_the_last_whole_hop_do_not_matter():
    mel, audio = LogMel(SMALL), torch.randn(1, 1, 10 * 32)
    assert torch.equal(mel(torch.cat([audio, torch.randn(1, 1, 31)], -1)), mel(audio))


def test_silence_has_the_value_of_the_clamp_and_a_finite_gradient():
    audio = torch.zeros(1, 1, 512, requires_grad=True)
    mel = LogMel(SMALL)(audio)
    torch.testing.assert_close(mel, torch.full_like(mel, np.log(1e-5)))
    mel.sum().backward()
    assert audio.grad.isfinite().all()


def test_autocast_does_not_change_log_mels():
    audio = torch.randn(1, 1, 512)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LogMel(SMALL)(audio), LogMel(SMALL)(audio.float()))
        assert LogMel(SMALL)(audio).dtype == torch.float32


def test_log_mels_have_no_state():
    assert LogMel(SMALL).state_dict() == {}


def test_the_magnitude_of_a_tone_is_half_the_sum_of_the_window():
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 16000)[None, None]
    spectrum = Stft(512, 128)(tone)[0, :, 20]
    assert spectrum.argmax() == 1000 * 512 // 16000
    torch.testing.assert_close(spectrum.max(), torch.tensor(512 / 4.0), rtol=1e-3, atol=0)  # half the sum of the window


def test_the_difference_of_settings_names_the_fields():
    config = MelConfig()
    assert config.difference(config) == ""
    assert (
        config.difference(replace(config, fmax=7000.0, n_mels=64))
        == "mel.n_mels is 80 and 64, mel.fmax is 8000.0 and 7000.0"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"n_mels": 0},
        {"win_length": 2048},
        {"hop_length": 2048},
        {"hop_length": 255},
        {"fmax": 9000.0},
        {"fmin": -1.0},
        {"clamp": 0.0},
    ],
)
def test_invalid_settings_are_errors_that_name_the_field(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        MelConfig(**settings)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n_fft", "win_length", "hop_length"), [(512, 512, 128), (512, 400, 100), (400, 400, 200)])
def test_the_inverse_stft_reconstructs_the_signal(causal: bool, n_fft: int, win_length: int, hop_length: int) -> None:
    stft = Stft(n_fft, hop_length, win_length, causal=causal)
    audio, istft = torch.randn(2, 1, 20 * hop_length), Istft(stft)
    output = istft(stft.spectrum(audio))
    assert output.shape == audio.shape
    assert istft.delay == (n_fft - hop_length if causal else 0)
    torch.testing.assert_close(
        output[..., istft.delay :], audio[..., : audio.shape[-1] - istft.delay], atol=1e-5, rtol=0
    )


@pytest.mark.filterwarnings("ignore:Empty filters")
@pytest.mark.parametrize(
    ("sample_rate", "n_fft", "n_mels", "fmin", "fmax"),
    [
        (16000, 1024, 80, 0.0, 8000.0),
        (16000, 768, 40, 1500.0, 8000.0),
        (48000, 2048, 128, 20.0, 24000.0),
        (8000, 512, 40, 100.0, 900.0),
        (22050, 64, 80, 0.0, 11025.0),
    ],
)
def test_the_mel_basis_equals_librosas_bitwise(sample_rate, n_fft, n_mels, fmin, fmax):
    expected = librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax)
    np.testing.assert_array_equal(slaney_basis(sample_rate, n_fft, n_mels, fmin, fmax), expected)
    assert expected.max() > 0


def test_the_compressed_input_is_the_spectrum_of_the_signed_square_root():
    audio = 0.1 * torch.randn(1, 1, 4096, generator=torch.Generator().manual_seed(0))
    stft = Stft(1024, 256)
    spectra = stft.input_spectra(audio)
    torch.testing.assert_close(spectra.compressed, stft.spectrum(audio.sign() * audio.abs().sqrt()))
    torch.testing.assert_close(stft.input_spectra(-audio).compressed, -spectra.compressed)
    assert spectra.air is None
