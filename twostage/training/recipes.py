"""Wire data, model, task, adversary and loop together: one function a training."""

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twostage.audio import sound_files
from twostage.data.manifest import read_manifest
from twostage.data.pairs import PairDataset, batches
from twostage.models import checkpoint
from twostage.models.enhancer import EnhancerModule
from twostage.models.features import LogMel
from twostage.models.registry import ENHANCERS
from twostage.models.restorer import Restorer
from twostage.models.two_stage import TwoStage
from twostage.models.vocoder import Vocoder
from twostage.training.adversary import Adversary, AdversaryRules, Precision
from twostage.training.config import (
    SETTINGS,
    TRAINABLE,
    EnhancerRun,
    FinetuneRun,
    RestorerRun,
    RunConfig,
    VocoderRun,
    difference,
    plain,
    to_yaml,
)
from twostage.training.distributed import Team, team
from twostage.training.logs import RunLog
from twostage.training.monitor import LAST, STATE, Interruption, Monitor, provenance
from twostage.training.tasks import Enhancing, Finetuning, Restoring, Vocoding, Weights
from twostage.training.trainer import Training, fit
from twostage.training.validation import Estimate, Estimator, Example, examples
from twostage.utils.errors import CheckpointError, ConfigError
from twostage.utils.files import sweep
from twostage.utils.schema import build

PREPARED = 64  # batches that statistics of the training set are gathered from


@dataclass(frozen=True)
class Plan:
    """What differs between trainings; ``listener`` is a frozen vocoder for held-out speech.

    ``last_layer``: of a model, the weight at which an adaptive adversarial loss is balanced.
    """

    model: nn.Module
    mel: LogMel
    task: nn.Module
    weights: Weights
    estimate: Estimator
    adversary: AdversaryRules | None = None
    last_layer: Callable[[Any], Tensor] | None = None
    listener: nn.Module | None = None


def train_restorer(settings: RestorerRun, *, resume: bool = False) -> None:
    """Stage one: mel regression, and an adversary if it has weight. Raises TwoStageError for what the user can mend."""
    state, weights = _begin(settings, resume), settings.weights
    mel, model, listener = LogMel(settings.restorer.mel), Restorer(settings.restorer), None
    task = Restoring(settings.restorer, weights, settings.quantile)
    if settings.valid.vocoder:
        listener = _listener(settings.valid.vocoder, mel)

    def estimate(restorer: nn.Module, example: Example) -> Estimate:
        restored = restorer(task.hearing(mel, example.degraded))
        if not listener:
            return Estimate(restored[0], None)
        heard = mel.stft.input_spectra(example.degraded[:, :1])
        return Estimate(restored[0], listener(restored, heard, example.degraded[:, :1])[0, 0].cpu().numpy())

    _train(
        settings, Plan(model, mel, task, weights, estimate, _adversary(settings), _direction_of_last, listener), state
    )


def train_vocoder(settings: VocoderRun, *, resume: bool = False) -> None:
    """Stage two: the GAN vocoder on clean speech alone; without adversarial weights, its content losses alone."""
    state = _begin(settings, resume)
    mel, model, weights = LogMel(settings.vocoder.mel), Vocoder(settings.vocoder), settings.weights

    def estimate(vocoder: nn.Module, example: Example) -> Estimate:
        log_mel = mel(example.clean)
        sensor = example.degraded[:, :1, : log_mel.shape[-1] * settings.vocoder.mel.hop_length]
        made = vocoder(log_mel, sensor=sensor)
        return Estimate(mel(made)[0], made[0, 0].cpu().numpy())

    task = Vocoding(settings.vocoder.mel, weights)
    _train(settings, Plan(model, mel, task, weights, estimate, _adversary(settings), _direction_of_last), state)


def finetune(settings: FinetuneRun, *, resume: bool = False) -> None:
    """Both stages on pairs: what learns is ``settings.train``, the other stage is frozen."""
    state = _begin(settings, resume)
    model, weights = checkpoint.load_for_training(*settings.models), settings.weights
    if not isinstance(model, TwoStage):
        raise ConfigError(f"models: {', '.join(settings.models)}: not a model of two stages")
    settings.check_mel(model.config.vocoder.mel)
    settings.check_inputs("restorer.inputs", model.inputs)
    model.requires_grad_(False)
    for part in TRAINABLE[settings.train]:
        model.get_submodule(part).requires_grad_(True)
    mel = LogMel(model.config.vocoder.mel)

    def estimate(both: nn.Module, example: Example) -> Estimate:
        made = both(example.degraded)
        return Estimate(mel(made)[0], made[0, 0].cpu().numpy())

    task = Finetuning(model.config.vocoder.mel, weights, settings.frames)
    adversary = _adversary(settings)
    plan = Plan(model, mel, task, weights, estimate, adversary, lambda both: _direction_of_last(both.vocoder))
    _train(settings, plan, state)


def train_enhancer(settings: EnhancerRun, *, resume: bool = False) -> None:
    """A one-stage system on pairs, real or simulated."""
    state = _begin(settings, resume)
    mel, model = LogMel(settings.mel), ENHANCERS[settings.enhancer][1](settings.architecture)

    def estimate(enhancer: nn.Module, example: Example) -> Estimate:
        made = enhancer(example.degraded)
        return Estimate(mel(made)[0], made[0, 0].cpu().numpy())

    task = Enhancing(settings.mel, settings.weights)
    _train(settings, Plan(model, mel, task, settings.weights, estimate, _adversary(settings), last_weight), state)


def _begin(settings: RunConfig, resume: bool) -> dict[str, Any] | None:
    """Seed, and the state to go on from: None at the start of a training."""
    torch.manual_seed(settings.seed)
    path = Path(settings.run, STATE)
    if not path.exists():
        return None
    if not resume:
        raise ConfigError(f"run: {settings.run} holds a training; go on with --resume, or name another directory")
    state = checkpoint.load_state(path)
    stored = build(type(settings), _without_checks(state["settings"], settings), f"{path}: settings")
    changed = difference(settings, stored)
    if changed:
        raise ConfigError(f"{path}: cannot go on with other settings: {changed}")
    return state


def _without_checks(stored: dict[str, Any], settings: RunConfig) -> dict[str, Any]:
    """``stored`` with today's paths: files that have moved since must not stop the comparison."""
    today = plain(settings)
    data = stored["data"] | {name: today["data"][name] for name in ("train", "valid", "noise")}
    return stored | {"data": data, "run": settings.run}


def _train(settings: RunConfig, plan: Plan, state: dict[str, Any] | None) -> None:
    """Train from ``state``, if there is one; the logs and the state go to ``settings.run``."""
    data, hop_length = settings.data, plan.mel.config.hop_length
    entries = read_manifest(*data.train, exclude_speakers=data.exclude_speakers)
    noise = [str(path) for path, _ in sound_files.find([data.noise])] if data.noise else []
    dataset = PairDataset(entries, data, noise=noise)
    valid = settings.valid
    held_out = examples(
        read_manifest(*data.valid), data, items=valid.items, seconds=valid.seconds, hop_length=hop_length, noise=noise
    )
    _check_best(valid.best, held_out)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with team(settings.device) as mates, Interruption().watch() as interruption:
        if state is None and isinstance(plan.model, EnhancerModule):
            plan.model.prepare(dataset.batch(data.batch, settings.seed, step) for step in range(PREPARED))
        if not any(p.requires_grad for p in plan.model.parameters()):
            _keep(settings, plan.model)
            return
        training = _training(settings, plan, mates, state)
        _check_same(mates, settings, training.step, len(entries))
        for module in (plan.mel, plan.task, plan.listener):
            if module is not None:
                module.to(mates.device)
        spread = {"rank": mates.rank, "world": mates.world, "ahead": data.ahead}
        feed: Any = batches(dataset, data.batch, settings.seed, training.step, **spread)  # a generator
        with closing(feed):
            how: dict[str, Any] = {
                "precision": _precision(settings, mates),
                "wrap": mates.wrap,
                "steps": settings.steps,
            }
            if plan.last_layer and plan.adversary and plan.adversary.adaptive:
                how["last_layer"] = plan.last_layer(training.model)
            if mates.rank > 0:
                fit(training, plan.task, feed, plan.weights, **how)
                return
            sweep(Path(settings.run))
            text = to_yaml(settings)
            checkpoint.replace_file(Path(settings.run, SETTINGS), lambda path: path.write_text(text, encoding="utf-8"))
            with RunLog(settings.run, training.step) as log:
                placed = [
                    e._replace(degraded=e.degraded.to(mates.device), clean=e.clean.to(mates.device)) for e in held_out
                ]
                log.say(_greeting(settings, training, dataset, placed))
                monitor = Monitor(
                    settings, log, placed, estimate=plan.estimate, mel=plan.mel, interruption=interruption
                )
                fit(training, plan.task, feed, plan.weights, report=monitor, **how)


def _check_same(mates: Team, settings: RunConfig, step: int, files: int) -> None:
    """Raise ConfigError if a process has other settings, another step or other data: they would not learn one model."""
    for rank, (theirs, their_step, their_files) in enumerate(mates.gather((settings, step, files))):
        if changed := difference(settings, theirs):
            raise ConfigError(
                f"process {mates.rank} differs from process {rank}: {changed.replace(', was', ', there')}"
            )
        if (step, files) != (their_step, their_files):
            ours, other = (f"step {s} and {f} files" for s, f in ((step, files), (their_step, their_files)))
            raise ConfigError(f"process {mates.rank} differs from process {rank}: it is at {ours}, there {other}")


def _keep(settings: RunConfig, model: nn.Module) -> None:
    """Write what has nothing to learn by steps."""
    checkpoint.save(Path(settings.run, LAST), model, provenance=provenance(settings, 0, {}))
    print(f"{settings.run}: nothing to learn by steps; written as it is")


def _check_best(best: str, held_out: list[Example]) -> None:
    """Raise ConfigError if ``best`` is of one kind of pairs and all are of one kind."""
    if best.endswith(("_real", "_simulated")) and len({example.real for example in held_out}) == 1:
        kind = "real" if held_out[0].real else "simulated"
        raise ConfigError(f"valid.best is {best!r}, but all held-out pairs are {kind}: leave the ending out")


def _training(settings: RunConfig, plan: Plan, mates: Team, state: dict[str, Any] | None) -> Training:
    if settings.init and not state:
        checkpoint.initialise(plan.model, settings.init)
    adversary = None
    if plan.adversary:
        adversary = Adversary(
            plan.adversary,
            settings.optimizer,
            device=mates.device,
            precision=_precision(settings, mates),
            wrap=mates.wrap,
        )
        if plan.adversary.init and not state:
            _borrow(adversary, plan.adversary.init)
    training = Training(plan.model.to(mates.device), settings.optimizer, adversary, plain(settings))
    if state:
        try:
            training.load_state_dict(state)
        except (RuntimeError, KeyError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(f"{settings.run}/{STATE}: does not fit this training: {reason}") from None
    return training


def _borrow(adversary: Adversary, path: str) -> None:
    """Begin with the discriminators of another training's state."""
    state = checkpoint.load_state(path).get("adversary")
    if not state:
        raise CheckpointError(f"adversary.init: {path}: holds no discriminators")
    checkpoint.assign(adversary.discriminators, state["discriminators"], f"adversary.init: {path}")


def _precision(settings: RunConfig, mates: Team) -> Precision:
    if settings.precision == "float32":
        return nullcontext
    return lambda: torch.autocast(mates.device.type, torch.bfloat16)


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


def last_weight(model: nn.Module) -> Tensor:
    """The weight, or its direction, of what makes the output: modules are named in the order of the data's way."""
    if isinstance(model, TwoStage):  # but for the encoder of a vocoder that hears the sensor, which stands behind
        model = model.vocoder.conv_post
    return [p for name, p in model.named_parameters() if p.ndim > 1 and not name.endswith("original0")][-1]


def _greeting(settings: RunConfig, training: Training, dataset: PairDataset, held_out: list[Example]) -> str:
    learning = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
    begun = f"goes on at step {training.step}" if training.step else "starts"
    return (
        f"{settings.run}: {begun}; {learning / 1e6:.2f} M weights learn; {len(dataset.clean)} clean files, "
        f"{len(dataset.real)} real pairs; {len(held_out)} files held out"
    )
