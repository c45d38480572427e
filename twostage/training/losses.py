"""Pure, unweighted loss functions. Weights live in the configuration."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.models.features import LogMel, MelConfig, Stft, mel_basis

LINE_FRAMES = 8  # with fewer frames, the window of the transform smears a line over what lies between
Maps = Sequence[Sequence[Tensor]]  # feature maps of each sub-discriminator; its last map is the logits


def discriminator_least_squares(real: Maps, fake: Maps) -> Tensor:
    """Discriminator's least-squares loss, summed over sub-discriminators (Mao et al., 2017; HiFi-GAN, equation 1)."""
    return torch.stack(
        [(1 - r[-1]).square().mean() + f[-1].square().mean() for r, f in zip(real, fake, strict=True)]
    ).sum()


def generator_least_squares(fake: Maps) -> Tensor:
    """Generator's least-squares loss (HiFi-GAN, equation 2)."""
    return torch.stack([(1 - f[-1]).square().mean() for f in fake]).sum()


def discriminator_hinge(real: Maps, fake: Maps) -> Tensor:
    """Discriminator's hinge loss (Lim and Ye, 2017; used by MelGAN and EBEN)."""
    return torch.stack(
        [F.relu(1 - r[-1]).mean() + F.relu(1 + f[-1]).mean() for r, f in zip(real, fake, strict=True)]
    ).sum()


def generator_hinge(fake: Maps) -> Tensor:
    """Generator's hinge loss: the negated logits."""
    return torch.stack([-f[-1].mean() for f in fake]).sum()


def generator_bounded_hinge(fake: Maps) -> Tensor:
    """Generator's hinge loss in the form of SEANet and EBEN: logits above one have no gradient."""
    return torch.stack([F.relu(1 - f[-1]).mean() for f in fake]).sum()


def feature_matching(real: Maps, fake: Maps, *, logits: bool = True) -> Tensor:
    """Sum of the mean absolute differences of feature maps (Kumar et al., MelGAN, 2019; HiFi-GAN, equation 4).

    With ``logits``, the last map of each sub-discriminator is included, as in HiFi-GAN's code, for which its weight of
    2 was chosen; without, only the hidden maps are compared, as in MelGAN and EBEN.
    """
    last = None if logits else -1
    pairs = [(r, f) for rs, fs in zip(real, fake, strict=True) for r, f in zip(rs[:last], fs[:last], strict=True)]
    return torch.stack([F.l1_loss(f, r.detach()) for r, f in pairs]).sum()


def mel_l1(fake: Tensor, real: Tensor) -> Tensor:
    """Mean absolute difference of two log-mels (HiFi-GAN, equation 3)."""
    return F.l1_loss(fake, real)


def mel_quantile(fake: Tensor, real: Tensor, quantile: float = 0.5) -> Tensor:
    """Twice the pinball loss, which is minimized by a quantile of ``real`` given the input; 0.5 gives ``mel_l1``.

    Source: Koenker and Bassett, "Regression quantiles", Econometrica 1978. Below 0.5, bands with an uncertain level
    become quieter, in proportion to the uncertainty, and bands with a certain level do not change.
    """
    error = real - fake
    return 2 * torch.maximum(quantile * error, (quantile - 1) * error).mean()


def negative_si_sdr(fake: Tensor, real: Tensor) -> Tensor:
    """Negative mean scale-invariant signal-to-distortion ratio of audio (B, 1, T) in dB; means are subtracted.

    Source: Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019, equation 3.
    """
    fake, real = (audio - audio.mean(-1, keepdim=True) for audio in (fake, real))
    target = real * (fake * real).sum(-1, keepdim=True) / real.square().sum(-1, keepdim=True).clamp_min(1e-8)
    ratio = target.square().sum(-1).clamp_min(1e-8) / (fake - target).square().sum(-1).clamp_min(1e-8)
    return -10 * ratio.log10().mean()


class MultiResolutionStft(nn.Module):
    """Spectral convergence plus log-magnitude L1, mean over resolutions: two (B, 1, T) -> scalar.

    Source: Yamamoto, Song and Kim, "Parallel WaveGAN", ICASSP 2020, equations 4 to 6.
    """

    def __init__(self, n_ffts: Sequence[int] = (512, 1024, 2048), overlap: int = 4) -> None:
        super().__init__()
        self.stfts = nn.ModuleList(Stft(n, n // overlap) for n in n_ffts)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        return torch.stack([self._stft_distance(stft(fake), stft(real)) for stft in self.stfts]).mean()

    @staticmethod
    def _stft_distance(fake: Tensor, real: Tensor) -> Tensor:
        convergence = (real - fake).norm() / real.norm().clamp_min(1e-5)
        return convergence + F.l1_loss(fake.clamp_min(1e-5).log(), real.clamp_min(1e-5).log())


class MultiScaleMel(nn.Module):
    """Log-mel L1, mean over resolutions from single pulses to single harmonics: two (B, 1, T) -> scalar.

    Source: Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN" (DAC), NeurIPS 2023, section 3.4. The
    number of bands grows with the window, as long as each band is at least one bin wide.
    """

    def __init__(self, config: MelConfig, n_ffts: Sequence[int] = (64, 128, 256, 512, 1024, 2048)) -> None:
        super().__init__()
        scales = (replace(config, n_fft=n, win_length=n, hop_length=n // 4, n_mels=max(5, n // 12)) for n in n_ffts)
        self.mels = nn.ModuleList(LogMel(scale) for scale in scales)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        return torch.stack([F.l1_loss(mel(fake), mel(real)) for mel in self.mels]).mean()


def frame_lines(audio: Tensor, hop_length: int, sample_rate: int) -> Tensor:
    """Level of lines at multiples of the frame rate in audio (B, 1, T), relative to what lies between them, in bels.

    A generator that puts a similar pattern into every frame buzzes at the frame rate. The multiples from 500 Hz to the
    Nyquist frequency are compared with the frequencies half way between them, in seven bands; bands in which the lines
    do not stand out count as zero. Voices have lines as well, but not at the same frequencies for long. ``audio``
    must have at least LINE_FRAMES frames.
    """
    frames = audio.shape[-1] // hop_length
    cut = audio[:, 0, : frames * hop_length]
    powers = torch.fft.rfft(cut * torch.hann_window(cut.shape[-1], device=cut.device)).abs().square().mean(0)
    rate = sample_rate / hop_length
    multiples = torch.arange(round(500 / rate), hop_length // 2, device=audio.device) * frames
    lines, between = ([part.mean() for part in powers[bins].chunk(7)] for bins in (multiples, multiples + frames // 2))
    ratios = (torch.stack(lines) + 1e-6) / (torch.stack(between) + 1e-6)
    return F.relu(ratios.log10()).mean()


def adaptive_weight(content: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """The weight that equalizes the two losses' gradients at ``last_layer``, in [0, 1e4], without gradient.

    Source: Esser, Rombach and Ommer, "Taming Transformers" (VQGAN), CVPR 2021, equation 7.
    """
    (content_gradient,) = torch.autograd.grad(content, last_layer, retain_graph=True)
    (adversarial_gradient,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (content_gradient.norm() / (adversarial_gradient.norm() + 1e-4)).clamp(0, 1e4)


def delta_l1(fake: Tensor, real: Tensor) -> Tensor:
    """Mean absolute difference of the slopes of two log-mels (B, n_mels, L) along time and along frequency, summed.

    It penalizes the loss of onsets and formant edges, which an L1 of levels smooths.
    """
    return F.l1_loss(fake.diff(dim=-1), real.diff(dim=-1)) + F.l1_loss(fake.diff(dim=-2), real.diff(dim=-2))


def ssim_distance(fake: Tensor, real: Tensor, *, floor: float, span: float = 12.0, size: int = 7) -> Tensor:
    """One minus the mean structural similarity of two log-mels (B, n_mels, L), in [0, 2]; it penalizes blur.

    Source: Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
    Similarity", TIP 2004, equation 13. Images have no values below black, so ``floor``, the lowest log-mel, in nepers,
    counts as zero. ``span``, in nepers, is the paper's dynamic range L: speech reaches about 12 above a floor of
    log(1e-5). K1 and K2 are the paper's. Windows are ``size`` bands by ``size`` frames, all with the same weight; at
    the edges they contain only existing values.
    """
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    x, y = fake.float() - floor, real.float() - floor
    products = torch.stack([x, y, x * x, y * y, x * y], 1)
    means = F.avg_pool2d(products, size, 1, size // 2, count_include_pad=False)
    mean_x, mean_y, xx, yy, xy = means.unbind(1)
    level = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    variances, covariance = xx - mean_x.square() + yy - mean_y.square(), xy - mean_x * mean_y
    return 1 - (level * (2 * covariance + c2) / (variances + c2)).mean()


class Intelligibility(nn.Module):
    """One minus the mean of STOI and ESTOI, both approximated from log-mels: two (B, n_mels, L) -> scalar in [0, 2].

    Envelopes of third-octave bands from 150 Hz are correlated over 384 ms, band by band (Taal et al., "An Algorithm for
    Intelligibility Prediction of Time-Frequency Weighted Noisy Speech", TASLP 2011, section II) and frame by frame
    (Jensen and Taal, TASLP 2016, section III). Differences: the frames and bands are those of the mel, there
    is no clipping, and segments are selected by the energy of the clean speech instead of removing silent frames.
    """

    octaves: Tensor

    def __init__(self, config: MelConfig, seconds: float = 0.384, bands: int = 15, lowest: float = 150.0) -> None:
        super().__init__()
        self.frames = max(2, round(seconds * config.sample_rate / config.hop_length))
        centers = lowest * 2 ** (torch.arange(bands) / 3)
        hertz = mel_basis(config, config.sample_rate // 2 + 1)  # a row for each Hz
        inside = (torch.arange(len(hertz)) >= centers[:, None] * 2 ** (-1 / 6)).float()
        inside *= torch.arange(len(hertz)) < centers[:, None] * 2 ** (1 / 6)
        self.register_buffer("octaves", inside @ hertz, persistent=False)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        fake_segments, real_segments = self._segments(fake), self._segments(real)
        energy = real_segments.square().sum((-2, -1))
        weight = (energy / energy.amax(dim=1, keepdim=True).clamp_min(1e-10) > 1e-3).float()
        fake_segments, real_segments = _standardize(fake_segments, -1), _standardize(real_segments, -1)
        by_band = (fake_segments * real_segments).sum(-1).mean(-1)
        by_frame = (_standardize(fake_segments, -2) * _standardize(real_segments, -2)).sum(-2).mean(-1)
        return 1 - ((by_band + by_frame) / 2 * weight).sum() / weight.sum().clamp_min(1)

    def _segments(self, mel: Tensor) -> Tensor:
        """Envelopes (B, segments, bands, frames); segments overlap by three quarters."""
        envelopes = (self.octaves @ mel.float().mul(2).exp()).clamp_min(1e-10).sqrt()
        envelopes = F.pad(envelopes, (0, max(0, self.frames - envelopes.shape[-1])))
        return envelopes.unfold(-1, self.frames, self.frames // 4).movedim(-2, 1)


def _standardize(x: Tensor, dim: int) -> Tensor:
    """Zero mean and unit norm along ``dim``."""
    x = x - x.mean(dim, keepdim=True)
    return x / (x.square().sum(dim, keepdim=True) + 1e-10).sqrt()
