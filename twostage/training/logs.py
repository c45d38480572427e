"""Logs of a training: TensorBoard (scalars, sound, spectrograms), a JSONL file and lines on the console."""

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from twostage.utils.errors import OutputError, reason_of
from twostage.utils.files import make_folder, replacing
from twostage.utils.schema import parse_json

Array = NDArray[np.float32]
# from dark violet through red to pale yellow, after matplotlib's inferno
COLORS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float32) / 255


class RunLog:
    """The logs of one run directory from ``step`` on; entries of an interrupted run after that step are dropped.

    Used in a ``with`` block. Raises OutputError, one line, if the logs cannot be written.
    """

    def __init__(self, directory: str | Path, step: int = 0, *, console: TextIO | None = None) -> None:
        self.directory, self.console = Path(directory), console or sys.stderr
        make_folder(self.directory)
        self._lines = self.directory / "log.jsonl"
        self._previous_hook, threading.excepthook = threading.excepthook, self._handle_thread_exception
        try:
            with self._writing():
                self._drop_after(step)
                self._board = SummaryWriter(str(self.directory / "tensorboard"), purge_step=step + 1)
        except BaseException:
            threading.excepthook = self._previous_hook
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OutputError:
            if kind is None:  # otherwise the earlier error matters more
                raise

    def scalars(self, step: int, values: Mapping[str, float], kind: str) -> None:
        """Log the ``values`` of a step under ``kind``, such as "train"."""
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        with self._writing():
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
        with self._writing(), self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "kind": kind, "time": round(time.time(), 1), **rounded}) + "\n")

    def sound(self, step: int, name: str, audio: Array, sample_rate: int) -> None:
        """Log (T,) audio."""
        with self._writing():
            self._board.add_audio(name, np.clip(audio, -1, 1)[None], step, sample_rate)

    def picture(self, step: int, name: str, mels: Mapping[str, Array]) -> None:
        """Log log-mels (n_mels, L) as one image, one below the other in the order of ``mels``."""
        rows = [np.pad(np.flipud(mel), ((0, 2), (0, 0)), constant_values=-np.inf) for mel in mels.values()]
        stacked = np.concatenate(rows)
        with self._writing():
            self._board.add_image(name, colored(stacked, low=-11.5, high=2.0), step)

    def say(self, line: str) -> None:
        print(line, file=self.console, flush=True)

    def close(self) -> None:
        try:
            with self._writing():
                self._board.close()
        finally:
            threading.excepthook = self._previous_hook

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"logs cannot be written ({reason_of(error)})", subject=self.directory) from None

    def _handle_thread_exception(self, args: threading.ExceptHookArgs) -> None:
        """Ignore an OSError of TensorBoard's writer thread, which the next write to the log raises again."""
        if not isinstance(args.exc_value, OSError):
            self._previous_hook(args)

    def _drop_after(self, step: int) -> None:
        if not self._lines.exists():
            return
        lines = self._lines.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _step(line) <= step]
        if len(kept) < len(lines):
            with replacing(self._lines) as partial:  # a training killed here must not lose its log
                partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


class Clock:
    """Steps per second, the remaining time, and the fraction of time spent waiting for data."""

    def __init__(self) -> None:
        self.steps, self.waited, self.seconds = 0, 0.0, 0.0

    def tick(self, waited: float, seconds: float) -> None:
        self.steps, self.waited, self.seconds = self.steps + 1, self.waited + waited, self.seconds + seconds

    def values(self) -> dict[str, float]:
        return {"steps_per_second": self.steps / self.seconds, "data_share": self.waited / self.seconds}

    def describe(self, left: int) -> str:
        """A description, with the time for ``left`` more steps.

        >>> clock = Clock()
        >>> for _ in range(10):
        ...     clock.tick(0.01, 0.5)
        >>> clock.describe(14400)
        '2.00 steps/s, 2:00:00 left, 2 % waiting for data'
        """
        values = self.values()
        minutes, seconds = divmod(round(left / values["steps_per_second"]), 60)
        share = 100 * values["data_share"]
        eta = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
        return f"{values['steps_per_second']:.2f} steps/s, {eta} left, {share:.0f} % waiting for data"


def colored(values: Array, *, low: float, high: float) -> Array:
    """Values (H, W) as an RGB image (3, H, W) in [0, 1]; ``low`` is dark, ``high`` bright."""
    position = np.clip((values - low) / (high - low), 0, 1)
    return np.stack([np.interp(position, np.linspace(0, 1, len(COLORS)), channel) for channel in COLORS.T]).astype(
        np.float32
    )


def _step(line: str) -> float:
    try:
        step = float(parse_json(line)["step"])
        return step if step == step else float("inf")
    except (ValueError, LookupError, TypeError, OverflowError):
        return float("inf")  # an incomplete last line of a killed run
