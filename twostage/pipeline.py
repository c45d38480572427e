"""Both stages as one enhancer: the only place that sees the restorer and the vocoder together."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from twostage.errors import ConfigError
from twostage.features import LogMel
from twostage.restorer import Restorer, RestorerConfig
from twostage.vocoder import Vocoder, VocoderConfig


@dataclass(frozen=True)
class TwoStageConfig:
    """The two stages' settings; their mel settings must be the same."""

    restorer: RestorerConfig = field(default_factory=RestorerConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)

    def __post_init__(self) -> None:
        difference = self.restorer.mel.difference(self.vocoder.mel)
        if difference:
            raise ConfigError(f"the restorer and the vocoder do not fit together: {difference}")


class TwoStage(nn.Module):
    """Bone-conducted audio (B, 1, T) -> restored audio (B, 1, T // hop_length * hop_length)."""

    def __init__(self, config: TwoStageConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = LogMel(config.vocoder.mel)
        self.restorer = Restorer(config.restorer)
        self.vocoder = Vocoder(config.vocoder)

    def forward(self, audio: Tensor) -> Tensor:
        return self.vocoder(self.restorer(self.mel(audio)), audio)

    def window(self, audio: Tensor, skip: int, keep: int) -> Tensor:
        """``forward(audio)[..., skip : skip + keep]``, with stage two, most of the work, run on what it needs alone."""
        mel, hop = self.restorer(self.mel(audio)), self.hop_length
        first = max(0, skip // hop - self.vocoder.context)
        last = -(-(skip + keep) // hop) + self.vocoder.context
        skip -= first * hop
        return self.vocoder(mel[..., first:last], audio[..., first * hop : last * hop])[..., skip : skip + keep]

    def fold(self) -> "TwoStage":
        """Fold weight normalisation away for inference; the output stays the same."""
        self.restorer.fold()
        self.vocoder.fold()
        return self

    @property
    def sample_rate(self) -> int:
        return self.config.vocoder.mel.sample_rate

    @property
    def hop_length(self) -> int:
        return self.config.vocoder.mel.hop_length

    @property
    def stride(self) -> int:
        """Samples that a window of a longer signal must begin at a multiple of."""
        return self.hop_length * self.restorer.stride

    @property
    def context(self) -> int:
        """Samples that an output sample depends on, on each side, at most."""
        analysis = -(-self.config.vocoder.mel.n_fft // self.hop_length)
        return self.hop_length * (analysis + self.restorer.context + self.vocoder.context)
