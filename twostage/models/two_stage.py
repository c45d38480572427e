"""Both stages as one enhancer: the only module that combines the restorer and the vocoder."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from twostage.models.enhancer import EnhancerConfig, StreamingModule
from twostage.models.features import InputSpectra, LogMel
from twostage.models.restorer import Restorer, RestorerConfig
from twostage.models.restorer_features import RestorerFeatures
from twostage.models.vocoder import Vocoder, VocoderConfig
from twostage.nn.streaming import DelayLine
from twostage.utils.errors import ConfigError


@dataclass(frozen=True)
class TwoStageConfig(EnhancerConfig):
    """The settings of the two stages; their mel settings must be equal."""

    restorer: RestorerConfig = field(default_factory=RestorerConfig)  # stage one
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)  # stage two

    def __post_init__(self) -> None:
        difference = self.restorer.mel.difference(self.vocoder.mel)
        if difference:
            raise ConfigError(f"the restorer and the vocoder do not fit together: {difference}")

    @property
    def inputs(self) -> int:
        """The number of input channels of the restorer: bone, or bone and air."""
        return self.restorer.inputs


class InputDelays(nn.Module):
    """Delays the input of the vocoder by the ``frames`` that the restorer looks ahead."""

    def __init__(self, frames: int, hop_length: int) -> None:
        super().__init__()
        self.audio = DelayLine(frames * hop_length)
        self.bone, self.compressed = DelayLine(frames), DelayLine(frames)

    def forward(self, audio: Tensor, input_spectra: InputSpectra) -> tuple[Tensor, InputSpectra]:
        spectra = InputSpectra(self.bone(input_spectra.bone), self.compressed(input_spectra.compressed))
        return self.audio(audio[:, :1]), spectra


class TwoStage(StreamingModule):
    """Bone-conducted audio (B, 1, T) -> restored audio (B, 1, T // hop_length * hop_length).

    If the restorer has two inputs, bone and air: (B, 2, T) -> (B, 1, T // hop_length * hop_length).
    """

    config: TwoStageConfig

    def __init__(self, config: TwoStageConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = LogMel(config.vocoder.mel)
        self.restorer_features = RestorerFeatures(config.restorer)
        self.restorer = Restorer(config.restorer)
        look_ahead = config.restorer.look_ahead
        self.delays = InputDelays(look_ahead, self.hop_length) if look_ahead else None
        self.vocoder = Vocoder(config.vocoder)

    def forward(self, audio: Tensor) -> Tensor:
        # a restorer that looks ahead pads to a multiple of its stride itself, by repeating the last frame
        return super().forward(audio) if self.causal else self.forward_chunk(audio)

    def forward_chunk(self, audio: Tensor) -> Tensor:
        """Process the next chunk of a stream, a multiple of ``stride`` long; the output is ``delay`` samples late.

        Within ``nn.streaming.streaming``, calls continue one stream. If the model is not causal, the chunk is the whole
        signal.
        """
        input_spectra = self.mel.stft.input_spectra(audio)
        restored = self.restored(input_spectra)
        if self.delays is not None:
            audio, input_spectra = self.delays(audio, input_spectra)
        return self.vocoder.forward_chunk(restored, input_spectra, audio[:, :1])

    def restored(self, input_spectra: InputSpectra) -> Tensor:
        """The restored log-mel (B, n_mels, L) of a chunk, ``restorer.look_ahead`` frames late."""
        return self.restorer.forward_chunk(self.restorer_features.of(self.mel, input_spectra.channels))

    @property
    def causal(self) -> bool:
        """Whether ``forward_chunk`` can process a stream in chunks."""
        return self.config.vocoder.mel.causal

    @property
    def inputs(self) -> int:
        """The number of channels of audio: bone, or bone and air."""
        return self.config.restorer.inputs

    @property
    def delay(self) -> int:
        """The number of samples by which the output of ``forward_chunk`` is late."""
        return self.vocoder.delay + self.hop_length * self.config.restorer.look_ahead

    @property
    def sample_rate(self) -> int:
        return self.config.vocoder.mel.sample_rate

    @property
    def hop_length(self) -> int:
        return self.config.vocoder.mel.hop_length

    @property
    def stride(self) -> int:
        """Windows of a longer signal begin at multiples of this number of samples."""
        return self.hop_length * self.restorer.stride

    @property
    def context(self) -> int:
        """The largest number of samples on each side that an output sample depends on."""
        return self.hop_length * (self.restorer_context + self.vocoder.context)

    @property
    def restorer_context(self) -> int:
        """The largest number of input frames on each side that a restored frame depends on."""
        return -(-self.config.vocoder.mel.n_fft // self.hop_length) + self.restorer.context
