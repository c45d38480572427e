"""Claims about hostile input and hostile moments: the short form of tests/run_torture.py (docs/RELIABILITY.md).

Every command runs in a fork of one process that has imported everything; the seeds are fixed, so are damage and
moments. A failure keeps its files below the test's folder, from where ``--replay`` runs it again.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torture import mutations
from torture.harness import LONGEST, MEMORY, Outcome, complaints

from twostage.audio import sound_files

ROOT = Path(__file__).parents[2]

# part -> how many cases it has at least, and kinds that must be among them
PARTS = {
    "audio": (25, {"wav, rate", "name, no UTF-8"}),
    "weights": (15, set[str]()),
    "pickles": (20, {"code: restore --model", "code: resume", "code: restore-corpus --model", "names: manifest align"}),
    "kills": (1, {"train-vocoder"}),
    "disk": (6, {"full (file size): train-vocoder", "read-only: restore", "SIGTERM: restore"}),
}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="it forks, and reads /proc")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of each part's cases."""
    out = tmp_path_factory.mktemp("torture")
    command = [sys.executable, str(ROOT / "tests" / "run_torture.py"), "--short", "-o", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    actual = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert actual.keys() == PARTS.keys(), done.stderr
    return actual


@pytest.mark.parametrize("part", PARTS)
def test_nothing_breaks(part: str, results: dict[str, Any]) -> None:
    rows, (least, kinds) = results[part]["rows"], PARTS[part]
    assert len(rows) >= least
    assert kinds <= {row["kind"] for row in rows}
    assert [(row["name"], row["kind"], row["problems"]) for row in rows if row["problems"]] == []


def test_trainings_were_killed_while_they_wrote(results: dict[str, Any]) -> None:
    figures = [row["figures"] for row in results["kills"]["rows"]]
    assert sum(row["kills"] for row in figures) >= 3
    assert sum(row["while a file was being written"] for row in figures) >= 1


def test_some_of_the_damage_is_refused_and_some_is_not(results: dict[str, Any]) -> None:
    """Else either the files are not damaged, or nothing is ever restored."""
    for part in ("audio", "weights"):
        assert {row["code"] for row in results[part]["rows"]} == {0, 1}


GOOD = Outcome(0, 1.0, 100.0, "", "")
REFUSED = Outcome(1, 1.0, 100.0, "", "twostage: error: a.wav: is empty (0 bytes)\n")


@pytest.mark.parametrize(
    ("outcome", "complaint"),
    [
        (GOOD, ""),
        (REFUSED, ""),
        (REFUSED._replace(err=REFUSED.err * 2), "2 lines that say why"),
        (REFUSED._replace(err=""), "0 lines that say why"),
        (REFUSED._replace(err=REFUSED.err + "Traceback (most recent call last):\n  x\nKeyError: 1\n"), "Traceback"),
        (GOOD._replace(err="/x.py:3: UserWarning: odd\n"), "UserWarning"),
        (GOOD._replace(err="Exception ignored in: <x>\n"), "Exception ignored"),
        (GOOD._replace(megabytes=MEMORY + 1), "MB of memory"),
        (GOOD._replace(code=-signal.SIGSEGV), "died of SIGSEGV"),
        (GOOD._replace(code=2), "exit code 2"),
        (GOOD._replace(hung=True, code=-signal.SIGKILL), "hung"),
        (REFUSED._replace(err=f"twostage: error: {'x' * LONGEST}\n"), "a line of"),
    ],
)
def test_the_contract_can_be_broken(outcome: Outcome, complaint: str) -> None:
    assert "; ".join(complaints(outcome)) == "" if not complaint else complaint in "; ".join(complaints(outcome))


def test_damage_is_a_function_of_the_seed() -> None:
    def sample(seed: int) -> list[tuple[str, str, bytes]]:
        return [mutations.sound_file(np.random.default_rng([seed, n]), n) for n in range(24)]

    first = sample(0)
    time.sleep(1.1)  # some files hold the time
    assert first == sample(0)
    assert first != sample(1)


def test_sound_is_sound_before_it_is_damaged(tmp_path: Path) -> None:
    for container, coding, suffix in mutations.CONTAINERS:
        sound = mutations.speech(np.random.default_rng(0))
        (tmp_path / f"x.{suffix}").write_bytes(mutations.encoded(sound, 16000, container, coding))
        assert sound_files.read(tmp_path / f"x.{suffix}")[0].shape == (1, len(sound))
