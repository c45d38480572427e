"""Both stages as one enhancer: the only place that sees the restorer and the vocoder together."""

from dataclasses import dataclass, field
from math import ceil

from torch import Tensor, nn
from torch.nn import functional as F

from twostage.errors import ConfigError
from twostage.features import LogMel
from twostage.hearing import Hearing
from twostage.restorer import Restorer, RestorerConfig
from twostage.vocoder import Vocoder, VocoderConfig


@dataclass(frozen=True)
class TwoStageConfig:
    """The two stages' settings; their mel settings must be the same."""

    restorer: RestorerConfig = field(default_factory=RestorerConfig)  # stage one
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)  # stage two

    def __post_init__(self) -> None:
        difference = self.restorer.mel.difference(self.vocoder.mel)
        if difference:
            raise ConfigError(f"the restorer and the vocoder do not fit together: {difference}")


class TwoStage(nn.Module):
    """Bone-conducted audio (B, 1, T) -> restored audio (B, 1, T // hop_length * hop_length).

    Of a restorer with two inputs, bone and air: (B, 2, T) -> (B, 1, T // hop_length * hop_length).
    """

    def __init__(self, config: TwoStageConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = LogMel(config.vocoder.mel)
        self.hearing = Hearing(config.restorer)
        self.restorer = Restorer(config.restorer)
        self.vocoder = Vocoder(config.vocoder)

    def forward(self, audio: Tensor) -> Tensor:
        return self.window(audio, 0, audio.shape[-1] // self.hop_length * self.hop_length)

    def window(self, audio: Tensor, skip: int, keep: int) -> Tensor:
        """``forward(audio)[..., skip : skip + keep]``, with stage two, most of the work, run on what it needs alone."""
        hop, context = self.hop_length, self.vocoder.context
        mel, heard = self.restored(F.pad(audio, (0, self._missing(audio.shape[-1]))))
        frames = slice(max(0, skip // hop - context), ceil((skip + keep + self.delay) / hop) + context)
        start = skip + self.delay - frames.start * hop
        return self.vocoder.late(mel[..., frames], heard[..., frames])[..., start : start + keep]

    def late(self, audio: Tensor) -> Tensor:
        """A causal model's next piece of a stream, a multiple of ``stride`` long, ``delay`` samples late.

        Calls follow each other within ``nn.streaming.streaming``.
        """
        return self.vocoder.late(*self.restored(audio))

    def restored(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """The restored log-mel (B, n_mels, L), and what was heard of the bone channel, for the vocoder."""
        spectra = self.mel.stft.compressed(audio)
        bone, _, *air = spectra.chunk(1 + self.inputs, -3)
        return self.restorer(self.hearing.of(self.mel, [bone, *air])), spectra.narrow(-3, 0, 2 * audio.shape[0])

    def _missing(self, length: int) -> int:
        """Zeros that a causal model's audio is to be followed by, for its end to come out as that of a stream."""
        return self.delay + -(length // self.hop_length * self.hop_length) % self.stride if self.causal else 0

    def fold(self) -> "TwoStage":
        """Fold weight normalisation away for inference; the output stays the same."""
        self.restorer.fold()
        self.vocoder.fold()
        return self

    @property
    def causal(self) -> bool:
        """Whether ``late`` can take a stream in pieces."""
        return self.config.vocoder.mel.causal

    @property
    def inputs(self) -> int:
        """Channels of audio: bone, or bone and air."""
        return self.config.restorer.inputs

    @property
    def delay(self) -> int:
        """Samples by which what ``late`` gives is late."""
        return self.vocoder.delay

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
    def latency(self) -> int:
        """Samples that an output sample waits for, from its own on."""
        return self.stride + (self.delay if self.causal else self.context)

    @property
    def context(self) -> int:
        """Samples that an output sample depends on, on each side, at most."""
        analysis = -(-self.config.vocoder.mel.n_fft // self.hop_length)
        return self.hop_length * (analysis + self.restorer.context + self.vocoder.context)
