"""Runs both stages on windows of one signal; the output equals that for the whole signal, and nothing runs twice."""

from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from twostage.models.features import InputSpectra
from twostage.models.two_stage import TwoStage


class Tail(NamedTuple):
    """Results of a window beyond its end: restored log-mels, input spectra, and samples before Griffin-Lim."""

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
        """Samples (B, 1, keep) of ``model(signal)`` that begin ``skip`` samples after the start of ``audio``.

        ``audio`` (B, inputs, T) begins at a multiple of ``model.stride`` and includes ``model.context`` on each side,
        except at the ends of the signal. The first window may begin anywhere; each of the others begins where its
        predecessor ended. Only the last may end within a hop.
        """
        vocoder, hop, tail = self._model.vocoder, self._model.hop_length, self._tail
        if tail and skip % hop:
            raise ValueError(f"a window begins at {skip}, not at a multiple of {hop}")
        # positions are in frames from the start of `audio`; mels need more context than samples
        first, end = skip // hop, ceil((skip + keep) / hop)
        mel_context, sample_context = vocoder.context, vocoder.finish_context
        if tail:
            mel_start, sample_start = first + mel_context, first + sample_context
        else:
            mel_start, sample_start = max(0, first - mel_context), max(0, first - sample_context)
        mel, input_spectra = self._restored(audio, mel_start, end + mel_context)
        if tail:
            mel, input_spectra = tail.followed_by(mel, input_spectra)
            mel_start -= tail.mel.shape[-1]
        begin, stop = sample_start - mel_start, end + sample_context - mel_start
        generated = self._generated(mel, input_spectra, audio[:, :1, mel_start * hop :], begin, stop)
        if tail:
            generated = torch.cat([tail.audio, generated], -1)
            sample_start -= tail.audio.shape[-1] // hop
        past_end = max(0, end - mel_context - mel_start)
        self._tail = Tail(
            mel[..., past_end:].clone(),
            input_spectra.each(lambda spectrum: spectrum[..., past_end:].clone()),
            generated[..., max(0, end - sample_context - sample_start) * hop :].clone(),
        )
        begin, stop = sample_start - mel_start, end + sample_context - mel_start
        finished = vocoder.finish(
            generated, mel[..., begin:stop], input_spectra.each(lambda spectrum: spectrum[..., begin:stop])
        )
        return finished[..., skip - sample_start * hop :][..., :keep]

    def _restored(self, audio: Tensor, begin: int, end: int) -> tuple[Tensor, InputSpectra]:
        """Restored log-mels of the frames from ``begin`` to ``end``, and the bone input spectra for the vocoder."""
        stride, hop = self._model.restorer.stride, self._model.hop_length
        lead = max(0, begin - self._model.restorer_context) // stride * stride
        input_spectra = self._model.mel.stft.input_spectra(audio[..., lead * hop :])
        mel = self._model.restored(input_spectra)
        bone = input_spectra._replace(air=None).each(lambda spectrum: spectrum[..., begin - lead : end - lead])
        return mel[..., begin - lead : end - lead], bone

    def _generated(self, mel: Tensor, input_spectra: InputSpectra, sensor: Tensor, begin: int, end: int) -> Tensor:
        """Samples for the frames from ``begin`` to ``end`` of ``mel``; the other inputs start at the same position."""
        context, hop = self._model.vocoder.generator_context, self._model.hop_length
        lead = max(0, begin - context)
        frames = slice(lead, end + context)
        generated = self._model.vocoder.generate(
            mel[..., frames], input_spectra.each(lambda spectrum: spectrum[..., frames]), sensor[..., lead * hop :]
        )
        return generated[..., (begin - lead) * hop : (end - lead) * hop]
