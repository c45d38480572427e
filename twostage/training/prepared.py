"""A prepared training: its data are read and checked and its initial state is loaded before it runs."""

from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from twostage.audio import sound_files
from twostage.data.manifest import read_manifest
from twostage.data.pairs import Pair, PairDataset, batches
from twostage.models import checkpoint
from twostage.models.enhancer import EnhancerModule
from twostage.models.features import LogMel
from twostage.models.model_files import state_file
from twostage.training.adversary import Adversary, AdversaryRules, Precision
from twostage.training.config import CONFIG_FILE, RunConfig, difference, plain, to_yaml, with_new_names
from twostage.training.distributed import Team, team
from twostage.training.fingerprint import changed, fingerprint
from twostage.training.logs import RunLog
from twostage.training.monitor import LAST, STATE, Monitor, provenance
from twostage.training.tasks import LossWeights
from twostage.training.trainer import Training, fit
from twostage.training.validation import Estimator, Example, examples
from twostage.utils.errors import CheckpointError, ConfigError, first_line
from twostage.utils.files import replacing, sweep
from twostage.utils.schema import build
from twostage.utils.signals import Interruption

PREPARED = 64  # batches from which statistics of the training set are measured


@dataclass(frozen=True)
class Plan:
    """The parts in which trainings differ. ``listener`` is a frozen vocoder for held-out speech.

    ``last_layer`` returns the weight of a model at which an adaptive adversarial loss is balanced.
    """

    model: nn.Module
    mel: LogMel
    task: nn.Module
    weights: LossWeights
    estimate: Estimator
    adversary: AdversaryRules | None = None
    last_layer: Callable[[Any], Tensor] | None = None
    listener: nn.Module | None = None


@dataclass(frozen=True)
class PreparedTraining:
    """A training that is ready to run: the model, the task, the data and the initial state."""

    settings: RunConfig
    plan: Plan
    dataset: PairDataset
    held_out: list[Example]
    files: int  # entries of the training manifests
    data: dict[str, Any]  # the fingerprint of all data
    state: dict[str, Any] | None = None

    @classmethod
    def of(cls, settings: RunConfig, plan: Plan, state: dict[str, Any] | None) -> Self:
        """Read the data that the settings name. Raises TwoStageError for errors that the user can fix."""
        data, valid = settings.data, settings.valid
        entries = read_manifest(*data.train, exclude_speakers=data.exclude_speakers)
        noise = [str(path) for path, _ in sound_files.find([data.noise])] if data.noise else []
        dataset = PairDataset(entries, data, noise=noise)
        dataset.check_delays()
        held_out = examples(
            read_manifest(*data.valid),
            data,
            items=valid.items,
            seconds=valid.seconds,
            hop_length=plan.mel.config.hop_length,
            noise=noise,
        )
        _check_best(valid.best, held_out)
        fingerprints = fingerprint(entries, noise, held_out, plan.listener)
        if state and (name := changed(fingerprints, state.get("data", {}))):
            raise ConfigError(
                f"{name} is not what this training began with in {settings.run_dir}: scores and weights would depend "
                "on two sets; give the same data (files may have moved), or begin another training from its weights "
                "(init_from)"
            )
        return cls(settings, plan, dataset, held_out, len(entries), fingerprints, state)

    def run(self) -> None:
        """Train to the last step; the logs, the weights and the state go to ``settings.run_dir``."""
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        with team(self.settings.device) as mates, Interruption().watch() as interruption:
            if self.state is None and isinstance(self.plan.model, EnhancerModule):
                self.plan.model.prepare(self._batch(step) for step in range(PREPARED))
            if not any(p.requires_grad for p in self.plan.model.parameters()):
                _save_untrained(self.settings, self.plan.model)
                return
            training = _training(self.settings, self.plan, mates, self.state)
            training.data = self.data
            _check_same(mates, self.settings, training.step, self.files)
            for module in (self.plan.mel, self.plan.task, self.plan.listener):
                if module is not None:
                    module.to(mates.device)
            with closing(self._feed(training.step, mates)) as feed:
                learn = self._learner(training, mates, feed)
                if mates.rank > 0:
                    learn()
                else:
                    self._lead(training, mates, learn, interruption)

    def _batch(self, step: int) -> Pair:
        return self.dataset.batch(self.settings.data.batch_size, self.settings.seed, step)

    def _feed(self, step: int, mates: Team) -> Generator[Pair, None, None]:
        """The batches of this process from number ``step`` on."""
        data, seed = self.settings.data, self.settings.seed
        return batches(
            self.dataset, data.batch_size, seed, step, rank=mates.rank, world=mates.world, prefetch=data.prefetch
        )

    def _learner(self, training: Training, mates: Team, feed: Generator[Pair, None, None]) -> Callable[..., None]:
        """``fit`` with all arguments except for ``report``, which is optional."""
        adversary, last_layer = self.plan.adversary, None
        if self.plan.last_layer and adversary and adversary.adaptive:
            last_layer = self.plan.last_layer(training.model)
        return partial(
            fit,
            training,
            self.plan.task,
            feed,
            self.plan.weights,
            steps=self.settings.steps,
            precision=_precision(self.settings, mates),
            wrap=mates.wrap,
            last_layer=last_layer,
        )

    def _lead(self, training: Training, mates: Team, learn: Callable[..., None], interruption: Interruption) -> None:
        """Train in the process that writes files and monitors the training."""
        run_dir = Path(self.settings.run_dir)
        sweep(run_dir)
        with replacing(run_dir / CONFIG_FILE) as partial_file:
            partial_file.write_text(to_yaml(self.settings), encoding="utf-8")
        with RunLog(self.settings.run_dir, training.step) as log:
            held_out = [
                e._replace(degraded=e.degraded.to(mates.device), clean=e.clean.to(mates.device)) for e in self.held_out
            ]
            log.say(_greeting(self.settings, training, self.dataset, held_out))
            monitor = Monitor(
                self.settings, log, held_out, estimate=self.plan.estimate, mel=self.plan.mel, interruption=interruption
            )
            learn(report=monitor)


def begin(settings: RunConfig, resume: bool) -> dict[str, Any] | None:
    """Set the seed, and return the state to continue from: None at the start of a training.

    Raises ConfigError if the run directory contains a training and ``resume`` is not set or its settings differ, or if
    it contains none and ``resume`` is set.
    """
    torch.manual_seed(settings.seed)
    path = Path(settings.run_dir, STATE)
    if not path.exists():
        # a training that was killed before its first state has only its settings
        if resume and not Path(settings.run_dir, CONFIG_FILE).exists():
            raise ConfigError(
                f"run_dir: {settings.run_dir} contains no training to resume; without --resume one begins there"
            )
        return None
    if not resume:
        raise ConfigError(
            f"run_dir: {settings.run_dir} contains a training; continue it with --resume, or name another directory"
        )
    state = checkpoint.load_state(path)
    stored = with_new_names(type(settings), state["settings"])
    stored = build(type(settings), _without_checks(stored, settings), f"{path}: settings")
    changed = difference(settings, stored)
    if changed:
        raise ConfigError(f"cannot continue with other settings: {changed}", subject=path)
    return state


def _without_checks(stored: dict[str, Any], settings: RunConfig) -> dict[str, Any]:
    """``stored`` with the current paths, because moved files must not prevent the comparison."""
    current = plain(settings)
    data = stored["data"] | {name: current["data"][name] for name in ("train", "valid", "noise")}
    return stored | {"data": data, "run_dir": settings.run_dir}


def _check_same(mates: Team, settings: RunConfig, step: int, files: int) -> None:
    """Raise ConfigError if processes differ in settings, step or data, because they would train different models."""
    for rank, (theirs, their_step, their_files) in enumerate(mates.gather((settings, step, files))):
        if changed := difference(settings, theirs, "there"):
            raise ConfigError(f"process {mates.rank} differs from process {rank}: {changed}")
        if (step, files) != (their_step, their_files):
            ours, theirs_text = (f"step {s} and {f} files" for s, f in ((step, files), (their_step, their_files)))
            raise ConfigError(f"process {mates.rank} differs from process {rank}: it is at {ours}, there {theirs_text}")


def _save_untrained(settings: RunConfig, model: nn.Module) -> None:
    """Write a model without trainable parameters."""
    checkpoint.save(Path(settings.run_dir, LAST), model, provenance=provenance(settings, 0, {}))
    print(f"{settings.run_dir}: no parameters to train; written after its preparation")


def _check_best(best: str, held_out: list[Example]) -> None:
    """Raise ConfigError if ``best`` is restricted to one kind of pairs, but all pairs are of one kind."""
    if best.endswith(("_real", "_simulated")) and len({example.real for example in held_out}) == 1:
        kind = "real" if held_out[0].real else "simulated"
        raise ConfigError(f"valid.best is {best!r}, but all held-out pairs are {kind}: remove the suffix")


def _training(settings: RunConfig, plan: Plan, mates: Team, state: dict[str, Any] | None) -> Training:
    if settings.init_from and not state:
        checkpoint.initialize(plan.model, settings.init_from)
    adversary = None
    if plan.adversary:
        adversary = Adversary(
            plan.adversary,
            settings.optimizer,
            device=mates.device,
            precision=_precision(settings, mates),
            wrap=mates.wrap,
        )
        if plan.adversary.init_from and not state:
            _initialize_discriminators(adversary, plan.adversary.init_from)
    training = Training(plan.model.to(mates.device), settings.optimizer, adversary, plain(settings))
    if state:
        try:
            training.load_state_dict(state)
        except (RuntimeError, KeyError, ValueError) as error:
            reason = first_line(error)
            raise CheckpointError(f"{settings.run_dir}/{STATE}: does not fit this training: {reason}") from None
    return training


def _initialize_discriminators(adversary: Adversary, path: str) -> None:
    """Initialize the discriminators from another training's state, or from those of a shipped model."""
    file = state_file(path, STATE)
    checkpoint.assign(adversary.discriminators, checkpoint.load_discriminators(file), f"adversary.init_from: {file}")


def _precision(settings: RunConfig, mates: Team) -> Precision:
    if settings.precision == "float32":
        return nullcontext
    return lambda: torch.autocast(mates.device.type, torch.bfloat16)


def _greeting(settings: RunConfig, training: Training, dataset: PairDataset, held_out: list[Example]) -> str:
    trainable = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
    start = f"continues at step {training.step}" if training.step else "starts"
    return (
        f"{settings.run_dir}: {start}; {trainable / 1e6:.2f} M weights learn; {len(dataset.clean)} clean files, "
        f"{len(dataset.real)} real pairs; {len(held_out)} files held out"
    )
