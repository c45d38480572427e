"""Tests by fault injection: the short form of tests/run_torture.py (docs/RELIABILITY.md).

Every command runs in a fork of one process that has imported everything. Seeds are fixed, and so are the damage and
its moments. A failure keeps its files below the test's folder, from where ``--replay`` runs it again.
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
from torture.harness import LONGEST, MEMORY, Outcome, violations

from twostage.audio import sound_files

ROOT = Path(__file__).parents[2]

# part -> (its minimum number of cases, kinds that it must contain)
PARTS = {
    "audio": (25, {"wav, rate", "name, no UTF-8"}),
    "weights": (15, set[str]()),
    "pickles": (20, {"code: restore --model", "code: resume", "code: restore-corpus --model", "names: manifest align"}),
    "kills": (1, {"train-vocoder"}),
    "disk": (6, {"full (file size): train-vocoder", "read-only: restore", "SIGTERM: restore"}),
}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of each part."""
    out = tmp_path_factory.mktemp("torture")
    command = [sys.executable, str(ROOT / "tests" / "run_torture.py"), "--short", "-o", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    results_by_part = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert results_by_part.keys() == PARTS.keys(), process.stderr
    return results_by_part


@pytest.mark.parametrize("part", PARTS)
def test_no_case_breaks_the_contract(part: str, results: dict[str, Any]) -> None:
    rows, (minimum, kinds) = results[part]["rows"], PARTS[part]
    assert len(rows) >= minimum
    assert kinds <= {row["kind"] for row in rows}
    assert [(row["name"], row["kind"], row["problems"]) for row in rows if row["problems"]] == []


def test_some_trainings_were_killed_while_they_wrote_a_file(results: dict[str, Any]) -> None:
    figures = [row["figures"] for row in results["kills"]["rows"]]
    assert sum(row["kills"] for row in figures) >= 3
    assert sum(row["while a file was being written"] for row in figures) >= 1


def test_some_damaged_files_are_refused_and_some_are_restored(results: dict[str, Any]) -> None:
    """Otherwise the files would not be damaged, or nothing would ever be restored."""
    for part in ("audio", "weights"):
        assert {row["code"] for row in results[part]["rows"]} == {0, 1}


GOOD = Outcome(0, 1.0, 100.0, "", "")
REFUSED = Outcome(1, 1.0, 100.0, "", "twostage: error: a.wav: is empty (0 bytes)\n")


@pytest.mark.parametrize(
    ("outcome", "expected"),
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
def test_every_violation_of_the_contract_is_detected(outcome: Outcome, expected: str) -> None:
    assert "; ".join(violations(outcome)) == "" if not expected else expected in "; ".join(violations(outcome))


def test_damage_depends_only_on_the_seed() -> None:
    def sample(seed: int) -> list[tuple[str, str, bytes]]:
        return [mutations.sound_file(np.random.default_rng([seed, n]), n) for n in range(24)]

    first = sample(0)
    time.sleep(1.1)  # some files contain the time
    assert first == sample(0)
    assert first != sample(1)


def test_audio_is_readable_before_it_is_damaged(tmp_path: Path) -> None:
    for container, coding, suffix in mutations.CONTAINERS:
        sound = mutations.speech(np.random.default_rng(0))
        (tmp_path / f"x.{suffix}").write_bytes(mutations.encoded(sound, 16000, container, coding))
        assert sound_files.read(tmp_path / f"x.{suffix}")[0].shape == (1, len(sound))
