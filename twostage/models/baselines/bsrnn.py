"""BSRNN: splits a spectrogram into bands and alternates recurrent layers along time and across bands.

Source: Luo and Yu, "Music Source Separation with Band-split RNN", TASLP 2023: bands, pairs of layers, masks, loss. For
speech: Yu, Chen, Luo, Gu and Weng, "High Fidelity Speech Enhancement with Band-split RNN", Interspeech 2023, which adds
a residual spectrogram to the masked one, because a mask cannot restore empty bins. LSTM: Hochreiter and
Schmidhuber, 1997. GLU: Dauphin et al., 2017. What differs from them:
- 32 features and five pairs of layers, 1.0 M parameters, to train without an accelerator; theirs for music have 128
  features, and for stereo at 44.1 kHz some 37 M (by Chen et al., "DTTNet", ICASSP 2024)
- bands are those for vocals in the music paper up to 8 kHz, rounded to bins of 31.25 Hz: 100 Hz up to 1 kHz, 250 Hz
  up to 4 kHz, 500 Hz above
- layers are normalized by the statistics of one frame, not of the signal, so that streams work, and training segments
  and whole recordings are normalized in the same way. The level of each band, which this removes, is a separate input
- all bands are treated in the same way; the parts for bands above 8 kHz and for a target speaker are omitted
Layers along time are bidirectional and need the whole signal; if ``causal``, they are unidirectional and can stream.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.models.enhancer import EnhancerConfig, StreamingModule
from twostage.models.features import Istft, Stft, as_channels, as_complex, complex_product
from twostage.nn.layers import LSTM
from twostage.utils.errors import ConfigError

PARTS = {"mask": 1, "mapping": 1, "both": 2}  # complex numbers per bin, by ``output``
QUIET = 1e-8  # lower limit of the mean power of a bin


@dataclass(frozen=True)
class BsrnnConfig(EnhancerConfig):
    """Sizes of the network.

    ``output``: "mask", a complex mask that is multiplied with the input, as in the music paper; "mapping", the
    spectrogram itself; "both", the sum of the two, as in the speech paper.
    """

    sample_rate: int = 16000  # Hz
    n_fft: int = 512  # samples of the Fourier transform
    hop_length: int = 128  # samples between consecutive frames
    bands: tuple[int, ...] = (*[3] * 8, *[4] * 2, *[8] * 12, *[16] * 7, 17)  # bins in each band, from 0 Hz on
    features: int = 32  # channels of each band
    layers: int = 5  # pairs of recurrences, along time and across bands
    output: str = "both"  # mask, mapping or both
    causal: bool = False  # uses past samples only

    def __post_init__(self) -> None:
        for name in ("features", "layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}, must be at least 1")
        if not 2 <= 2 * self.hop_length <= self.n_fft or (self.n_fft - self.hop_length) % 2:
            raise ConfigError(
                f"model.hop_length is {self.hop_length}, must be at most half of model.n_fft, {self.n_fft}, and leave "
                "an even number of it"
            )
        if min(self.bands, default=0) < 1 or sum(self.bands) != self.n_fft // 2 + 1:
            raise ConfigError(
                f"model.bands is {list(self.bands)}, must be positive and add up to model.n_fft // 2 + 1, "
                f"{self.n_fft // 2 + 1}"
            )
        if self.output not in PARTS:
            raise ConfigError(f"model.output is {self.output!r}, must be one of {', '.join(PARTS)}")


class Split(nn.Module):
    """A spectrogram (B, 2, F, L) -> features of K bands (B, K, L, N)."""

    def __init__(self, config: BsrnnConfig) -> None:
        super().__init__()
        self.bands = config.bands
        self.norms = nn.ModuleList(nn.LayerNorm(2 * width) for width in self.bands)
        self.dense = nn.ModuleList(nn.Linear(2 * width + 1, config.features) for width in self.bands)

    def forward(self, x: Tensor) -> Tensor:
        features = []
        for band, norm, dense in zip(x.split(self.bands, 2), self.norms, self.dense, strict=True):
            parts = band.flatten(1, 2).mT
            level = parts.square().mean(-1, keepdim=True).clamp_min(QUIET).log10() / 4  # within about 1 of 0
            features.append(dense(torch.cat([norm(parts), level], -1)))
        return torch.stack(features, 1)


class Residual(nn.Module):
    """Adds the output of a norm, an LSTM (``causal`` or bidirectional) and a dense layer to sequences (B, L, N)."""

    def __init__(self, features: int, *, causal: bool) -> None:
        super().__init__()
        units = 2 * features  # in each direction
        self.norm, self.causal = nn.LayerNorm(features), causal
        self.lstm = LSTM(features, units) if causal else nn.LSTM(features, units, batch_first=True, bidirectional=True)
        self.dense = nn.Linear(units if causal else 2 * units, features)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.lstm(self.norm(x))
        return x + self.dense(hidden if self.causal else hidden[0])


class Pair(nn.Module):
    """A layer along time, on each band, then one across bands, on each frame: (B, K, L, N) -> (B, K, L, N)."""

    def __init__(self, config: BsrnnConfig) -> None:
        super().__init__()
        self.along_time = Residual(config.features, causal=config.causal)
        self.across_bands = Residual(config.features, causal=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.along_time(x.flatten(0, 1)).unflatten(0, x.shape[:2]).transpose(1, 2)
        return self.across_bands(x.flatten(0, 1)).unflatten(0, x.shape[:2]).transpose(1, 2)


class Estimate(nn.Module):
    """Features of K bands (B, K, L, N) -> one or two complex spectrograms as real channels (B, parts, F, L)."""

    def __init__(self, config: BsrnnConfig) -> None:
        super().__init__()
        self.parts = 2 * PARTS[config.output]
        self.bands = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(config.features),
                nn.Linear(config.features, 4 * config.features),
                nn.Tanh(),
                nn.Linear(4 * config.features, 2 * self.parts * width),
                nn.GLU(),
            )
            for width in config.bands
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = [band(x_k).mT.unflatten(1, (self.parts, -1)) for band, x_k in zip(self.bands, x.unbind(1), strict=True)]
        return torch.cat(parts, 2)


class Bsrnn(StreamingModule):
    """Audio (B, 1, T) -> (B, 1, T // hop_length * hop_length)."""

    context = inf  # an LSTM has no finite receptive field

    def __init__(self, config: BsrnnConfig) -> None:
        super().__init__()
        self.config = config
        self.stft = Stft(config.n_fft, config.hop_length, causal=config.causal)
        self.istft = Istft(self.stft)
        self.split = Split(config)
        self.pairs = nn.Sequential(*(Pair(config) for _ in range(config.layers)))
        self.estimate = Estimate(config)

    def forward_chunk(self, audio: Tensor) -> Tensor:
        """Process the next chunk of a stream, a multiple of ``stride`` long; the output is ``delay`` samples late.

        Within ``nn.streaming.streaming``, calls continue one stream. If not causal, the chunk is the whole signal.
        """
        spectrum = as_channels(self.stft.spectrum(audio))
        estimate = self.estimate(self.pairs(self.split(spectrum))).float()
        if self.config.output == "mapping":
            return self.istft(as_complex(estimate))
        masked = complex_product(estimate[:, :2], spectrum)
        return self.istft(as_complex(masked + estimate[:, 2:] if self.config.output == "both" else masked))

    def terms(self, degraded: Tensor, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Enhanced audio, and ``spectrum``: the mean absolute error of real and imaginary parts."""
        enhanced = self(degraded)
        fake, real = (self.stft.spectrum(audio) for audio in (enhanced, clean[..., : enhanced.shape[-1]]))
        return enhanced, {"spectrum": F.l1_loss(as_channels(fake), as_channels(real))}

    @property
    def causal(self) -> bool:
        return self.config.causal

    @property
    def delay(self) -> int:
        """The number of samples by which the output of ``forward_chunk`` is late."""
        return self.istft.delay

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        return self.config.hop_length
