"""A small causal model, its offline output, and sound devices without hardware, for tests of streaming."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from twostage.audio.highpass import highpass
from twostage.models.features import MelConfig
from twostage.models.restorer import RestorerConfig
from twostage.models.two_stage import TwoStage, TwoStageConfig
from twostage.models.vocoder import VocoderConfig
from twostage.nn.streaming import continued

CAUSAL_MEL = MelConfig(n_fft=768, win_length=768, causal=True)
SMALL_VOCODER = {
    "upsample_rates": (16, 16),
    "upsample_kernel_sizes": (32, 32),
    "upsample_initial_channel": 16,
    "resblock_kernel_sizes": (3, 7),
    "resblock_dilation_sizes": ((1, 3), (1, 3)),
}


def causal_model(
    time_strides: tuple[int, ...] = (1, 1),
    griffin_lim: int = 1,
    look_ahead: int = 0,
    vocoder_look_ahead: int = 0,
    resynthesis: bool = False,
) -> TwoStage:
    """A small causal two-stage model with random weights, the same at every call."""
    torch.manual_seed(0)
    restorer = RestorerConfig(
        CAUSAL_MEL,
        channels=(4, 8, 8),
        time_strides=time_strides,
        band_strides=(4, 2),
        dilations=(1, 2),
        look_ahead=look_ahead,
    )
    phase_below = 4000.0 if griffin_lim else 0.0
    vocoder = VocoderConfig(
        CAUSAL_MEL,
        **SMALL_VOCODER,  # type: ignore[arg-type]
        griffin_lim=griffin_lim,
        input_phase_below=phase_below,
        look_ahead=vocoder_look_ahead,
        sensor_input=resynthesis,
        resynthesis=resynthesis,
    )
    model = TwoStage(TwoStageConfig(restorer, vocoder)).eval().fold()
    for weight in model.restorer.conv_post.parameters():  # with initial weights, the mask is almost zero
        nn.init.normal_(weight, 0, 0.1)
    return model


def noise(samples: int, seed: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def offline(model: TwoStage, audio: np.ndarray) -> np.ndarray:
    """The high-passed output for all of the audio at once, including a last, incomplete hop."""
    inputs = torch.from_numpy(highpass(audio, model.sample_rate, causal=model.causal))[None, None]
    with torch.no_grad():
        if not model.causal:
            return model(nn.functional.pad(inputs, (0, -len(audio) % model.hop_length)))[0, 0, : len(audio)].numpy()
        needed = -(-(len(audio) + model.delay) // model.stride) * model.stride
        delayed = model.forward_chunk(continued(inputs, needed - len(audio)))
        return delayed[0, 0, model.delay : model.delay + len(audio)].numpy()


class FakeDevices(ModuleType):
    """The part of sounddevice that is used: a stream passes the microphone's hops to the callback as it begins.

    A device that is ``unplugged`` stops after them. Names that are not in ``names`` are unknown.
    """

    class PortAudioError(Exception):
        pass

    def __init__(self, microphone: np.ndarray, rate: int = 16000, unplugged: bool = False) -> None:
        super().__init__("sounddevice")
        self.microphone, self.rate, self.played = microphone, rate, list[np.ndarray]()
        self.unplugged = unplugged

    @contextmanager
    def Stream(
        self, *, callback: Any, finished_callback: Any, samplerate: int, blocksize: int, device: Any, **options: Any
    ) -> Iterator[Any]:
        if any(isinstance(name, str) for name in device):
            raise ValueError(f"No input/output device matching {device[0]!r}")
        if samplerate != self.rate:
            raise self.PortAudioError("Invalid sample rate")
        assert (options["channels"], options["dtype"]) == ((1, 1), "float32")  # inputs and outputs
        for i in range(0, len(self.microphone), blocksize):
            self._hop(callback, self.microphone[i : i + blocksize], i == 0)
        if self.unplugged:
            finished_callback()
        yield SimpleNamespace(latency=(0.01, 0.02))  # microphone and loudspeaker

    def _hop(self, callback: Any, recorded: np.ndarray, first: bool) -> None:
        played = np.full((len(recorded), 1), np.nan, np.float32)
        callback(recorded[:, None], played, len(recorded), None, "underflow" if first else "")
        self.played.append(played[:, 0])
