"""The periodic work of a training: logging, validation on held-out speech, saving its state."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twostage import __version__
from twostage.models import checkpoint
from twostage.models.features import LogMel
from twostage.training import optim
from twostage.training.config import RunConfig
from twostage.training.logs import Clock, RunLog
from twostage.training.trainer import StepResult, Training
from twostage.training.validation import Estimator, Example, bounds, score_examples
from twostage.utils.errors import TwoStageError
from twostage.utils.signals import Interruption

STATE, BEST, LAST = "state.pt", "best.safetensors", "last.safetensors"


class Monitor:
    """Called after every step of ``fit``. The intervals are those of the settings; the last step runs everything."""

    def __init__(
        self,
        settings: RunConfig,
        log: RunLog,
        held_out: list[Example],
        *,
        estimate: Estimator,
        mel: LogMel,
        interruption: Interruption,
    ) -> None:
        self.settings, self.log, self.held_out, self.interruption = settings, log, held_out, interruption
        self.estimate, self.mel = estimate, mel
        self.scores: dict[str, float] = {}
        self._sums: dict[str, list[Tensor]] = {}
        self._clock, self._shown = Clock(), False

    def __call__(self, training: Training, progress: StepResult) -> None:
        for name, value in progress.values.items():
            self._sums.setdefault(name, []).append(value)
        self._clock.tick(progress.waited, progress.seconds)
        stopping = self.interruption.came
        due = self._due(training.step)
        if due(self.settings.save_every) or due(self.settings.valid.every) or stopping:
            self._check(training)
        if due(self.settings.log_every):
            self._log_means(training)
        if due(self.settings.valid.every):
            self._validate(training)
        if due(self.settings.save_every) or stopping:
            self._save(training)
        if stopping:
            self.log.say(f"stopped at step {training.step}; continue with --resume")
            raise KeyboardInterrupt

    def _due(self, step: int) -> Callable[[int], bool]:
        return lambda interval: step % interval == 0 or step >= self.settings.steps

    def _check(self, training: Training) -> dict[str, float]:
        means = {name: torch.stack(values).mean() for name, values in self._sums.items()}
        largest = torch.stack([weight.detach().abs().amax() for weight in training.model.parameters()]).max()
        name = optim.first_not_finite({**means, "weight": largest})
        if name:
            raise TwoStageError(
                f"{name} is not finite at step {training.step}, stopped before it was saved; "
                "a lower optimizer.learning_rate or an optimizer.grad_clip may help",
                subject=self.settings.run_dir,
            )
        return {name: float(mean) for name, mean in means.items()}

    def _log_means(self, training: Training) -> None:
        values = self._check(training)
        values["learning_rate"] = training.optimizer.param_groups[0]["lr"]
        self.log.scalars(training.step, values | self._clock.values(), "train")
        terms = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        remaining = self._clock.describe(self.settings.steps - training.step)
        self.log.say(f"step {training.step}/{self.settings.steps}  {terms}  [{remaining}]")
        self._sums, self._clock = {}, Clock()

    def _validate(self, training: Training) -> None:
        valid = self.settings.valid
        if not self._shown:
            self._log_bounds(training.step)
        self.scores = score_examples(training.ema, self.estimate, self.held_out, valid.metrics, self.mel)
        self.log.scalars(training.step, self.scores, "valid")
        score, best = self.scores[valid.best], training.best
        better = score == score and (  # not NaN
            best is None or (score > best if valid.higher_is_better else score < best)
        )
        if better:
            training.best = score
            self._write(training, BEST)
        scores = " ".join(f"{name} {value:.4f}" for name, value in self.scores.items())
        self.log.say(f"step {training.step}/{self.settings.steps}  held out: {scores}{'  (best)' if better else ''}")
        for index, example in enumerate(self.held_out[: valid.show]):
            self._show(training, index, example)
        self._shown = True

    def _log_bounds(self, step: int) -> None:
        """Log the scores of the input and of the clean speech, which bound those of the model and never change."""
        for side, scores in bounds(self.held_out, self.settings.valid.metrics, self.settings.data.sample_rate).items():
            self.log.scalars(step, scores, f"valid_{side}")
            self.log.say(f"held out, {side}: " + " ".join(f"{name} {value:.4f}" for name, value in scores.items()))

    @torch.no_grad()
    def _show(self, training: Training, index: int, example: Example) -> None:
        estimate, rate = self.estimate(training.ema, example), self.settings.data.sample_rate
        mels = {
            "degraded": self.mel(example.degraded[:, :1])[0],
            "output": estimate.mel,
            "clean": self.mel(example.clean)[0],
        }
        frames = min(mel.shape[-1] for mel in mels.values())  # systems with a different hop may output fewer
        images = {name: mel[..., :frames].cpu().numpy() for name, mel in mels.items()}
        self.log.picture(training.step, f"held_out_{index}", images)
        if estimate.audio is not None:
            self.log.sound(training.step, f"held_out_{index}/output", estimate.audio, rate)
        if not self._shown:
            for name, side in ("degraded", example.degraded), ("clean", example.clean):
                self.log.sound(training.step, f"held_out_{index}/{name}", side[0, 0].cpu().numpy(), rate)

    def _save(self, training: Training) -> None:
        self._write(training, LAST)
        checkpoint.save_state(Path(self.settings.run_dir, STATE), training.state_dict())

    def _write(self, training: Training, name: str) -> None:
        origin = provenance(self.settings, training.step, self.scores)
        checkpoint.save(Path(self.settings.run_dir, name), training.ema, provenance=origin)


def provenance(settings: RunConfig, step: int, scores: dict[str, float]) -> dict[str, Any]:
    """The provenance of weights: the training that they come from."""
    return {
        "made_by": f"twostage {__version__}, torch {torch.__version__}",
        "training": type(settings).__name__.removesuffix("Run").lower(),
        "steps": step,
        "seed": settings.seed,
        "data": [Path(path).name for path in settings.data.train],
        "held_out": {key: round(value, 5) for key, value in scores.items()},
    }
