"""The encoder of the sensor's waveform: from audio to activations at every rate of the generator.

A mel contains neither the exact frequencies of the harmonics nor their phase; the sensor's waveform contains both, for
the low band. Compare Andreev et al., "HiFi++: a Unified Framework for Bandwidth Extension and Speech Enhancement",
ICASSP 2023, which appends a waveform U-Net to a HiFi-GAN generator; here the generator is the decoder half of the
U-Net. Strided layers are aligned with the transposed layers of the generator, so that every activation is added at the
position of its samples. In causal models, a step depends on no later sample, and a frame on no sample after its hop.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from twostage.models.resblocks import SLOPE, ResBlock2
from twostage.nn.layers import Conv1d, receptive_field, weight_norm

RESBLOCK_KERNEL, DILATIONS = 3, (1, 3)
KERNEL = 7  # of the first convolution, as in the last one of the generator


def silent(conv: Conv1d) -> Conv1d:
    """A convolution that is initialized with zeros."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


class SensorEncoder(nn.Module):
    """Sensor audio (B, 1, L * hop_length) -> activations to add in the generator, from the frame rate upward.

    ``channels``, ``rates`` and ``kernel_sizes`` are those of the generator: the channels at the frame rate and after
    each upsampling layer; the encoder's strides are these rates in reverse. The output layers are initialized with
    zeros, so that the generator starts as one without an encoder.
    """

    def __init__(
        self, channels: Sequence[int], rates: Sequence[int], kernel_sizes: Sequence[int], *, causal: bool
    ) -> None:
        super().__init__()
        self.steps = list(zip(rates, kernel_sizes, strict=True))  # of the generator, from the frame rate upward
        narrow_to_wide = list(reversed(channels))
        self.conv_pre = weight_norm(Conv1d(1, narrow_to_wide[0], KERNEL, causal=causal))
        self.downs = nn.ModuleList(
            weight_norm(Conv1d(narrow, wide, kernel_size, stride=rate, causal=causal))
            for narrow, wide, kernel_size, rate in zip(
                narrow_to_wide, narrow_to_wide[1:], reversed(kernel_sizes), reversed(rates), strict=False
            )
        )
        self.resblocks = nn.ModuleList(ResBlock2(c, RESBLOCK_KERNEL, DILATIONS, causal) for c in narrow_to_wide)
        self.outs = nn.ModuleList(silent(Conv1d(c, c, 1, causal=causal)) for c in narrow_to_wide)

    def forward(self, audio: Tensor) -> list[Tensor]:
        x = self.resblocks[0](self.conv_pre(audio.to(next(self.outs.parameters()).dtype)))
        skips = [self.outs[0](x)]
        for down, resblock, out in zip(self.downs, self.resblocks[1:], self.outs[1:], strict=True):
            x = resblock(down(F.leaky_relu(x, SLOPE)))
            skips.append(out(x))
        return skips[::-1]

    @property
    def receptive_field(self) -> float:
        """The number of frames on each side that the activations at the frame rate depend on.

        If causal, it is twice as many in the past. Activations at higher rates depend on fewer.
        """
        rate, residual = 1, ResBlock2.receptive_field(RESBLOCK_KERNEL, DILATIONS)
        frames = float(residual)
        for stride, kernel_size in self.steps:
            rate *= stride
            frames += ((kernel_size - stride) / 2 + residual) / rate
        return frames + receptive_field([(KERNEL, 1)]) / rate
