"""Claims about losses: values worked out by hand, zeros where things agree, gradients that can be used."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from twostage import losses
from twostage.features import LogMel, MelConfig


def maps(*logits: float) -> list[list[torch.Tensor]]:
    """One judge a logit, with a hidden map of twice the logit before it."""
    return [[torch.full((2, 3), 2 * logit), torch.full((2, 4), logit)] for logit in logits]


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (losses.least_squares_real_fake(maps(0.8, 0.5), maps(0.1, -0.5)), 0.04 + 0.01 + 0.25 + 0.25),
        (losses.least_squares_fool(maps(0.1, -0.5)), 0.81 + 2.25),
        (losses.hinge_real_fake(maps(0.8, 2.0), maps(0.1, -3.0)), 0.2 + 1.1 + 0 + 0),
        (losses.hinge_fool(maps(0.1, -0.5)), -0.1 + 0.5),
        (losses.feature_matching(maps(1.0, 2.0), maps(0.5, 2.5)), 1.0 + 1.0),
        (losses.mel_l1(torch.zeros(1, 2, 2), torch.tensor([[[1.0, 2.0], [3.0, -4.0]]])), 2.5),
        (losses.delta_l1(torch.zeros(1, 2, 2), torch.tensor([[[1.0, 2.0], [3.0, -4.0]]])), 4.0 + 4.0),
    ],
)
def test_values_by_hand(loss, value):
    assert float(loss) == pytest.approx(value, rel=1e-6)


def test_feature_matching_gives_the_real_side_no_gradient():
    real, fake = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    losses.feature_matching([[real, real]], [[fake, fake]]).backward()
    assert real.grad is None
    assert fake.grad is not None


def test_the_stft_loss_is_zero_for_equals_and_grows():
    loss, audio = losses.MultiResolutionStft((64, 128)), torch.randn(2, 1, 1024)
    noise = torch.randn(2, 1, 1024)
    assert float(loss(audio, audio)) == 0
    values = [float(loss(audio + amount * noise, audio)) for amount in (0.01, 0.1, 1.0)]
    assert values == sorted(values)
    assert values[0] > 0


def test_the_stft_loss_of_half_the_amplitude_is_known():
    audio = torch.randn(1, 1, 4096)
    # half is missing of the norm, and the logarithm of two of every magnitude
    assert float(losses.MultiResolutionStft((64, 128))(audio / 2, audio)) == pytest.approx(0.5 + 0.6931, abs=1e-3)


def test_the_multi_scale_mel_loss_of_half_the_amplitude_is_known():
    audio = torch.randn(1, 1, 8192)
    loss = losses.MultiScaleMel(MelConfig())
    assert float(loss(audio / 2, audio)) == pytest.approx(0.6931, abs=1e-3)
    assert float(loss(audio, audio)) == 0


def test_the_multi_scale_mel_loss_hears_pulses_where_the_contract_hears_a_hum():
    generator = torch.Generator().manual_seed(0)
    hum = torch.randn(1, 1, 16384, generator=generator)
    pulses = hum * 2 * (torch.arange(16384) % 320 < 80)  # 50 pulses a second of the same noise and power
    mel = LogMel(MelConfig())
    assert float(losses.MultiScaleMel(MelConfig())(pulses, hum)) > 2 * float(losses.mel_l1(mel(pulses), mel(hum)))


def test_the_stft_loss_has_a_gradient_at_silence():
    fake = torch.zeros(1, 1, 512, requires_grad=True)
    losses.MultiResolutionStft((64,))(fake, torch.randn(1, 1, 512)).backward()
    assert fake.grad.isfinite().all()


@pytest.mark.parametrize(("content", "adversarial", "weight"), [(6.0, 2.0, 3.0), (1.0, 0.0, 1e4), (0.0, 1.0, 0.0)])
def test_the_adaptive_weight_is_the_ratio_of_gradients(content, adversarial, weight):
    layer = torch.ones(1, requires_grad=True)
    found = losses.adaptive_weight(content * layer.sum(), adversarial * layer.sum(), layer)
    assert float(found) == pytest.approx(weight, rel=1e-3)
    assert not found.requires_grad


def test_intelligibility_is_zero_for_equals_and_falls_with_noise(speech):
    mel = LogMel(MelConfig())
    clean = torch.from_numpy(speech(32000))[None, None]
    loss = losses.Intelligibility(MelConfig())
    assert float(loss(mel(clean), mel(clean))) == pytest.approx(0, abs=1e-3)
    values = [float(loss(mel(clean + level * torch.randn_like(clean)), mel(clean))) for level in (0.003, 0.03, 0.3)]
    assert values == sorted(values)
    assert 0 < values[0] < values[-1] <= 2


def test_intelligibility_does_not_hear_the_level(speech):
    mel = LogMel(MelConfig())(torch.from_numpy(speech(16000))[None, None])
    other = mel + 0.3 * torch.randn_like(mel)
    loss = losses.Intelligibility(MelConfig())
    torch.testing.assert_close(loss(other + 0.5, mel), loss(other, mel), atol=1e-3, rtol=0)


def bands(seconds):
    """Noise and pulses whose third-octave bands rise and fall by themselves, as those of speech do: (T,) at 16 kHz."""
    rng, frames = np.random.default_rng(0), 16000 * seconds
    spectrum = np.fft.rfft(rng.standard_normal(frames) + 8 * (np.arange(frames) % 128 == 0))
    hertz, edges, time = np.fft.rfftfreq(frames, 1 / 16000), 100 * 2 ** (np.arange(19) / 3), np.arange(frames) / 2000
    total = np.zeros(frames)
    for low, high in pairwise(edges):
        band = np.fft.irfft(spectrum * ((hertz >= low) & (hertz < high)), frames)
        gain = 10 ** (0.4 * np.interp(time, np.arange(8 * seconds + 1), rng.normal(size=8 * seconds + 1)))
        total += band * gain * low**-0.5
    return (0.05 * total / total.std()).astype(np.float32)


@pytest.mark.parametrize(("kind", "error"), [("voice", 0.05), ("bands", 0.08)])
def test_intelligibility_follows_the_reference_scores(speech, kind, error):
    pystoi = pytest.importorskip("pystoi")
    clean = speech(48000) if kind == "voice" else bands(3)
    noise = clean.std() * np.random.default_rng(1).standard_normal(48000)
    mel, loss = LogMel(MelConfig()), losses.Intelligibility(MelConfig())
    for snr in (-10, -5, 0, 5, 20):
        noisy = (clean + noise * 10 ** (-snr / 20)).astype(np.float32)
        wanted = np.mean([pystoi.stoi(*np.float64([clean, noisy]), 16000, extended) for extended in (False, True)])
        found, real = (mel(torch.from_numpy(x)[None, None]) for x in (noisy, clean))
        assert 1 - float(loss(found, real)) == pytest.approx(wanted, abs=error)


@pytest.mark.parametrize("silent", ["fake", "real", "both"])
@pytest.mark.parametrize("frames", [100, 3])
def test_intelligibility_has_a_gradient_at_silence(silent, frames):
    nothing, sound = torch.full((2, 80, frames), -11.5), torch.randn(2, 80, frames)
    fake = (sound if silent == "real" else nothing).clone().requires_grad_()
    loss = losses.Intelligibility(MelConfig())(fake, sound if silent == "fake" else nothing)
    loss.backward()
    assert 0 <= float(loss.detach()) <= 2
    assert fake.grad.isfinite().all()


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
def test_the_quantile_loss_is_least_at_the_quantile(quantile: float) -> None:
    real = torch.arange(101.0)  # every level is as likely: the quantile is at 100 times itself
    values = torch.stack([losses.mel_quantile(torch.full_like(real, level), real, quantile) for level in real])
    assert abs(float(values.argmin()) - 100 * quantile) <= 1
    fake = real.flip(0)
    torch.testing.assert_close(losses.mel_quantile(fake, real, 0.5), losses.mel_l1(fake, real))
