"""Claims about losses: values worked out by hand, zeros where things agree, gradients that can be used."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from twostage.models.features import LogMel, MelConfig
from twostage.training import losses


def maps(*logits: float) -> list[list[torch.Tensor]]:
    """One discriminator a logit, with a hidden map of twice the logit before it."""
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


def test_the_stft_loss_is_the_mean_over_its_resolutions():
    fake, real = torch.randn(2, 1, 1, 4096)
    alone = [float(losses.MultiResolutionStft((n,))(fake, real)) for n in (64, 512)]
    assert abs(alone[0] - alone[1]) > 0.01
    assert float(losses.MultiResolutionStft((64, 512))(fake, real)) == pytest.approx(np.mean(alone), rel=1e-5)


def test_the_multi_scale_mel_loss_has_frames_a_quarter_apart():
    scales = [mel.config for mel in losses.MultiScaleMel(MelConfig()).mels]
    assert [scale.n_fft for scale in scales] == [64, 128, 256, 512, 1024, 2048]
    assert all(scale.hop_length == scale.n_fft // 4 and scale.win_length == scale.n_fft for scale in scales)
    assert [scale.n_mels for scale in scales] == [5, 10, 21, 42, 85, 170]


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
    actual = losses.adaptive_weight(content * layer.sum(), adversarial * layer.sum(), layer)
    assert float(actual) == pytest.approx(weight, rel=1e-3)
    assert not actual.requires_grad


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


def test_intelligibility_leaves_stretches_without_speech_out(speech):
    loss, mel = losses.Intelligibility(MelConfig()), LogMel(MelConfig())
    pause = torch.full((1, 80, 200), -11.5)
    spoken = mel(torch.from_numpy(speech(48000))[None, None])
    real, noisy = torch.cat([spoken, pause], -1), torch.cat([spoken, -8 + torch.randn(1, 80, 200)], -1)
    assert float(loss(noisy, real)) == pytest.approx(0, abs=0.1)  # some hold the edge of the pause


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
        actual, real = (mel(torch.from_numpy(x)[None, None]) for x in (noisy, clean))
        assert 1 - float(loss(actual, real)) == pytest.approx(wanted, abs=error)


@pytest.mark.parametrize("silent", ["fake", "real", "both"])
@pytest.mark.parametrize("frames", [100, 3])
def test_intelligibility_has_a_gradient_at_silence(silent, frames):
    nothing, sound = torch.full((2, 80, frames), -11.5), torch.randn(2, 80, frames)
    fake = (sound if silent == "real" else nothing).clone().requires_grad_()
    loss = losses.Intelligibility(MelConfig())(fake, sound if silent == "fake" else nothing)
    loss.backward()
    assert 0 <= float(loss.detach()) <= 2
    assert fake.grad.isfinite().all()


def test_what_is_alike_has_no_distance_of_structure():
    mel = 2 * torch.randn(2, 20, 30) - 5
    assert float(losses.ssim_distance(mel, mel, floor=-11.5)) == pytest.approx(0, abs=1e-6)


def test_the_distance_of_structure_of_two_levels_is_known():
    one, other = torch.full((1, 16, 9), -11.5 + 3.0), torch.full((1, 16, 9), -11.5 + 4.0)
    c1 = 0.12**2  # no variance on either side: the level alone counts
    wanted = 1 - (2 * 3 * 4 + c1) / (3**2 + 4**2 + c1)
    assert float(losses.ssim_distance(other, one, floor=-11.5)) == pytest.approx(wanted, rel=1e-4)
    near_the_floor = float(losses.ssim_distance(other - 3, one - 3, floor=-11.5))
    assert near_the_floor == pytest.approx(1 - c1 / (1 + c1), rel=1e-4)


def ssim_in_loops(x, y, span, size):
    """Equation 13 of Wang et al. (2004), window by window, those at the edges cut."""
    c1, c2, half, values = (0.01 * span) ** 2, (0.03 * span) ** 2, size // 2, []
    for band, frame in product(*map(range, x.shape)):
        window = slice(max(0, band - half), band + half + 1), slice(max(0, frame - half), frame + half + 1)
        a, b = x[window].ravel(), y[window].ravel()
        covariance = ((a - a.mean()) * (b - b.mean())).mean()
        level = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
        values.append(level * (2 * covariance + c2) / (a.var() + b.var() + c2))
    return np.mean(values)


@pytest.mark.parametrize(("bands", "frames", "size"), [(12, 17, 7), (16, 4, 7), (9, 9, 3)])
def test_the_distance_of_structure_is_that_of_the_paper(bands, frames, size):
    rng = np.random.default_rng(0)
    one = rng.uniform(0, 12, (bands, frames))
    other = np.maximum(0, one + rng.normal(0, 2, one.shape))
    actual = losses.ssim_distance(*(torch.from_numpy(x)[None] - 11.5 for x in (other, one)), floor=-11.5, size=size)
    assert float(actual) == pytest.approx(1 - ssim_in_loops(other, one, 12, size), abs=1e-5)


def test_the_distance_of_structure_sees_blur_that_an_l1_forgives(speech):
    mel = LogMel(MelConfig())(torch.from_numpy(speech(32000))[None, None])
    blurred = torch.nn.functional.avg_pool2d(mel, 5, 1, 2, count_include_pad=False)
    louder = mel + losses.mel_l1(blurred, mel)
    torch.testing.assert_close(losses.mel_l1(louder, mel), losses.mel_l1(blurred, mel))
    of_blur, of_level = (float(losses.ssim_distance(x, mel, floor=-11.5)) for x in (blurred, louder))
    assert of_blur > 3 * of_level


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
def test_the_quantile_loss_is_least_at_the_quantile(quantile: float) -> None:
    real = torch.arange(101.0)  # every level is as likely: the quantile is at 100 times itself
    values = torch.stack([losses.mel_quantile(torch.full_like(real, level), real, quantile) for level in real])
    assert abs(float(values.argmin()) - 100 * quantile) <= 1
    fake = real.flip(0)
    torch.testing.assert_close(losses.mel_quantile(fake, real, 0.5), losses.mel_l1(fake, real))
