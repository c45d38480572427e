"""The input features of a restorer: the log-mels of each microphone, and the additional features of its settings."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from twostage.models.features import LogMel
from twostage.models.pitch import Pitch
from twostage.models.restorer import RestorerConfig


class RestorerFeatures(nn.Module):
    """Audio (B, inputs, T), bone first -> (B, inputs * n_mels + rows of features, L), as ``Restorer`` takes it.

    Additional features are computed from the bone channel, which picks up only the wearer. ``mel`` is an argument
    because it holds the state of the stream and the vocoder uses the same spectrograms.
    """

    def __init__(self, config: RestorerConfig) -> None:
        super().__init__()
        self.inputs = config.inputs
        self.pitch = Pitch(config.mel) if "pitch" in config.features else None

    def forward(self, mel: LogMel, audio: Tensor) -> Tensor:
        rows = torch.cat(audio.split(1, 1))  # channel by channel
        return self.of(mel, mel.stft.spectrum(rows).chunk(self.inputs, -3))

    def of(self, mel: LogMel, spectra: Sequence[Tensor]) -> Tensor:
        """The features for the spectrogram of each channel, as ``mel.stft.spectrum`` returns it."""
        rows = [mel.of(spectrum) for spectrum in spectra]
        return torch.cat(rows if self.pitch is None else [*rows, self.pitch(spectra[0])], 1)
