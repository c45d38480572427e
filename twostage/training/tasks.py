"""Training tasks: they map pairs to loss terms, and define the weights of those terms.

A task computes a term only if its weight is not zero. ``total`` checks that the names of terms and weights agree.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.data.pairs import Pair
from twostage.models.features import LogMel, MelConfig
from twostage.models.restorer import RestorerConfig
from twostage.models.restorer_features import RestorerFeatures
from twostage.training.losses import (
    Intelligibility,
    MultiResolutionStft,
    MultiScaleMel,
    delta_l1,
    frame_lines,
    mel_l1,
    mel_quantile,
    negative_si_sdr,
    ssim_distance,
)
from twostage.utils.errors import ConfigError


class Output(NamedTuple):
    """Loss terms of one batch, and ``fake`` and ``real`` for an adversary if the task supports one.

    They are audio (B, 1, T) if the task outputs audio, and log-mels (B, n_mels, L) if it outputs log-mels.
    """

    terms: dict[str, Tensor]
    fake: Tensor | None = None
    real: Tensor | None = None


Task = Callable[[nn.Module, Pair], Output]


@dataclass(frozen=True)
class RestoringWeights:
    """Weights of the losses of stage one; a loss with weight 0 is not computed."""

    mel: float = 1.0  # L1 of log-mels, or the pinball loss of the quantile
    delta: float = 0.0  # L1 of the slopes of log-mels
    intelligibility: float = 0.0  # one minus the mean of STOI and ESTOI, read off log-mels
    ssim: float = 0.0  # one minus the structural similarity of log-mels
    adv: float = 0.0  # adversarial, with a discriminator of log-mels
    fm: float = 0.0  # feature matching of that discriminator


@dataclass(frozen=True)
class VocodingWeights:
    """Weights of the losses of stage two; the defaults are HiFi-GAN's."""

    mel: float = 45.0  # L1 of log-mels
    multi_mel: float = 0.0  # L1 of log-mels at many resolutions
    stft: float = 0.0  # multi-resolution STFT loss
    intelligibility: float = 0.0  # one minus the mean of STOI and ESTOI, read off log-mels
    frame_lines: float = 0.0  # level in bels of lines at multiples of the frame rate, a buzz
    adv: float = 1.0  # adversarial
    fm: float = 2.0  # feature matching: L1 of what the discriminators make of fake and real


@dataclass(frozen=True)
class FinetuningWeights:
    """Weights of the losses of joint training."""

    mel: float = 45.0  # L1 of log-mels
    multi_mel: float = 0.0  # L1 of log-mels at many resolutions
    stft: float = 0.0  # multi-resolution STFT loss
    intelligibility: float = 0.0  # one minus the mean of STOI and ESTOI, read off log-mels
    frame_lines: float = 0.0  # level in bels of lines at multiples of the frame rate, a buzz
    restored: float = 0.0  # L1 of the restorer's log-mels, so that they stay log-mels
    adv: float = 1.0  # adversarial
    fm: float = 2.0  # feature matching: L1 of what the discriminators make of fake and real


@dataclass(frozen=True)
class EnhancingWeights:
    """Weights of the losses of a one-stage system."""

    wave: float = 0.0  # L1 of samples
    mel: float = 0.0  # L1 of log-mels
    multi_mel: float = 0.0  # L1 of log-mels at many resolutions
    stft: float = 0.0  # multi-resolution STFT loss
    si_sdr: float = 0.0  # negative SI-SDR in dB
    intelligibility: float = 0.0  # one minus the mean of STOI and ESTOI, read off log-mels
    adv: float = 0.0  # adversarial
    fm: float = 0.0  # feature matching: L1 of what the discriminators make of fake and real
    own: dict = field(default_factory=dict)  # the system's own terms by name (see its file); others are unused

    def __post_init__(self) -> None:
        for name, weight in self.own.items():
            if type(weight) not in (int, float):
                raise ConfigError(f"weights.own.{name} is {weight!r}, must be a number")


LossWeights = RestoringWeights | VocodingWeights | FinetuningWeights | EnhancingWeights
ADVERSARIAL = ("adv", "fm")


class Restoring(nn.Module):
    """Stage one: predicts log-mels of clean speech, or a ``quantile`` of them, from log-mels of degraded speech."""

    def __init__(self, restorer: RestorerConfig, weights: RestoringWeights, quantile: float = 0.5) -> None:
        super().__init__()
        self.mel, self.weights, self.quantile = LogMel(restorer.mel), weights, quantile
        self.restorer_features = RestorerFeatures(restorer)
        self.intelligibility = Intelligibility(restorer.mel) if weights.intelligibility else None

    def forward(self, model: nn.Module, pair: Pair) -> Output:
        real, fake = self.mel(pair.clean), model(self.restorer_features(self.mel, pair.degraded)).float()
        terms = {"mel": mel_quantile(fake, real, self.quantile)}
        if self.weights.delta:
            terms["delta"] = delta_l1(fake, real)
        if self.intelligibility:
            terms["intelligibility"] = self.intelligibility(fake, real)
        if self.weights.ssim:
            terms["ssim"] = ssim_distance(fake, real, floor=log(self.mel.config.clamp))
        return Output(terms, fake, real)


class Vocoding(nn.Module):
    """Stage two: generates waveforms from log-mels of clean speech and, with sensor input, from degraded speech.

    Losses on log-mels use ``loss_mel``, whose highest frequency may be above that of ``mel``, the input of the vocoder.
    """

    def __init__(self, mel: MelConfig, weights: VocodingWeights, loss_mel: MelConfig | None = None) -> None:
        super().__init__()
        self.mel, self.waveform = LogMel(mel), WaveformTerms(loss_mel or mel, weights)

    def forward(self, model: nn.Module, pair: Pair) -> Output:
        mel = self.mel(pair.clean)
        hop_length = self.mel.config.hop_length
        fake = model(mel, sensor=pair.degraded[:, :1, : mel.shape[-1] * hop_length]).float()
        real = pair.clean[..., : fake.shape[-1]]
        return Output(self.waveform(fake, real), fake, real)


class Finetuning(nn.Module):
    """Both stages: predicts clean speech from degraded speech via restored log-mels.

    The restorer processes the whole pair, for context, and the vocoder the middle ``frames`` of it. If no weight of the
    restorer is trained, the restorer runs without gradient. ``mel`` is used by the losses on log-mels of audio.
    """

    def __init__(self, mel: MelConfig, weights: FinetuningWeights, frames: int) -> None:
        super().__init__()
        self.waveform, self.weights, self.frames = WaveformTerms(mel, weights), weights, frames

    def forward(self, model: Any, pair: Pair) -> Output:
        trains_restorer = any(p.requires_grad for p in model.restorer.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains_restorer):
            restored = model.restorer(model.restorer_features(model.mel, pair.degraded)).float()
        start = max(0, restored.shape[-1] - self.frames) // 2
        restored_part = restored[..., start : start + self.frames]
        sensor = pair.degraded[:, :1, start * model.hop_length :][..., : restored_part.shape[-1] * model.hop_length]
        fake = model.vocoder(restored_part, sensor=sensor).float()
        real = pair.clean[..., start * model.hop_length :][..., : fake.shape[-1]]
        terms = self.waveform(fake, real)
        if self.weights.restored:
            terms["restored"] = mel_l1(restored, model.mel(pair.clean))
        return Output(terms, fake, real)


class Enhancing(nn.Module):
    """A one-stage system: predicts clean speech from degraded speech.

    If the system has loss terms of its own, ``terms(degraded, clean) -> (audio, terms)`` is called instead of its
    forward.
    """

    def __init__(self, mel: MelConfig, weights: EnhancingWeights) -> None:
        super().__init__()
        self.waveform, self.weights = WaveformTerms(mel, weights), weights

    def forward(self, model: Any, pair: Pair) -> Output:
        if self.weights.own:
            fake, own = model.terms(*pair)
        else:
            fake, own = model(pair.degraded), {}
        fake = fake.float()
        real = pair.clean[..., : fake.shape[-1]]
        terms = self.waveform(fake, real) | {name: term for name, term in own.items() if name in self.weights.own}
        if self.weights.wave:
            terms["wave"] = F.l1_loss(fake, real)
        if self.weights.si_sdr:
            terms["si_sdr"] = negative_si_sdr(fake, real)
        return Output(terms, fake, real)


class WaveformTerms(nn.Module):
    """Content losses of fake and real audio (B, 1, T)."""

    def __init__(self, mel: MelConfig, weights: VocodingWeights | FinetuningWeights | EnhancingWeights) -> None:
        super().__init__()
        self.mel = LogMel(mel)
        self.multi_mel = MultiScaleMel(mel) if weights.multi_mel else None
        self.stft = MultiResolutionStft() if weights.stft else None
        self.intelligibility = Intelligibility(mel) if weights.intelligibility else None
        # the frames of a one-stage system are not those of the mel spectrogram
        self.frame_lines = not isinstance(weights, EnhancingWeights) and bool(weights.frame_lines)

    def forward(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        mels = self.mel(fake), self.mel(real)
        terms = {"mel": mel_l1(*mels)}
        if self.multi_mel:
            terms["multi_mel"] = self.multi_mel(fake, real)
        if self.stft:
            terms["stft"] = self.stft(fake, real)
        if self.intelligibility:
            terms["intelligibility"] = self.intelligibility(*mels)
        if self.frame_lines:
            terms["frame_lines"] = frame_lines(fake, self.mel.config.hop_length, self.mel.config.sample_rate)
        return terms


def named(weights: LossWeights) -> dict[str, float]:
    """Weights by the names of their terms, including those of a system's own."""
    by_name = asdict(weights)
    return by_name | by_name.pop("own", {})


def total(terms: Mapping[str, Tensor], weights: LossWeights, pending: Collection[str] = ()) -> Tensor:
    """The weighted sum of loss terms. ``pending``: weights whose terms are not computed until a later step.

    Raises ConfigError for a term that has no weight, and for a weight other than zero that has no term.
    """
    by_name = named(weights)
    for name in terms:
        if name not in by_name:
            raise ConfigError(f"loss term {name} has no weight; weights has {', '.join(by_name)}")
    for name, weight in by_name.items():
        if weight and name not in terms and name not in pending:
            raise ConfigError(f"weights.{name} is {weight}, but there is no loss term of that name: {', '.join(terms)}")
    return torch.stack([by_name[name] * term for name, term in terms.items()]).sum()
