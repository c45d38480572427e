"""The pitch of a voice for each frame, computed from the spectrum from which the log-mels are computed."""

from math import log2

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.models.features import MelConfig, power

LOWEST, HIGHEST = 60.0, 400.0  # Hz
CANDIDATES = 128  # evenly spaced in octaves: 1.5 % apart
BAND = (70.0, 1000.0)  # Hz: above heartbeat and steps, and within the band that every sensor picks up
OCTAVE = 0.05  # penalty on the correlation per octave down, because multiples of the period correlate as well
SHARPNESS = 200.0  # of the softmax that finds the peak; an argmax would jump with rounding errors
SILENCE = 1e-3  # added to the power of a frame; that of speech at the level of the models is some hundreds


class Pitch(nn.Module):
    """Spectrum (B, n_fft // 2 + 1, L) -> (B, 2, L): log-pitch from -1 to 1, times voicing, and voicing.

    Voicing is the peak of the normalized autocorrelation of the frame's lower band, from 0 to 1. Autocorrelation and
    its division by that of the window: Boersma, "Accurate short-term analysis of the fundamental frequency and the
    harmonics-to-noise ratio of a sampled sound", IFA Proceedings 17, 1993. Each frame is analyzed by itself.
    """

    waves: Tensor
    band: Tensor
    handicap: Tensor
    log_pitch: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        hertz = torch.linspace(0, config.sample_rate / 2, config.n_fft // 2 + 1, dtype=torch.float64)
        log_pitch = torch.linspace(-1, 1, CANDIDATES, dtype=torch.float64)
        octaves = log2(HIGHEST / LOWEST) * (1 - log_pitch) / 2  # below HIGHEST
        waves = torch.cos(2 * torch.pi * hertz * (2**octaves / HIGHEST)[:, None])
        window = torch.hann_window(config.win_length, dtype=torch.float64)
        window_power = torch.fft.rfft(F.pad(window, (0, config.n_fft - config.win_length))).abs().square()
        window_power[1:-1] *= 2
        overlap = waves @ window_power / window_power.sum()  # autocorrelation of the window at that lag
        waves = waves * ((hertz >= BAND[0]) & (hertz <= BAND[1])) / overlap[:, None]
        self.register_buffer("waves", waves.float(), persistent=False)
        self.register_buffer("band", ((hertz >= BAND[0]) & (hertz <= BAND[1])).float()[None], persistent=False)
        self.register_buffer("handicap", (OCTAVE * octaves).float()[:, None], persistent=False)
        self.register_buffer("log_pitch", log_pitch.float()[None], persistent=False)

    @torch.no_grad()
    def forward(self, spectrum: Tensor) -> Tensor:
        with torch.autocast(spectrum.device.type, enabled=False):
            powers = power(spectrum)
            correlation = (self.waves @ powers) / (self.band @ powers + SILENCE) - self.handicap
            weights = torch.softmax(SHARPNESS * correlation, 1)
            voicing = (correlation + self.handicap).mul(weights).sum(1, keepdim=True).clamp(0, 1)
            return torch.cat([self.log_pitch @ weights * voicing, voicing], 1)
