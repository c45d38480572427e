"""Griffin-Lim from a vocoder's waveform: its phase is made consistent with the magnitudes of the mel.

A vocoder that is not fully trained repeats its phase from frame to frame. This is heard as a buzz at the frame rate and
visible as lines at its multiples. A few iterations remove it.

If the input is speech without its high band, it contains information that a mel does not: the exact harmonics and their
phase. Below `input_phase_below` both are taken from the input. In bins where the input is empty, the phase is that of
the compressed input, whose harmonics continue upward; unlike the phase of a briefly trained vocoder, it does not repeat
from frame to frame.

A vocoder that does not buzz sounds best as it is, but still loses some of the input's harmonics. For such a vocoder,
Griffin-Lim may be limited to the low band.
"""

from functools import reduce
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.models.features import InputSpectra, LogMel, MelConfig, power
from twostage.nn.streaming import Overlap
from twostage.utils.errors import ConfigError

RELAXATION = 0.9  # RAAR's beta
INVERSIONS, ROUGH = 8, 3  # multiplicative updates from mels to magnitudes, and for causal models; more do not help
# relative to the target magnitude: much weaker bins are not raised to it in full. Their phase is nearly arbitrary, and
# raising them would amplify rounding errors until two windows of a file no longer agree
SOFTNESS = 0.2
TINY = 1e-8
FADED = 7  # window lengths beyond which a frame changes a sample by less than 1e-7, for any number of iterations
# relative to the strongest bin of a frame, in the input and in the compressed input: weaker bins are rounding errors
FAINT, FAINT_HARMONIC = 1e-4, 3e-3
TRANSITION = 0.5  # from the result to the vocoder's own output, relative to the frequency at which it begins
OPPOSED = 0.01  # squared magnitude: where two phases nearly cancel, the phase of their sum is arbitrary


class GriffinLim(nn.Module):
    """Audio (B, 1, L * hop_length) and its target log-mels (B, n_mels, L) -> audio of the same shape.

    The input's harmonics, and its phase or that of the compressed input, have full weight at 0 Hz. The weight decreases
    to zero at ``input_phase_below`` Hz. The result replaces ``audio`` below ``below`` Hz, with a transition up to 1.5
    times that frequency; above, ``audio`` stays as it is. With 0, it is replaced in the whole band.

    With causal mels there is one iteration only: it waits for the last frame that contains a sample, so that the output
    is ``delay`` samples late, with zeros at the start. A second iteration would wait once more.

    Sources: Griffin and Lim, "Signal estimation from modified short-time Fourier transform", TASSP 1984, for the two
    projections; Luke, "Relaxed averaged alternating reflections for diffraction imaging" (RAAR), Inverse Problems 2005,
    for how they are combined; Peer, Welker and Gerkmann, "Beyond Griffin-Lim", IWAENC 2022, for RAAR on speech; Makhoul
    and Berouti, "High-frequency regeneration in speech coding systems", ICASSP 1979, for harmonics from a memoryless
    distortion.
    """

    spread: Tensor
    trust: Tensor
    replaced: Tensor

    def __init__(self, config: MelConfig, iterations: int, input_phase_below: float = 0.0, below: float = 0.0) -> None:
        super().__init__()
        divisible = config.n_fft % config.hop_length == 0 and config.n_fft >= 2 * config.hop_length
        if iterations and (not divisible or config.win_length != config.n_fft):  # the window sum must not be 0
            raise ConfigError(
                "griffin_lim and resynthesis need mel.win_length equal to mel.n_fft and that twice mel.hop_length or "
                "more, and a multiple of it: "
                f"{config.win_length}, {config.n_fft}, {config.hop_length}"
            )
        if config.causal and iterations > 1:
            raise ConfigError(f"griffin_lim is {iterations}, must be 0 or 1 with mel.causal")
        self.iterations, self.input_phase_below, self.below = iterations, input_phase_below, below
        self.mel = LogMel(config)
        self.overlap = Overlap(config.n_fft - config.hop_length) if config.causal else None
        basis = self.mel.basis
        # the share of each band that each bin (rows) contributes
        self.register_buffer("spread", (basis / basis.sum(0).clamp_min(TINY)).T.contiguous(), persistent=False)
        hertz = torch.linspace(0, config.sample_rate / 2, config.n_fft // 2 + 1)
        trust = (1 - hertz / input_phase_below).clamp_min(0) if input_phase_below else torch.zeros_like(hertz)
        self.register_buffer("trust", trust[:, None], persistent=False)
        replaced = (1 - (hertz - below) / (TRANSITION * below)).clamp(0, 1) if below else torch.ones_like(hertz)
        self.register_buffer("replaced", replaced, persistent=False)

    def forward(self, audio: Tensor, mel: Tensor, input_spectra: InputSpectra | None = None) -> Tensor:
        """``input_spectra``: the spectra of the input before restoration."""
        with torch.autocast(audio.device.type, enabled=False):
            if not self.iterations or not mel.shape[-1]:
                return audio
            mel, audio = mel.float(), audio.float()
            if input_spectra is None or not self.input_phase_below:
                return self._iterate(audio, self.magnitudes(mel))
            return self._iterate(audio, *self._target(mel, input_spectra))

    def from_input_phase(self, mel: Tensor, input_spectra: InputSpectra) -> Tensor:
        """Audio (B, 1, L * hop_length) from the input's phase alone: it is quiet as far as the input is not trusted.

        It is ``delay`` samples late, as the output of ``forward``.
        """
        with torch.autocast(mel.device.type, enabled=False):
            magnitudes, phase = self._target(mel.float(), input_spectra)
            return self._waveform(magnitudes * phase, self._coverage(mel.shape[-1]))

    def _target(self, mel: Tensor, input_spectra: InputSpectra) -> tuple[Tensor, Tensor]:
        """Magnitudes and the phase to keep, both (B, n_fft // 2 + 1, L); the magnitude of the phase is its weight."""
        magnitude = self._floored_magnitudes(input_spectra.bone, FAINT)
        phase = input_spectra.bone / magnitude
        missing = (1 - power(phase).sqrt()) / self._floored_magnitudes(input_spectra.compressed, FAINT_HARMONIC)
        phase = phase + input_spectra.compressed * missing
        return self.magnitudes(mel, magnitude), phase * (power(phase) + OPPOSED).rsqrt_().mul_(self.trust)

    @staticmethod
    def _floored_magnitudes(spectrum: Tensor, faint: float) -> Tensor:
        """Magnitudes (B, n_fft // 2 + 1, L), with a floor for empty bins."""
        magnitudes = power(spectrum).sqrt()
        # not "+ TINY", which the exporter optimizes away: digital silence would then be divided by zero
        return (magnitudes + faint * magnitudes.amax(1, keepdim=True)).clamp_min(TINY)

    def magnitudes(self, mel: Tensor, input_magnitudes: Tensor | None = None) -> Tensor:
        """Magnitudes (B, n_fft // 2 + 1, L) whose log-mels are ``mel`` (B, n_mels, L).

        Within a band they are smooth, or, as far as ``trust`` weights them, have the fine structure of the
        ``input_magnitudes``.
        """
        target = mel.mT.exp()
        estimate = (target / self.mel.basis.sum(1).clamp_min(TINY)) @ self.spread.T
        if input_magnitudes is not None:
            fine = self._log(input_magnitudes.mT)
            estimate = torch.lerp(self._log(estimate), fine, self.trust.T.expand_as(fine)).exp()
        return self._fitted(estimate, target).mT

    @staticmethod
    def _log(magnitudes: Tensor) -> Tensor:
        return magnitudes.clamp_min(TINY).log()

    def _fitted(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Correct each bin (B, L, F) by the geometric mean of the ratios of the bands that it belongs to."""
        for _ in range(ROUGH if self.mel.config.causal else INVERSIONS):
            ratio = target / (estimate @ self.mel.basis.T).clamp_min(TINY)
            estimate = estimate * (ratio.clamp_min(TINY).log() @ self.spread.T).exp_()
        return estimate

    def _iterate(self, audio: Tensor, magnitudes: Tensor, phase: Tensor | None = None) -> Tensor:
        """``phase`` is the phase to keep, as complex numbers whose magnitude, up to 1, is the weight.

        Internally, the bins of a frame are adjacent, (B, L, F), as a Fourier transform takes and returns them.
        """
        coverage, target = self._coverage(magnitudes.shape[-1]), magnitudes.mT.contiguous()
        threshold = (SOFTNESS * target).square().clamp_min(TINY**2)
        fixed, free = (0.0, target) if phase is None else (target * phase.mT, target * (1 - power(phase).sqrt().mT))
        generated = spectrum = self.mel.stft.spectrum(audio).mT
        for _ in range(self.iterations - 1):
            projected = self._with_magnitudes(spectrum, threshold, free).add_(fixed)
            reflected = self._waveform((2 * projected).sub_(spectrum).mT, coverage)
            consistent = self.mel.stft.spectrum(reflected).mT
            spectrum = consistent.add_(spectrum).mul_(RELAXATION).sub_(projected, alpha=2 * RELAXATION - 1)
        result = self._with_magnitudes(spectrum, threshold, free).add_(fixed)
        if self.below:
            result = generated + (result - generated) * self.replaced
        return self._waveform(result.mT, coverage)

    @staticmethod
    def _with_magnitudes(spectrum: Tensor, threshold: Tensor, magnitudes: Tensor) -> Tensor:
        """``spectrum`` with these magnitudes; bins that are weak relative to the root of ``threshold`` get less."""
        return spectrum * power(spectrum).add_(threshold).rsqrt_().mul_(magnitudes)

    def _waveform(self, spectrum: Tensor, coverage: Tensor) -> Tensor:
        """Inverse of ``Stft.spectrum``: (B, n_fft // 2 + 1, L) -> (B, 1, L * hop_length), by least squares."""
        frames = torch.fft.irfft(spectrum.mT, self.mel.config.n_fft).mul_(self.mel.stft.window)
        return self._overlap(frames) / coverage

    def _coverage(self, frames: int) -> Tensor:
        """The sum of the squared windows of L frames at each sample: (1, 1, L * hop_length)."""
        squares = self.mel.stft.window.square()
        if self.overlap is not None:  # every sample is covered by all of its frames
            return squares.unflatten(0, (-1, self.mel.config.hop_length)).sum(0).repeat(frames)[None, None]
        return self._overlap(squares.expand(1, frames, -1)).clamp_min(TINY)

    def _overlap(self, frames: Tensor) -> Tensor:
        """Overlap-add of frames (B, L, n_fft), without the padding: (B, 1, L * hop_length).

        Causal frames are padded only at the start, and the sum from there on, which is complete, is returned.
        """
        hop, length = self.mel.config.hop_length, frames.shape[1]
        parts = frames.unflatten(-1, (-1, hop))
        overlap, padding = parts.shape[2], (self.mel.config.n_fft - hop) // 2
        # in-place sums into slices would become element-wise updates in ONNX
        shifted = [F.pad(parts[:, :, i], (0, 0, i, overlap - 1 - i)) for i in range(overlap)]
        total = reduce(torch.add, shifted)
        if self.overlap is not None:
            complete: Tensor = self.overlap(total.flatten(1)[:, None])
            return complete
        return total.flatten(1)[:, None, padding : padding + length * hop]

    @property
    def delay(self) -> int:
        """The number of samples by which the output is late."""
        return self.overlap.steps if self.overlap is not None and self.iterations else 0

    @property
    def context(self) -> int:
        """The number of frames on each side that an output sample depends on, to 1e-7 of full scale."""
        sides = 2 if self.overlap is not None else 1  # all of it in the past
        overlap = ceil(self.mel.config.n_fft / self.mel.config.hop_length)
        return sides * min(self.iterations * (overlap - 1) + 1, FADED * overlap)
