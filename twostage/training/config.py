"""Settings of a training from YAML files and the command line; the only module that imports omegaconf."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from twostage.data.pairs import PairConfig
from twostage.evaluation.metrics import HIGHER_IS_BETTER, missing_package
from twostage.models.enhancer import EnhancerConfig
from twostage.models.features import MelConfig
from twostage.models.registry import ENHANCERS
from twostage.models.restorer import RestorerConfig
from twostage.models.vocoder import VocoderConfig
from twostage.training.adversary import AdversaryConfig, AdversaryRules, MelAdversaryConfig
from twostage.training.losses import LINE_FRAMES
from twostage.training.optim import OptimizerConfig
from twostage.training.tasks import (
    ADVERSARIAL,
    EnhancingWeights,
    FinetuningWeights,
    LossWeights,
    RestoringWeights,
    VocodingWeights,
    named,
)
from twostage.utils.devices import DEVICES
from twostage.utils.errors import ConfigError, first_line
from twostage.utils.renamed import translated
from twostage.utils.schema import build, complete

CONFIG_FILE = "config.yaml"  # in the directory of a training
PACKAGE = Path(__file__).parent.parent
SHIPPED = (PACKAGE / "configs", PACKAGE.parent / "configs")
BASELINES, CORPORA = "baselines", "corpora"  # folders of configurations: one-stage systems, published corpora
# settings that may differ between a training and its resumption: paths, durations and intervals
FREE = {
    *("run_dir", "steps", "init_from", "models", "device", "threads", "log_every", "save_every"),
    *("data.train", "data.valid", "data.noise", "data.prefetch", "data.cache_gigabytes"),
    *("adversary.init_from", "valid.vocoder", "valid.every", "valid.show"),
}
TRAINABLE = {"vocoder": ("vocoder",), "restorer": ("restorer",), "both": ("restorer", "vocoder")}
# sections that a file may contain for other trainings than the one that reads it
SECTIONS = {"restorer", "vocoder", "adversary", "discriminator", "mel_discriminator"}


@dataclass(frozen=True, kw_only=True)
class DataConfig(PairConfig):
    """The speech, and how segments are drawn from it (the inherited fields)."""

    train: tuple[str, ...] = ()  # manifests of training data
    valid: tuple[str, ...] = ()  # manifests of validation data
    exclude_speakers: tuple[str, ...] = ()  # speakers to leave out of train
    noise: str = ""  # folder of ambient sound; empty: pink noise
    batch_size: int = 16  # segments per step in each process
    prefetch: int = 4  # batches that are prepared in advance

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train", "valid"):
            if not getattr(self, name):
                raise ConfigError(f"data.{name} is empty, must name a manifest")
            for path in getattr(self, name):
                if not Path(path).is_file():
                    raise ConfigError(f"data.{name}: {path}: no such file")
        if self.noise and not Path(self.noise).is_dir():
            raise ConfigError(f"data.noise: {self.noise}: no such folder")
        if self.batch_size < 1:
            raise ConfigError(f"data.batch_size is {self.batch_size}, must be at least 1")


@dataclass(frozen=True)
class ValidConfig:
    """Validation on held-out speech, with the averaged weights."""

    every: int = 1000  # steps between validations
    items: int = 16  # number of files, spread over the manifests
    seconds: float = 6.0  # maximum length of a file
    metrics: tuple[str, ...] = ("mel_l1",)  # pesq, stoi, estoi, lsd, mel_l1, mcd, si_sdr, mos, dnsmos
    best: str = "mel_l1"  # metric for the best weights; with the suffix _real or _simulated, on such pairs only
    vocoder: str = ""  # vocoder, or model with one, that generates sound from a restorer's log-mels
    show: int = 2  # number of files whose sound and spectrograms are logged

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in HIGHER_IS_BETTER:
                raise ConfigError(f"valid.metrics: no metric {name!r}; there are {', '.join(HIGHER_IS_BETTER)}")
            if package := missing_package(name):
                raise ConfigError(f"valid.metrics: {name} needs the package {package}: pip install twostage[eval]")
        if self.best.removesuffix("_real").removesuffix("_simulated") not in self.metrics:
            raise ConfigError(f"valid.best is {self.best!r}, must be one of valid.metrics: {', '.join(self.metrics)}")
        if self.every < 1 or self.items < 1 or self.seconds <= 0:
            raise ConfigError("valid: every and items must be at least 1, seconds positive")

    @property
    def higher_is_better(self) -> bool:
        return HIGHER_IS_BETTER[self.best.removesuffix("_real").removesuffix("_simulated")]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of every training."""

    run_dir: str  # directory of the training
    steps: int  # total number
    data: DataConfig  # speech data
    seed: int = 0  # of weights and data
    init_from: str = ""  # initial weights: a name, folder or file; with both stages, the trained one is used
    device: str = "auto"  # auto (cuda if available, else cpu), cpu, cuda or mps
    precision: str = "float32"  # of the networks: float32 or bfloat16
    threads: int = 0  # CPU threads; 0: all cores
    log_every: int = 50  # steps between log lines
    save_every: int = 500  # steps between saved states
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)  # of the model and of the discriminators
    valid: ValidConfig = field(default_factory=ValidConfig)  # validation

    def __post_init__(self) -> None:
        if not self.run_dir:
            raise ConfigError("run_dir is empty, must name the directory of the training")
        if self.device not in DEVICES:
            raise ConfigError(f"device is {self.device!r}, must be one of {', '.join(DEVICES)}")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision is {self.precision!r}, must be float32 or bfloat16")
        if min(self.steps, self.log_every, self.save_every) < 1 or self.threads < 0:
            raise ConfigError("steps, log_every and save_every must be at least 1, threads not negative")

    def check_mel(self, mel: MelConfig) -> None:
        """Raise ConfigError if the length of segments does not fit the mel settings."""
        if self.data.sample_rate != mel.sample_rate:
            raise ConfigError(f"data.sample_rate is {self.data.sample_rate}, mel.sample_rate {mel.sample_rate}")
        if self.data.segment_length % mel.hop_length:
            raise ConfigError(
                f"data.segment_length is {self.data.segment_length}, must be a multiple of mel.hop_length, "
                f"{mel.hop_length}"
            )

    def check_inputs(self, name: str, inputs: int) -> None:
        """Raise ConfigError if the data do not have the number of channels ``inputs`` of the setting ``name``."""
        if inputs != self.data.channels:
            channels = f"{list(self.data.air_snr_db)}: 2 channels" if self.data.air_snr_db else "empty"
            raise ConfigError(f"{name} is {inputs}, but data.air_snr_db is {channels}")

    def check_simulation(self) -> None:
        """Raise ConfigError if there is no sensor for the simulated segments: the input would be clean speech."""
        if self.data.real_fraction < 1 and not self.data.sensors:
            raise ConfigError("data.sensors is empty, and data.real_fraction below 1 needs simulation")


@dataclass(frozen=True, kw_only=True)
class RestorerRun(RunConfig):
    """Stage one.

    ``adversary`` is a discriminator of log-mels; it is used if one of its weights, ``adv`` and ``fm``, is not zero.
    """

    restorer: RestorerConfig = field(default_factory=RestorerConfig)  # the model
    weights: RestoringWeights = field(default_factory=RestoringWeights)  # of the losses
    adversary: MelAdversaryConfig = field(default_factory=MelAdversaryConfig)  # discriminator of log-mels
    quantile: float = 0.5  # quantile of the log-mels to predict; 0.5: the median; less: uncertain bands become quieter

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_mel(self.restorer.mel)
        self.check_inputs("restorer.inputs", self.restorer.inputs)
        if not 0 < self.quantile < 1:
            raise ConfigError(f"quantile is {self.quantile}, must lie between 0 and 1")
        check_adaptive(self.adversary, self.weights)
        audible = [name for name in self.valid.metrics if name != "mel_l1"]
        if audible and not self.valid.vocoder:
            raise ConfigError(f"valid.metrics: {audible[0]} needs sound: set valid.vocoder to the weights of a vocoder")
        self.check_simulation()


@dataclass(frozen=True, kw_only=True)
class VocoderRun(RunConfig):
    """Stage two."""

    vocoder: VocoderConfig = field(default_factory=VocoderConfig)  # the model
    weights: VocodingWeights = field(default_factory=VocodingWeights)  # of the losses
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)  # discriminators of audio

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_mel(self.vocoder.mel)
        if self.vocoder.sensor_input and self.data.real_fraction < 1 and not self.data.sensors:
            raise ConfigError(
                "data.sensors is empty, and vocoder.sensor_input needs them: otherwise its input would be clean speech"
            )
        if self.weights.frame_lines and self.data.segment_length < LINE_FRAMES * self.vocoder.mel.hop_length:
            raise ConfigError(
                f"data.segment_length is {self.data.segment_length}, weights.frame_lines needs {LINE_FRAMES} frames of "
                f"{self.vocoder.mel.hop_length}"
            )
        check_adaptive(self.adversary, self.weights)


@dataclass(frozen=True, kw_only=True)
class FinetuneRun(RunConfig):
    """Both stages."""

    models: tuple[str, ...]  # arguments of twostage.load
    train: str = "vocoder"  # stages to train: vocoder, restorer or both
    frames: int = 32  # frames in the middle of a segment for the vocoder; the restorer gets the whole segment
    weights: FinetuningWeights = field(default_factory=FinetuningWeights)  # of the losses
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)  # discriminators of audio

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train not in TRAINABLE:
            raise ConfigError(f"train is {self.train!r}, must be one of {', '.join(TRAINABLE)}")
        if self.frames < 1:
            raise ConfigError(f"frames is {self.frames}, must be at least 1")
        if self.weights.frame_lines and self.frames < LINE_FRAMES:
            raise ConfigError(f"frames is {self.frames}, weights.frame_lines needs {LINE_FRAMES}")
        if self.weights.restored and self.train == "vocoder":
            raise ConfigError(f"weights.restored is {self.weights.restored}, but train is vocoder")
        self.check_simulation()
        if self.init_from:
            raise ConfigError(f"init_from is {self.init_from!r}; fine-tuning starts from models")
        # losses are balanced at the vocoder's last layer, on which the restored log-mels do not depend
        unreachable = ("restored",) if self.train == "both" else ()
        check_adaptive(self.adversary, self.weights, unreachable)


@dataclass(frozen=True, kw_only=True)
class EnhancerRun(RunConfig):
    """A one-stage system."""

    enhancer: str  # name of the system
    model: dict = field(default_factory=dict)  # its settings, which are documented below
    mel: MelConfig = field(default_factory=MelConfig)  # of the losses on log-mels, and of the logs
    weights: EnhancingWeights = field(default_factory=EnhancingWeights)  # of the losses
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)  # discriminators of audio

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.enhancer not in ENHANCERS:
            raise ConfigError(f"enhancer is {self.enhancer!r}, must be one of {', '.join(ENHANCERS)}")
        self.check_mel(self.mel)
        check_adaptive(self.adversary, self.weights)
        self.check_inputs("model.inputs", self.architecture.inputs)
        self.check_simulation()

    @property
    def architecture(self) -> EnhancerConfig:
        """``model`` as the settings of the system itself."""
        return build(ENHANCERS[self.enhancer][0], self.model, "model")


def check_adaptive(adversary: AdversaryRules, weights: LossWeights, unreachable: Collection[str] = ()) -> None:
    """Raise ConfigError for an adaptive adversary that cannot be balanced with losses of these weights.

    ``unreachable``: terms whose gradient does not reach the layer at which losses are balanced.
    """
    weighted = {name for name, weight in named(weights).items() if weight}
    if not adversary.adaptive or not weighted & set(ADVERSARIAL):
        return
    for name in weighted & set(unreachable):
        if adversary.adaptive == "each":
            raise ConfigError(
                f"weights.{name} is {named(weights)[name]}, but adversary.adaptive is each: this loss does not reach "
                "the vocoder's last layer, where losses are balanced; leave one of them out, or train one stage"
            )
    if adversary.adaptive is True and "adv" in weighted and not weighted - {"adv", *unreachable}:
        raise ConfigError(
            "adversary.adaptive is true, but no other loss at the last layer has a weight, so weights.adv would have "
            "no effect"
        )


C = TypeVar("C", bound=RunConfig)


def load_config(cls: type[C], files: Iterable[str], overrides: Sequence[str] = (), *, stored: bool = False) -> C:
    """Merge YAML files and ``key=value`` overrides, left to right, into checked settings.

    A name without a folder is searched in the current folder and among the shipped configurations. A file may contain
    sections for several trainings; those for others are ignored. Files that a training ``stored`` may have settings
    under their former names. Raises ConfigError, one line that names the file or the field.
    """
    return build(cls, _merged(cls, files, overrides, stored))


def preview(cls: type[RunConfig], files: Iterable[str], overrides: Sequence[str] = ()) -> str:
    """The settings of ``load_config`` as YAML with all defaults, possibly incomplete: ??? marks missing settings.

    Names and types are checked as in ``load_config``, but not the ranges of values and the existence of files.
    """
    return OmegaConf.to_yaml(OmegaConf.create(_plain(complete(cls, _merged(cls, files, overrides)))))


def with_new_names(cls: type[RunConfig], values: Any) -> Any:
    """The settings that a training of the kind ``cls`` stored, under their current names."""
    values = translated(cls, values)
    system = values.get("enhancer") if isinstance(values, dict) else None
    if system in ENHANCERS and "model" in values:
        values["model"] = translated(ENHANCERS[system][0], values["model"])
    return values


def _merged(cls: type[RunConfig], files: Iterable[str], overrides: Sequence[str], stored: bool = False) -> Any:
    for override in overrides:
        if "=" not in override or override.startswith("="):
            raise ConfigError("neither a YAML file nor key=value", subject=override)
    try:
        parts = [_own_sections(cls, OmegaConf.to_container(_read(_find(file)))) for file in files]
        parts = [with_new_names(cls, part) for part in parts] if stored else parts
        merged = OmegaConf.merge(*parts, OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"settings do not merge: {first_line(error)}") from None


def to_yaml(settings: RunConfig) -> str:
    """Settings as YAML, which ``load_config`` reads back to the same settings."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(settings)))


def plain(settings: Any) -> dict[str, Any]:
    """Settings as nested dicts, lists and scalars."""
    return {key: _plain(value) for key, value in asdict(settings).items()}


def difference(ours: RunConfig, stored: RunConfig, verb: str = "was") -> str:
    """The first field in which two settings differ, except for those in FREE; empty if there is none.

    ``verb`` introduces the value of ``stored``.
    """
    mine, theirs = _flat(plain(ours)), _flat(plain(stored))
    for name in mine:
        if name not in FREE and mine[name] != theirs.get(name):
            return f"{name} is {mine[name]}, {verb} {theirs.get(name)}"
    return ""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _own_sections(kind: type, values: Any) -> Any:
    """The values of a file without sections of other trainings; those of an adversary also depend on the training."""
    hints = get_type_hints(kind)
    kept = {key: value for key, value in values.items() if key in hints or key not in SECTIONS}
    if isinstance(kept.get("adversary"), dict):
        kept["adversary"] = _own_sections(hints["adversary"], kept["adversary"])
    return kept


def _find(name: str) -> Path:
    candidates, folders = [Path(name)], [folder / part for part in ("", BASELINES, CORPORA) for folder in SHIPPED]
    if "/" not in name:
        candidates += [folder / file_name for folder in folders for file_name in (name, f"{name}.yaml")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ConfigError(f"no such file or shipped configuration ({', '.join(shipped())})", subject=name)


def shipped() -> list[str]:
    """Names of the shipped files of settings."""
    folders = [folder / part for folder in SHIPPED for part in ("", BASELINES, CORPORA)]
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def _read(path: Path) -> Any:
    try:
        values = OmegaConf.load(path)
    except (YAMLError, ValueError, RecursionError, OSError) as error:
        raise ConfigError(f"not readable as YAML: {first_line(error)}", subject=path) from None
    if not OmegaConf.is_dict(values):
        raise ConfigError("not a mapping of fields to values", subject=path)
    return values
