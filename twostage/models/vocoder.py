"""Stage two: the HiFi-GAN generator, from log-mels to a waveform.

Source: Kong, Kim and Bae, "HiFi-GAN: Generative Adversarial Networks for Efficient and High Fidelity Speech Synthesis",
NeurIPS 2020, section 2.2 and appendix A.1. Module names are those of the authors' checkpoints. With ``sensor_input``
the sensor's waveform is an additional input (``models/sensor_encoder.py``), or, with ``resynthesis``, the log-mels'
magnitudes with its phase.
"""

from dataclasses import dataclass, field, replace
from functools import reduce
from math import ceil, inf, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.models.features import InputSpectra, MelConfig
from twostage.models.griffinlim import GriffinLim
from twostage.models.resblocks import RESBLOCKS, SLOPE
from twostage.models.sensor_encoder import SensorEncoder
from twostage.nn.layers import Conv1d, ConvTranspose1d, fold_weight_norm, weight_norm
from twostage.nn.streaming import DelayLine, continued
from twostage.utils.errors import ConfigError

LAST_SLOPE = 0.01  # before the output convolution: torch's default, as in the authors' code; their weights require it


@dataclass(frozen=True)
class VocoderConfig:
    """Sizes of a generator.

    With ``mel.causal``, a sample depends on the frames up to its own, and on ``look_ahead`` later ones, for which a
    stream waits; Griffin-Lim is 0 or 1. All frames that contain a sample are available with a ``look_ahead`` of
    ``n_fft / hop_length - 1``.
    """

    mel: MelConfig = field(default_factory=MelConfig)  # must equal the settings of the restorer
    upsample_rates: tuple[int, ...] = (8, 8, 2, 2)  # of each level; their product is mel.hop_length
    upsample_kernel_sizes: tuple[int, ...] = (16, 16, 4, 4)  # of each level: its rate plus an even number
    upsample_initial_channel: int = 256  # channels before the first level; each level halves them
    resblock: int = 1  # type in the paper: 1 (two convolutions per dilation) or 2 (one)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7)  # of the residual blocks, whose outputs are averaged at each level
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5))  # of each residual block
    fmax_for_loss: float | None = None  # Hz, upper limit of the log-mels in losses; null: half the sample rate
    sensor_input: bool = False  # the generator also takes the sensor's waveform; see data.sensors, data.silent_prob
    resynthesis: bool = False  # with sensor_input: the encoder takes the log-mels' magnitudes, with the sensor's phase
    look_ahead: int = 0  # frames of the future that a sample depends on, with mel.causal and without Griffin-Lim
    griffin_lim: int = 0  # iterations applied to the output, except in training; 0: the paper's vocoder
    griffin_lim_below: float = 0.0  # Hz, below which its output replaces the generator's; 0: in the whole band
    input_phase_below: float = 0.0  # Hz, below which it takes phase and harmonics from the input; 0: nothing

    def __post_init__(self) -> None:
        sizes = (*self.upsample_rates, *self.upsample_kernel_sizes, *self.resblock_kernel_sizes)
        sizes += sum(self.resblock_dilation_sizes, ())
        if min(*sizes, self.upsample_initial_channel) < 1 or not all(self.resblock_dilation_sizes):
            raise ConfigError("vocoder: rates, kernel sizes, dilations and channels must be at least 1")
        if prod(self.upsample_rates) != self.mel.hop_length:
            raise ConfigError(
                f"vocoder.upsample_rates multiply to {prod(self.upsample_rates)}, "
                f"mel.hop_length is {self.mel.hop_length}"
            )
        if len(self.upsample_kernel_sizes) != len(self.upsample_rates):
            raise ConfigError("vocoder.upsample_kernel_sizes and vocoder.upsample_rates differ in length")
        for rate, kernel_size in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            if kernel_size < rate or (kernel_size - rate) % 2:
                raise ConfigError(
                    f"vocoder.upsample_kernel_sizes: {kernel_size} must be its rate {rate} plus an even number"
                )
        if len(self.resblock_dilation_sizes) != len(self.resblock_kernel_sizes):
            raise ConfigError("vocoder.resblock_dilation_sizes and vocoder.resblock_kernel_sizes differ in length")
        if any(kernel_size % 2 == 0 for kernel_size in self.resblock_kernel_sizes):
            raise ConfigError(f"vocoder.resblock_kernel_sizes must be odd: {self.resblock_kernel_sizes}")
        if self.fmax_for_loss is not None and not self.mel.fmin < self.fmax_for_loss <= self.mel.sample_rate / 2:
            raise ConfigError(
                f"vocoder.fmax_for_loss is {self.fmax_for_loss}, must lie above mel.fmin, {self.mel.fmin}, and at most "
                f"at half of mel.sample_rate, {self.mel.sample_rate / 2}"
            )
        if self.look_ahead < 0 or (self.look_ahead and (not self.mel.causal or self.griffin_lim)):
            raise ConfigError(
                f"vocoder.look_ahead is {self.look_ahead}, must be 0, or positive with mel.causal and griffin_lim 0"
            )
        if self.resynthesis and not self.sensor_input:
            raise ConfigError("vocoder.resynthesis needs vocoder.sensor_input")
        complete = self.mel.n_fft // self.mel.hop_length - 1  # the frames for which a resynthesis waits
        if self.resynthesis and self.mel.causal and self.look_ahead != complete:
            raise ConfigError(
                f"vocoder.look_ahead is {self.look_ahead}, must be mel.n_fft / mel.hop_length - 1, {complete}, "
                "with mel.causal and resynthesis"
            )
        if self.griffin_lim < 0:
            raise ConfigError(f"vocoder.griffin_lim is {self.griffin_lim}, must not be negative")
        if self.griffin_lim > 1 and self.mel.causal:
            raise ConfigError(f"vocoder.griffin_lim is {self.griffin_lim}, must be 0 or 1 with mel.causal")
        for name in ("griffin_lim_below", "input_phase_below"):
            frequency = getattr(self, name)
            if not frequency >= 0 or (frequency and not self.griffin_lim):
                raise ConfigError(f"vocoder.{name} is {frequency}, must be 0, or positive with griffin_lim")
        if self.resblock not in RESBLOCKS:
            raise ConfigError(f"vocoder.resblock is {self.resblock}, must be 1 or 2")
        if self.upsample_initial_channel % 2 ** len(self.upsample_rates):
            raise ConfigError(
                f"vocoder.upsample_initial_channel is {self.upsample_initial_channel}, "
                f"must be divisible by {2 ** len(self.upsample_rates)}"
            )

    @property
    def mel_of_losses(self) -> MelConfig:
        """The settings of the log-mels in a training's losses: those of ``mel`` up to ``fmax_for_loss``."""
        return replace(self.mel, fmax=self.fmax_for_loss or self.mel.sample_rate / 2)


class Vocoder(nn.Module):
    """HiFi-GAN generator: (B, n_mels, L) log-mels -> (B, 1, L * hop_length) audio in [-1, 1]."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config, causal = config, config.mel.causal
        channels = [config.upsample_initial_channel // 2**i for i in range(len(config.upsample_rates) + 1)]
        blocks = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))
        self.conv_pre = weight_norm(Conv1d(config.mel.n_mels, channels[0], 7, causal=causal))
        self.ups = nn.ModuleList(
            weight_norm(ConvTranspose1d(wide, narrow, kernel_size, rate, causal=causal))
            for wide, narrow, kernel_size, rate in zip(
                channels, channels[1:], config.upsample_kernel_sizes, config.upsample_rates, strict=False
            )
        )
        # one flat list, level by level: the order of the blocks in published checkpoints
        self.resblocks = nn.ModuleList(
            RESBLOCKS[config.resblock](c, k, tuple(d), causal) for c in channels[1:] for k, d in blocks
        )
        self.conv_post = weight_norm(Conv1d(channels[-1], 1, 7, causal=causal))
        self.encoder = None
        if config.sensor_input:
            self.encoder = SensorEncoder(channels, config.upsample_rates, config.upsample_kernel_sizes, causal=causal)
        self.resynthesis = GriffinLim(config.mel, 1, input_phase_below=inf) if config.resynthesis else None
        # short kernels at the rate of the samples need the waveform in step with the output, as a resynthesis is
        delayed = config.look_ahead * config.mel.hop_length if config.sensor_input and not config.resynthesis else 0
        self.sensor_delay = DelayLine(delayed) if delayed else None
        self.griffin_lim = None
        if config.griffin_lim:
            self.griffin_lim = GriffinLim(
                config.mel, config.griffin_lim, config.input_phase_below, config.griffin_lim_below
            )

    def forward(self, mel: Tensor, input_spectra: InputSpectra | None = None, sensor: Tensor | None = None) -> Tensor:
        """``input_spectra``: the spectra of the input before restoration, for Griffin-Lim and ``resynthesis``.

        ``sensor`` (B, 1, L * hop_length): the waveform of the input, for a generator with ``sensor_input``; None is
        silence. A resynthesis without ``input_spectra`` uses those of ``sensor``. In training, the last ``look_ahead``
        frames give no samples, because their future is unknown.
        """
        if not self.delay or not mel.shape[-1]:
            return self.forward_chunk(mel, input_spectra, sensor)
        if self.training:
            return self.forward_chunk(mel, input_spectra, sensor)[..., self.delay :]
        frames = self.delay // self.config.mel.hop_length  # that complete the last samples
        mel = F.pad(mel, (0, frames), mode="replicate")  # padding with silence would fade them out
        input_spectra = (
            None if input_spectra is None else input_spectra.each(lambda spectrum: F.pad(spectrum, (0, frames)))
        )
        sensor = None if sensor is None else continued(sensor, self.delay)
        return self.forward_chunk(mel, input_spectra, sensor)[..., self.delay :]

    def forward_chunk(
        self, mel: Tensor, input_spectra: InputSpectra | None = None, sensor: Tensor | None = None
    ) -> Tensor:
        """Process the next chunk of a stream, frames as in ``forward``; the output is ``delay`` samples late."""
        return self.finish(self.generate(mel, input_spectra, sensor), mel, input_spectra)

    def generate(self, mel: Tensor, input_spectra: InputSpectra | None = None, sensor: Tensor | None = None) -> Tensor:
        """The output of the generator alone, ``look_ahead`` frames late; the arguments are those of ``forward``."""
        x = self.conv_pre(mel.to(next(self.conv_pre.parameters()).dtype))
        skip, *skips = self._skips(mel, input_spectra, sensor)
        x = x if skip is None else x + skip
        for up, blocks, skip in zip(self.ups, self._levels(), skips, strict=True):
            x = up(F.leaky_relu_(x, SLOPE))
            x = x if skip is None else x + skip
            x = reduce(Tensor.add_, (block(x) for block in blocks)).div_(len(blocks))
        return torch.tanh(self.conv_post(F.leaky_relu_(x, LAST_SLOPE)).float())

    def _skips(
        self, mel: Tensor, input_spectra: InputSpectra | None, sensor: Tensor | None
    ) -> list[Tensor] | list[None]:
        """The activations of the encoder for each rate, from the frame rate upward; None each without an encoder."""
        if self.encoder is None:
            return [None] * (1 + len(self.ups))
        samples = mel.shape[-1] * self.config.mel.hop_length
        sensor = mel.new_zeros(mel.shape[0], 1, samples) if sensor is None else sensor[..., :samples]
        if self.resynthesis is not None:
            spectra = input_spectra or self.resynthesis.mel.stft.input_spectra(sensor)
            sensor = self.resynthesis.from_input_phase(mel, spectra)
        elif self.sensor_delay is not None:
            sensor = self.sensor_delay(sensor)
        skips: list[Tensor] = self.encoder(sensor)
        return skips

    def finish(self, audio: Tensor, mel: Tensor, input_spectra: InputSpectra | None) -> Tensor:
        """The output of ``generate`` for ``mel``, after Griffin-Lim, if it is used and the model is not in training."""
        return self.griffin_lim(audio, mel, input_spectra) if self.griffin_lim and not self.training else audio

    def _levels(self) -> list[list[nn.Module]]:
        width = len(self.config.resblock_kernel_sizes)
        blocks = list(self.resblocks)
        return [blocks[i : i + width] for i in range(0, len(blocks), width)]

    def fold(self) -> "Vocoder":
        """Fold weight normalization away for inference; the output stays the same."""
        return fold_weight_norm(self)

    @property
    def delay(self) -> int:
        """The number of samples by which ``forward_chunk`` is late: by Griffin-Lim or by ``look_ahead`` frames."""
        if self.griffin_lim:
            return 0 if self.training else self.griffin_lim.delay
        return self.config.look_ahead * self.config.mel.hop_length

    @property
    def context(self) -> int:
        """The largest number of frames, of mel and sensor waveform, on each side that an output sample depends on."""
        return self.generator_context + self.finish_context

    @property
    def finish_context(self) -> int:
        """The largest number of frames on each side that ``finish`` depends on."""
        return self.griffin_lim.context if self.griffin_lim else 0

    @property
    def generator_context(self) -> int:
        """The largest number of frames on each side that ``generate`` depends on."""
        config, rate, frames = self.config, 1, 3.0
        if self.encoder is not None:  # its receptive field is larger than that of ``conv_pre``
            frames = self.encoder.receptive_field
        widest = max(
            RESBLOCKS[config.resblock].receptive_field(k, tuple(d))
            for k, d in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        )
        for up, kernel_size in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            frames += kernel_size / (2 * up) / rate
            rate *= up
            frames += widest / rate
        frames = (frames + 3 / rate) * (2 if config.mel.causal else 1)  # if causal, all of them in the past
        return ceil(frames) + (self.resynthesis.context if self.resynthesis else 0)
