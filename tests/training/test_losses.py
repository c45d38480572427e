"""Tests of losses: values by hand, zeros for equal signals, comparison with references, finite gradients."""

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch

from twostage.audio import sound_files
from twostage.models.features import LogMel, MelConfig
from twostage.training import losses

SAMPLES = Path(__file__).parents[2] / "samples"


def maps(*logits: float) -> list[list[torch.Tensor]]:
    """Feature maps of one discriminator per logit: a hidden map of twice the logit, and the logit."""
    return [[torch.full((2, 3), 2 * logit), torch.full((2, 4), logit)] for logit in logits]


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (losses.discriminator_least_squares(maps(0.8, 0.5), maps(0.1, -0.5)), 0.04 + 0.01 + 0.25 + 0.25),
        (losses.generator_least_squares(maps(0.1, -0.5)), 0.81 + 2.25),
        (losses.discriminator_hinge(maps(0.8, 2.0), maps(0.1, -3.0)), 0.2 + 1.1 + 0 + 0),
        (losses.generator_hinge(maps(0.1, -0.5)), -0.1 + 0.5),
        (losses.generator_bounded_hinge(maps(0.1, -0.5, 3.0)), 0.9 + 1.5 + 0),
        (losses.feature_matching(maps(1.0, 2.0), maps(0.5, 2.5), logits=False), 1.0 + 1.0),
        (losses.feature_matching(maps(1.0, 2.0), maps(0.5, 2.5)), 1.0 + 1.0 + 0.5 + 0.5),  # HiFi-GAN's
        (losses.mel_l1(torch.zeros(1, 2, 2), torch.tensor([[[1.0, 2.0], [3.0, -4.0]]])), 2.5),
        (losses.delta_l1(torch.zeros(1, 2, 2), torch.tensor([[[1.0, 2.0], [3.0, -4.0]]])), 4.0 + 4.0),
    ],
)
def test_losses_have_the_values_computed_by_hand(loss, value):
    assert float(loss) == pytest.approx(value, rel=1e-6)


def test_feature_matching_has_no_gradient_for_real_features():
    real, fake = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    losses.feature_matching([[real, real]], [[fake, fake]]).backward()
    assert real.grad is None
    assert fake.grad is not None


def test_the_stft_loss_is_zero_for_equal_signals_and_grows_with_noise():
    loss, audio = losses.MultiResolutionStft((64, 128)), torch.randn(2, 1, 1024)
    noise = torch.randn(2, 1, 1024)
    assert float(loss(audio, audio)) == 0
    values = [float(loss(audio + amount * noise, audio)) for amount in (0.01, 0.1, 1.0)]
    assert values == sorted(values)
    assert values[0] > 0


def test_the_stft_loss_of_half_the_amplitude():
    audio = torch.randn(1, 1, 4096)
    # spectral convergence is 0.5, and every log-magnitude differs by log 2
    assert float(losses.MultiResolutionStft((64, 128))(audio / 2, audio)) == pytest.approx(0.5 + 0.6931, abs=1e-3)


def test_the_stft_loss_is_the_mean_over_its_resolutions():
    fake, real = torch.randn(2, 1, 1, 4096, generator=torch.Generator().manual_seed(0))
    separately = [float(losses.MultiResolutionStft((n,))(fake, real)) for n in (64, 512)]
    assert abs(separately[0] - separately[1]) > 0.01
    assert float(losses.MultiResolutionStft((64, 512))(fake, real)) == pytest.approx(np.mean(separately), rel=1e-5)


def test_the_multi_scale_mel_loss_has_hops_of_a_quarter_frame():
    scales = [mel.config for mel in losses.MultiScaleMel(MelConfig()).mels]
    assert [scale.n_fft for scale in scales] == [64, 128, 256, 512, 1024, 2048]
    assert all(scale.hop_length == scale.n_fft // 4 and scale.win_length == scale.n_fft for scale in scales)
    assert [scale.n_mels for scale in scales] == [5, 10, 21, 42, 85, 170]


def test_the_multi_scale_mel_loss_of_half_the_amplitude():
    audio = torch.randn(1, 1, 8192)
    loss = losses.MultiScaleMel(MelConfig())
    assert float(loss(audio / 2, audio)) == pytest.approx(0.6931, abs=1e-3)
    assert float(loss(audio, audio)) == 0


def test_the_multi_scale_mel_loss_distinguishes_pulses_from_noise_better():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 16384, generator=generator)
    pulses = noise * 2 * (torch.arange(16384) % 320 < 80)  # 50 pulses per second of the same noise and power
    mel = LogMel(MelConfig())
    assert float(losses.MultiScaleMel(MelConfig())(pulses, noise)) > 2 * float(losses.mel_l1(mel(pulses), mel(noise)))


def test_the_stft_loss_has_a_finite_gradient_at_silence():
    fake = torch.zeros(1, 1, 512, requires_grad=True)
    losses.MultiResolutionStft((64,))(fake, torch.randn(1, 1, 512)).backward()
    assert fake.grad.isfinite().all()


@pytest.mark.parametrize(("content", "adversarial", "weight"), [(6.0, 2.0, 3.0), (1.0, 0.0, 1e4), (0.0, 1.0, 0.0)])
def test_the_adaptive_weight_is_the_ratio_of_gradients(content, adversarial, weight):
    layer = torch.ones(1, requires_grad=True)
    actual = losses.adaptive_weight(content * layer.sum(), adversarial * layer.sum(), layer)
    assert float(actual) == pytest.approx(weight, rel=1e-3)
    assert not actual.requires_grad


def test_the_intelligibility_loss_is_zero_for_equal_signals_and_grows_with_noise(speech):
    mel = LogMel(MelConfig())
    clean = torch.from_numpy(speech(32000))[None, None]
    loss = losses.Intelligibility(MelConfig())
    assert float(loss(mel(clean), mel(clean))) == pytest.approx(0, abs=1e-3)
    values = [float(loss(mel(clean + level * torch.randn_like(clean)), mel(clean))) for level in (0.003, 0.03, 0.3)]
    assert values == sorted(values)
    assert 0 < values[0] < values[-1] <= 2


def test_the_intelligibility_loss_ignores_the_level(speech):
    mel = LogMel(MelConfig())(torch.from_numpy(speech(16000))[None, None])
    noisy = mel + 0.3 * torch.randn_like(mel)
    loss = losses.Intelligibility(MelConfig())
    torch.testing.assert_close(loss(noisy + 0.5, mel), loss(noisy, mel), atol=1e-3, rtol=0)


def test_the_intelligibility_loss_ignores_pauses(speech):
    loss, mel = losses.Intelligibility(MelConfig()), LogMel(MelConfig())
    pause = torch.full((1, 80, 200), -11.5)
    speech_mel = mel(torch.from_numpy(speech(48000))[None, None])
    real, noisy = torch.cat([speech_mel, pause], -1), torch.cat([speech_mel, -8 + torch.randn(1, 80, 200)], -1)
    assert float(loss(noisy, real)) == pytest.approx(0, abs=0.1)  # some segments contain the edge of the pause


def bands(seconds):
    """Noise and pulses whose third-octave bands vary independently, as in speech, (T,) at 16 kHz."""
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
def test_the_intelligibility_loss_follows_stoi_and_estoi(speech, kind, error):
    pystoi = pytest.importorskip("pystoi")
    clean = speech(48000) if kind == "voice" else bands(3)
    noise = clean.std() * np.random.default_rng(1).standard_normal(48000)
    mel, loss = LogMel(MelConfig()), losses.Intelligibility(MelConfig())
    for snr in (-10, -5, 0, 5, 20):
        noisy = (clean + noise * 10 ** (-snr / 20)).astype(np.float32)
        expected = np.mean([pystoi.stoi(*np.float64([clean, noisy]), 16000, extended) for extended in (False, True)])
        actual, real = (mel(torch.from_numpy(x)[None, None]) for x in (noisy, clean))
        assert 1 - float(loss(actual, real)) == pytest.approx(expected, abs=error)


@pytest.mark.parametrize("silent", ["fake", "real", "both"])
@pytest.mark.parametrize("frames", [100, 3])
def test_the_intelligibility_loss_has_a_finite_gradient_at_silence(silent, frames):
    silence, sound = torch.full((2, 80, frames), -11.5), torch.randn(2, 80, frames)
    fake = (sound if silent == "real" else silence).clone().requires_grad_()
    loss = losses.Intelligibility(MelConfig())(fake, sound if silent == "fake" else silence)
    loss.backward()
    assert 0 <= float(loss.detach()) <= 2
    assert fake.grad.isfinite().all()


def test_the_ssim_distance_of_equal_mels_is_zero():
    mel = 2 * torch.randn(2, 20, 30) - 5
    assert float(losses.ssim_distance(mel, mel, floor=-11.5)) == pytest.approx(0, abs=1e-6)


def test_the_ssim_distance_of_two_constant_levels():
    real, fake = torch.full((1, 16, 9), -11.5 + 3.0), torch.full((1, 16, 9), -11.5 + 4.0)
    c1 = 0.12**2  # without variance, only the level counts
    expected = 1 - (2 * 3 * 4 + c1) / (3**2 + 4**2 + c1)
    assert float(losses.ssim_distance(fake, real, floor=-11.5)) == pytest.approx(expected, rel=1e-4)
    near_the_floor = float(losses.ssim_distance(fake - 3, real - 3, floor=-11.5))
    assert near_the_floor == pytest.approx(1 - c1 / (1 + c1), rel=1e-4)


def ssim_in_loops(x, y, span, size):
    """Equation 13 of Wang et al. (2004), computed per window, with smaller windows at the edges."""
    c1, c2, half, values = (0.01 * span) ** 2, (0.03 * span) ** 2, size // 2, []
    for band, frame in product(*map(range, x.shape)):
        window = slice(max(0, band - half), band + half + 1), slice(max(0, frame - half), frame + half + 1)
        a, b = x[window].ravel(), y[window].ravel()
        covariance = ((a - a.mean()) * (b - b.mean())).mean()
        level = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
        values.append(level * (2 * covariance + c2) / (a.var() + b.var() + c2))
    return np.mean(values)


@pytest.mark.parametrize(("bands", "frames", "size"), [(12, 17, 7), (16, 4, 7), (9, 9, 3)])
def test_the_ssim_distance_equals_that_of_the_paper(bands, frames, size):
    rng = np.random.default_rng(0)
    real = rng.uniform(0, 12, (bands, frames))
    fake = np.maximum(0, real + rng.normal(0, 2, real.shape))
    actual = losses.ssim_distance(*(torch.from_numpy(x)[None] - 11.5 for x in (fake, real)), floor=-11.5, size=size)
    assert float(actual) == pytest.approx(1 - ssim_in_loops(fake, real, 12, size), abs=1e-5)


def test_the_ssim_distance_penalizes_blur_more_than_a_level_difference_of_equal_l1(speech):
    mel = LogMel(MelConfig())(torch.from_numpy(speech(32000))[None, None])
    blurred = torch.nn.functional.avg_pool2d(mel, 5, 1, 2, count_include_pad=False)
    louder = mel + losses.mel_l1(blurred, mel)
    torch.testing.assert_close(losses.mel_l1(louder, mel), losses.mel_l1(blurred, mel))
    of_blur, of_level = (float(losses.ssim_distance(x, mel, floor=-11.5)) for x in (blurred, louder))
    assert of_blur > 3 * of_level


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
def test_the_quantile_loss_is_least_at_the_quantile(quantile: float) -> None:
    real = torch.arange(101.0)  # uniformly distributed, so that quantile q is 100 q
    values = torch.stack([losses.mel_quantile(torch.full_like(real, level), real, quantile) for level in real])
    assert abs(float(values.argmin()) - 100 * quantile) <= 1
    fake = real.flip(0)
    torch.testing.assert_close(losses.mel_quantile(fake, real, 0.5), losses.mel_l1(fake, real))


@pytest.mark.parametrize("sample_rate", [16000, 24000])
def test_lines_at_the_frame_rate_are_measured_in_bels(sample_rate: int) -> None:
    """A pattern that repeats in every frame of 256 samples, in noise that is 20 dB weaker between its lines."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, 1, 8192, generator=generator)
    pattern = torch.randn(1, 1, 256, generator=generator).repeat(8, 1, 32)
    # the window of Hann spreads a line of 32 periods over 1.5 bins; the noise fills every bin
    expected = torch.log10(torch.tensor(1 + 32 / 1.5)).item()
    assert losses.frame_lines(noise + pattern, 256, sample_rate).item() == pytest.approx(expected, abs=0.15)
    assert losses.frame_lines(noise, 256, sample_rate) < 0.15
    assert losses.frame_lines(noise + pattern.roll(1, 0), 240, sample_rate) < 0.3  # lines at other frequencies


def test_speech_and_silence_have_no_lines_at_the_frame_rate(speech) -> None:
    clean = sound_files.read(SAMPLES / "clean.flac")[0][0][: 12 * 8192].reshape(12, 1, 8192)
    assert losses.frame_lines(torch.from_numpy(clean), 256, 16000) < 0.2
    assert losses.frame_lines(torch.zeros(2, 1, 8192), 256, 16000) == 0


def test_the_gradient_of_frame_lines_lowers_them() -> None:
    audio = torch.randn(1, 1, 256, generator=torch.Generator().manual_seed(1)).repeat(2, 1, 32)
    audio = (audio + 0.3 * torch.randn(2, 1, 8192, generator=torch.Generator().manual_seed(2))).requires_grad_()
    before = losses.frame_lines(audio, 256, 16000)
    (gradient,) = torch.autograd.grad(before, audio)
    assert losses.frame_lines(audio - gradient / gradient.abs().max(), 256, 16000) < before
