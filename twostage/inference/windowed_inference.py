"""Runs both stages on windows of one signal, equal to the whole signal at once, and computes shared parts only once."""

from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from twostage.models.features import InputSpectra
from twostage.models.two_stage import TwoStage


class Tail(NamedTuple):
    """What a window has computed past its end: restored log-mels, input spectra, and samples before Griffin-Lim."""

    mel: Tensor
    input_spectra: InputSpectra
    audio: Tensor

    def followed_by(self, mel: Tensor, input_spectra: InputSpectra) -> tuple[Tensor, InputSpectra]:
        """The same frames, followed by those of the next window."""
        joined = (torch.cat(pair, -1) for pair in zip(self.input_spectra[:2], input_spectra[:2], strict=True))
        return torch.cat([self.mel, mel], -1), InputSpectra(*joined)


class WindowedInference:
    """Processes the windows of one signal in order: every frame is restored once, and every sample is generated once.

    Only Griffin-Lim processes its context again, and so does the encoder of a generator with sensor input. This is for
    models that are not causal; causal ones carry their state.
    """

    def __init__(self, model: TwoStage) -> None:
        self._model = model
        self._tail: Tail | None = None

    def __call__(self, audio: Tensor, skip: int, keep: int) -> Tensor:
        """Samples (B, 1, keep) of ``model(signal)`` that begin ``skip`` behind the start of ``audio`` (B, inputs, T).

        ``audio`` begins at a multiple of ``model.stride`` and holds ``model.context`` on each side, where there is so
        much. The first window may lie anywhere; each that follows begins where the one before it ended, which only of
        the last may be within a hop.
        """
        vocoder, hop, tail = self._model.vocoder, self._model.hop_length, self._tail
        if tail and skip % hop:
            raise ValueError(f"a window begins at {skip}, not at a multiple of {hop}")
        # places are in frames from the start of `audio`; mels are needed further around than samples
        first, end, far, near = skip // hop, ceil((skip + keep) / hop), vocoder.context, vocoder.finish_context
        mels, samples = (first + far, first + near) if tail else (max(0, first - far), max(0, first - near))
        mel, input_spectra = self._restored(audio, mels, end + far)
        if tail:
            mel, input_spectra = tail.followed_by(mel, input_spectra)
            mels -= tail.mel.shape[-1]
        sound = self._generated(mel, audio[:, :1, mels * hop :], samples - mels, end + near - mels)
        if tail:
            sound = torch.cat([tail.audio, sound], -1)
            samples -= tail.audio.shape[-1] // hop
        past_end = max(0, end - far - mels)
        self._tail = Tail(
            mel[..., past_end:].clone(),
            input_spectra.each(lambda spectrum: spectrum[..., past_end:].clone()),
            sound[..., max(0, end - near - samples) * hop :].clone(),
        )
        begin, stop = samples - mels, end + near - mels
        finished = vocoder.finish(
            sound, mel[..., begin:stop], input_spectra.each(lambda spectrum: spectrum[..., begin:stop])
        )
        return finished[..., skip - samples * hop :][..., :keep]

    def _restored(self, audio: Tensor, begin: int, end: int) -> tuple[Tensor, InputSpectra]:
        """Log-mels of frames from ``begin`` to ``end``, restored, and the input spectra of bone for the vocoder."""
        whole, hop = self._model.restorer.stride, self._model.hop_length
        lead = max(0, begin - self._model.restorer_context) // whole * whole
        input_spectra = self._model.mel.stft.input_spectra(audio[..., lead * hop :])
        mel = self._model.restored(input_spectra)
        bone = input_spectra._replace(air=None).each(lambda spectrum: spectrum[..., begin - lead : end - lead])
        return mel[..., begin - lead : end - lead], bone

    def _generated(self, mel: Tensor, sensor: Tensor, begin: int, end: int) -> Tensor:
        """Samples of the frames from ``begin`` to ``end`` of ``mel``; ``sensor`` starts at the same place."""
        context, hop = self._model.vocoder.generator_context, self._model.hop_length
        lead = max(0, begin - context)
        sound = self._model.vocoder.generate(mel[..., lead : end + context], sensor[..., lead * hop :])
        return sound[..., (begin - lead) * hop : (end - lead) * hop]
