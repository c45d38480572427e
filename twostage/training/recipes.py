"""One function per training: combines the model, the data and the losses. `prepared` runs it."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from twostage.models import checkpoint
from twostage.models.features import LogMel
from twostage.models.registry import ENHANCERS
from twostage.models.restorer import Restorer
from twostage.models.two_stage import TwoStage
from twostage.models.vocoder import Vocoder
from twostage.training.adversary import AdversaryRules
from twostage.training.config import TRAINABLE, EnhancerRun, FinetuneRun, RestorerRun, VocoderRun
from twostage.training.prepared import Plan, PreparedTraining, begin
from twostage.training.tasks import Enhancing, Finetuning, Restoring, Vocoding
from twostage.training.validation import Estimate, Example
from twostage.utils.errors import ConfigError


def train_restorer(settings: RestorerRun, *, resume: bool = False) -> None:
    """Stage one: mel regression, with an adversary if its weight is not 0. Raises TwoStageError for user errors."""
    state, weights = begin(settings, resume), settings.weights
    mel, model, listener = LogMel(settings.restorer.mel), Restorer(settings.restorer), None
    task = Restoring(settings.restorer, weights, settings.quantile)
    if settings.valid.vocoder:
        listener = _listener(settings.valid.vocoder, mel)

    def estimate(restorer: nn.Module, example: Example) -> Estimate:
        restored = restorer(task.restorer_features(mel, example.degraded))
        if not listener:
            return Estimate(restored[0], None)
        input_spectra = mel.stft.input_spectra(example.degraded[:, :1])
        return Estimate(restored[0], listener(restored, input_spectra, example.degraded[:, :1])[0, 0].cpu().numpy())

    plan = Plan(model, mel, task, weights, estimate, _adversary(settings), _direction_of_last, listener)
    PreparedTraining.of(settings, plan, state).run()


def train_vocoder(settings: VocoderRun, *, resume: bool = False) -> None:
    """Stage two: the GAN vocoder on clean speech; with content losses only if the adversarial weights are 0."""
    state = begin(settings, resume)
    mel, model, weights = LogMel(settings.vocoder.mel), Vocoder(settings.vocoder), settings.weights

    def estimate(vocoder: nn.Module, example: Example) -> Estimate:
        log_mel = mel(example.clean)
        sensor = example.degraded[:, :1, : log_mel.shape[-1] * settings.vocoder.mel.hop_length]
        audio = vocoder(log_mel, sensor=sensor)
        return Estimate(mel(audio)[0], audio[0, 0].cpu().numpy())

    task = Vocoding(settings.vocoder.mel, weights, settings.vocoder.mel_of_losses)
    plan = Plan(model, mel, task, weights, estimate, _adversary(settings), _direction_of_last)
    PreparedTraining.of(settings, plan, state).run()


def finetune(settings: FinetuneRun, *, resume: bool = False) -> None:
    """Both stages on pairs: ``settings.train`` names the stages that are trained, the other one is frozen."""
    state = begin(settings, resume)
    model, weights = checkpoint.load_for_training(*settings.models), settings.weights
    if not isinstance(model, TwoStage):
        raise ConfigError(f"models: {', '.join(settings.models)}: not a model of two stages")
    settings.check_mel(model.config.vocoder.mel)
    settings.check_inputs("restorer.inputs", model.inputs)
    model.requires_grad_(False)
    for stage in TRAINABLE[settings.train]:
        model.get_submodule(stage).requires_grad_(True)
    mel = LogMel(model.config.vocoder.mel)

    def estimate(both: nn.Module, example: Example) -> Estimate:
        audio = both(example.degraded)
        return Estimate(mel(audio)[0], audio[0, 0].cpu().numpy())

    task = Finetuning(model.config.vocoder.mel_of_losses, weights, settings.frames)
    last_layer = partial(_last_trained, settings.train)
    plan = Plan(model, mel, task, weights, estimate, _adversary(settings), last_layer)
    PreparedTraining.of(settings, plan, state).run()


def train_enhancer(settings: EnhancerRun, *, resume: bool = False) -> None:
    """A one-stage system on pairs, real or simulated."""
    state = begin(settings, resume)
    mel, model = LogMel(settings.mel), ENHANCERS[settings.enhancer][1](settings.architecture)

    def estimate(enhancer: nn.Module, example: Example) -> Estimate:
        audio = enhancer(example.degraded)
        return Estimate(mel(audio)[0], audio[0, 0].cpu().numpy())

    task = Enhancing(settings.mel, settings.weights)
    plan = Plan(model, mel, task, settings.weights, estimate, _adversary(settings), last_weight)
    PreparedTraining.of(settings, plan, state).run()


def _listener(path: str, mel: LogMel) -> nn.Module:
    model = checkpoint.load_stage(path, "vocoder", folded=True)
    assert isinstance(model, Vocoder)
    difference = model.config.mel.difference(mel.config)
    if difference:
        raise ConfigError(f"valid.vocoder: {path}: {difference}")
    return model.eval().requires_grad_(False)


def _adversary(settings: RestorerRun | VocoderRun | FinetuneRun | EnhancerRun) -> AdversaryRules | None:
    return settings.adversary if settings.weights.adv or settings.weights.fm else None


def _direction_of_last(stage: Any) -> Tensor:
    direction: Tensor = stage.conv_post.parametrizations.weight.original1
    return direction


def _last_trained(train: str, model: nn.Module) -> Tensor:
    """The direction of the weight of the last trained layer; ``train`` as in ``FinetuneRun``."""
    return _direction_of_last(model.get_submodule(TRAINABLE[train][-1]))


def last_weight(model: nn.Module) -> Tensor:
    """The weight, or its direction, of the output layer: modules are defined in the order of the data flow."""
    if isinstance(model, TwoStage):  # the encoder of a vocoder with sensor input is defined last
        model = model.vocoder.conv_post
    return [p for name, p in model.named_parameters() if p.ndim > 1 and not name.endswith("original0")][-1]
