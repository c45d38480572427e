"""Tests of pitch estimation: voices, missing fundamentals, low-passed glides, noise and silence."""

import librosa
import numpy as np
import pytest
import torch
from scipy import signal

from twostage.models.features import MelConfig, Stft
from twostage.models.pitch import HIGHEST, LOWEST, Pitch

RATE = 16000


def pitch_of(audio: np.ndarray, config: MelConfig) -> tuple[np.ndarray, np.ndarray]:
    """(pitch in Hz, voicing), (L,) each, of audio (T,)."""
    stft = Stft(config.n_fft, config.hop_length, config.win_length, causal=config.causal)
    spectrum = stft.spectrum(torch.from_numpy(audio.astype(np.float32))[None, None])
    log_pitch, voicing = Pitch(config)(spectrum)[0].numpy()
    return LOWEST * (HIGHEST / LOWEST) ** ((log_pitch / np.maximum(voicing, 1e-9) + 1) / 2), voicing


def voice(pitch: np.ndarray, harmonics: range = range(1, 20)) -> np.ndarray:
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    return 0.03 * sum(np.sin(k * phase + k) / k**0.5 for k in harmonics)


@pytest.mark.parametrize("config", [MelConfig(), MelConfig(n_fft=768, win_length=768, causal=True)])
@pytest.mark.parametrize("pitch", [80.0, 125.0, 220.0, 350.0])
def test_the_pitch_of_a_voice_is_estimated(config: MelConfig, pitch: float) -> None:
    actual, voicing = pitch_of(voice(np.full(RATE, pitch)), config)
    np.testing.assert_allclose(actual[5:-5], pitch, rtol=0.02)
    assert voicing[5:-5].min() > 0.9


def test_the_pitch_is_estimated_without_the_fundamental() -> None:
    actual, voicing = pitch_of(voice(np.full(RATE, 125.0), range(2, 8)), MelConfig())
    np.testing.assert_allclose(actual[5:-5], 125, rtol=0.02)
    assert voicing[5:-5].min() > 0.9


@pytest.mark.slow  # librosa.yin compiles itself for 19 s at first
def test_the_pitch_of_a_low_passed_glide_agrees_with_yin() -> None:
    time = np.arange(2 * RATE) / RATE
    truth = 160 * 2 ** (0.6 * np.sin(2 * np.pi * 0.8 * time))
    dull = signal.sosfilt(signal.butter(2, 600, fs=RATE, output="sos"), voice(truth))
    dull += 0.001 * np.random.default_rng(0).standard_normal(len(time))
    actual, _ = pitch_of(dull, MelConfig())
    yin = librosa.yin(dull, fmin=LOWEST, fmax=HIGHEST, sr=RATE, frame_length=1024, hop_length=256)
    inner = slice(6, -6)
    # librosa's frames are centered half a hop earlier than those of the mels
    np.testing.assert_allclose(actual[inner], truth[128::256][: len(actual)][inner], rtol=0.04)
    assert np.median(np.abs(np.log2(actual[inner] / yin[: len(actual)][inner]))) < 0.03


def test_noise_and_silence_are_not_voiced() -> None:
    white = 0.05 * np.random.default_rng(0).standard_normal(RATE)
    assert np.median(pitch_of(white, MelConfig())[1]) < 0.5
    assert pitch_of(np.zeros(RATE), MelConfig())[1].max() < 1e-3


def test_frames_are_independent() -> None:
    spectrum = torch.randn(1, 513, 8, dtype=torch.complex64)
    pitch = Pitch(MelConfig())
    torch.testing.assert_close(pitch(spectrum)[..., 3:5], pitch(spectrum[..., 3:5]))
