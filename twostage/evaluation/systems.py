"""The systems that are compared: the raw input, restoration by each model, and copy-synthesis.

Copy-synthesis passes the clean speech through the mel and the vocoder of a model: the upper bound for stage two with an
ideal stage one.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor, nn

from twostage.audio import sound_files
from twostage.audio.types import Audio
from twostage.evaluation.costs import Costs, measure_model
from twostage.evaluation.metrics import SAMPLE_RATE
from twostage.evaluation.pairs import PairSource
from twostage.evaluation.report import AIR, CLEAN, RAW
from twostage.inference.restoration import restore
from twostage.models import checkpoint
from twostage.models.enhancer import Enhancer, EnhancerModule
from twostage.models.features import LogMel
from twostage.models.loading import load
from twostage.models.model_files import ONNX, stage_files
from twostage.models.onnx_enhancer import OnnxEnhancer
from twostage.models.precision import convert
from twostage.models.two_stage import TwoStage
from twostage.models.vocoder import Vocoder
from twostage.utils.errors import ConfigError

COPY = ", copy-synthesis"  # suffix for a vocoder whose input is clean speech
WITH_SENSOR = ", with the sensor"  # inserted before it if the degraded waveform is a second input


class CopySynthesis(EnhancerModule):
    """A vocoder whose input is the mel of the target: (B, 1, T) -> (B, 1, T // hop_length * hop_length).

    A vocoder with sensor input gets silence or, ``with_sensor``, the degraded waveform as a second channel.
    """

    def __init__(self, vocoder: Vocoder, *, with_sensor: bool = False) -> None:
        super().__init__()
        self.mel, self.vocoder, self.config = LogMel(vocoder.config.mel), vocoder, vocoder.config
        self.with_sensor = with_sensor

    @property
    def inputs(self) -> int:
        """The number of channels: the clean speech, or the clean speech and the degraded one."""
        return 1 + self.with_sensor

    @property
    def sample_rate(self) -> int:
        return self.mel.config.sample_rate

    @property
    def hop_length(self) -> int:
        return self.mel.config.hop_length

    @property
    def context(self) -> int:
        mel = self.mel.config
        return mel.hop_length * (math.ceil(mel.n_fft / mel.hop_length) + self.vocoder.context)

    def forward(self, audio: Tensor) -> Tensor:
        out: Tensor = self.vocoder(self.mel(audio[:, :1]), sensor=audio[:, 1:] if self.with_sensor else None)
        return out


@dataclass(frozen=True)
class System:
    """A row of the table: an enhancer, and whether its input is the clean speech or the degraded speech."""

    name: str
    model: Enhancer
    uses_clean: bool


def load_systems(models: Mapping[str, Sequence[str]], device: str = "cpu", precision: str = "float32") -> list[System]:
    """Restoration and copy-synthesis of each model, by label; copy-synthesis only for a single vocoder.

    A vocoder with sensor input has two rows of copy-synthesis: with silence, and with the waveform of the sensor.
    """
    systems = []
    for label, paths in models.items():
        if label in (RAW, AIR, CLEAN):
            raise ConfigError(f"--model {label}: is the name of another row; set another one with LABEL=")
        model = _load(paths, device, precision)
        if not isinstance(model, Vocoder):
            systems.append(System(label, model, uses_clean=False))
        vocoder = model.vocoder if isinstance(model, TwoStage) else model
        if isinstance(vocoder, Vocoder):
            copy = CopySynthesis(vocoder).eval().to(device)
            systems.append(System(f"{label}{COPY}", copy, uses_clean=True))
        if isinstance(vocoder, Vocoder) and vocoder.config.sensor_input:
            copy = CopySynthesis(vocoder, with_sensor=True).eval().to(device)
            systems.append(System(f"{label}{WITH_SENSOR}{COPY}", copy, uses_clean=True))
    return systems


def _load(paths: Sequence[str], device: str, precision: str) -> Enhancer | Vocoder:
    files = [file for path in paths for file in stage_files(path)]
    if len(files) == 1 and files[0].suffix != ONNX and checkpoint.read_header(files[0]).kind == "vocoder":
        vocoder = checkpoint.load_stage(files[0], folded=True).eval().requires_grad_(False).to(device)
        assert isinstance(vocoder, Vocoder)
        return convert(vocoder, precision)
    return load(*paths, device=device, precision=precision)


def check_inputs(systems: Iterable[System], source: PairSource) -> None:
    """Raise ConfigError for a model that needs more channels than the source has."""
    for system in systems:
        if not system.uses_clean and system.model.inputs > len(source.inputs):
            raise ConfigError(f"--model {system.name}: takes bone and air, and there is no air channel: see --air-snr")


def fingerprint(systems: Iterable[System]) -> dict[str, str]:
    """A digest of the weights of every system, which must be the same when an evaluation is resumed."""
    return {system.name: _digest(system.model) for system in systems}


def _digest(model: object) -> str:
    if isinstance(model, OnnxEnhancer):
        return sha256(model.path.read_bytes()).hexdigest()[:16]
    assert isinstance(model, nn.Module)
    digest = sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def estimates(
    degraded: Audio, clean: Audio, systems: Sequence[System], keep_low_band: float = 0.0
) -> Iterator[tuple[str, Audio]]:
    """The raw input, (T,) or bone and air (2, T), and the output of every system: name and (T,) at 16 kHz.

    A system with one input gets the bone channel only.
    """
    channels = np.atleast_2d(degraded)
    yield from zip((RAW, AIR), channels, strict=False)
    for system in systems:
        model_input = channels if system.model.inputs > 1 else channels[0]
        if system.uses_clean and system.model.inputs > 1:  # with the sensor waveform
            model_input = np.stack([clean, sound_files.match_length(channels[0], len(clean))])
        elif system.uses_clean:
            model_input = clean
        low = 0.0 if system.uses_clean else keep_low_band
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about silence, which the scores report in a note
            out = restore(system.model, model_input, SAMPLE_RATE, keep_low_band=low)
        yield system.name, sound_files.resample(out.reshape(-1), system.model.sample_rate, SAMPLE_RATE)


def measure_costs(systems: Iterable[System]) -> dict[str, Costs]:
    """Costs of every system on this machine."""
    return {system.name: measure_model(system.model) for system in systems}
