"""Both stages as one enhancer: the only place that sees the restorer and the vocoder together."""

from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor, nn

from twostage.models.features import LogMel
from twostage.models.restorer import Restorer, RestorerConfig
from twostage.models.restorer_features import Hearing
from twostage.models.vocoder import Vocoder, VocoderConfig
from twostage.nn.streaming import offline
from twostage.utils.errors import ConfigError


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
        return offline(self, audio) if self.causal else self.late(audio)

    def relay(self) -> "Relay":
        """For windows of one signal, in their order."""
        return Relay(self)

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
        return self.hop_length * (self.frames_heard + self.vocoder.context)

    @property
    def frames_heard(self) -> int:
        """Frames of the input, on each side, that a restored frame depends on, at most."""
        return -(-self.config.vocoder.mel.n_fft // self.hop_length) + self.restorer.context


class Made(NamedTuple):
    """What a window has made past its end: restored mels, what was heard, and samples before Griffin-Lim."""

    mel: Tensor
    heard: Tensor
    audio: Tensor


class Relay:
    """Windows of one signal through both stages: every frame is restored once, every sample generated once.

    Griffin-Lim alone goes over its context again. For models that are not causal; those carry their state.
    """

    def __init__(self, model: TwoStage) -> None:
        self._model = model
        self._made: Made | None = None

    def __call__(self, audio: Tensor, skip: int, keep: int) -> Tensor:
        """Samples (B, 1, keep) of ``model(signal)`` that begin ``skip`` behind the start of ``audio`` (B, inputs, T).

        ``audio`` begins at a multiple of ``model.stride`` and holds ``model.context`` on each side, where there is so
        much. The first window may lie anywhere; each that follows begins where the one before it ended, which only of
        the last may be within a hop.
        """
        vocoder, hop, made = self._model.vocoder, self._model.hop_length, self._made
        if made and skip % hop:
            raise ValueError(f"a window begins at {skip}, not at a multiple of {hop}")
        # places are in frames from the start of `audio`; mels are needed further around than samples
        first, end, far, near = skip // hop, ceil((skip + keep) / hop), vocoder.context, vocoder.finish_context
        mels, samples = (first + far, first + near) if made else (max(0, first - far), max(0, first - near))
        mel, heard = self._restored(audio, mels, end + far)
        if made:
            mel, heard = torch.cat([made.mel, mel], -1), torch.cat([made.heard, heard], -1)
            mels -= made.mel.shape[-1]
        sound = self._generated(mel, samples - mels, end + near - mels)
        if made:
            sound = torch.cat([made.audio, sound], -1)
            samples -= made.audio.shape[-1] // hop
        self._made = Made(
            mel[..., max(0, end - far - mels) :].clone(),
            heard[..., max(0, end - far - mels) :].clone(),
            sound[..., max(0, end - near - samples) * hop :].clone(),
        )
        frames = slice(samples - mels, end + near - mels)
        finished = vocoder.finish(sound, mel[..., frames], heard[..., frames])
        return finished[..., skip - samples * hop :][..., :keep]

    def _restored(self, audio: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """``model.restored`` of frames from ``begin`` to ``end``."""
        whole, hop = self._model.restorer.stride, self._model.hop_length
        lead = max(0, begin - self._model.frames_heard) // whole * whole
        mel, heard = self._model.restored(audio[..., lead * hop :])
        return mel[..., begin - lead : end - lead], heard[..., begin - lead : end - lead]

    def _generated(self, mel: Tensor, begin: int, end: int) -> Tensor:
        """Samples of frames from ``begin`` to ``end`` of ``mel``."""
        context, hop = self._model.vocoder.generator_context, self._model.hop_length
        lead = max(0, begin - context)
        sound = self._model.vocoder.generate(mel[..., lead : end + context])
        return sound[..., (begin - lead) * hop : (end - lead) * hop]
