"""Claims about scripts/benchmark_speed.py: its quick form measures everything, and its judgement of a plain step."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("benchmark_speed")


def test_the_quick_form_measures_draws_and_writes(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark_speed.py"), "--quick", "--threads", "1"]
    command += ["--training", "tiny", "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (tmp_path / "speed.md").read_text().strip()
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads((tmp_path / "speed.json").read_text())
    row = found["speed"][0]
    assert row["gmac"] == pytest.approx(2.93, abs=0.05)
    stages = [row["factors"][name] for name in ("mel", "restorer", "vocoder", "Griffin-Lim")]
    assert min(stages) > 0
    assert [r["seconds"] for r in found["lengths"]] == [0.5, 1.0]
    assert found["training"][0]["equal"] is True


def test_work_takes_turns_and_gives_medians(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    moments = iter([0, 9, 9, 19, 19, 20, 20, 22, 22, 25, 25, 29, 29, 31, 31, 37])  # a first round of 9 and 10 s
    monkeypatch.setattr(script, "clock", lambda: next(moments))
    taken = script.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4
    assert taken == {"a": 2, "b": 4}


def test_the_plain_adversary_judges_alike_and_leaves_gradients_behind(script: ModuleType) -> None:
    settings = script.settings_of("tiny")
    losses = {}
    for kind in (script.PlainAdversary, script.Adversary):
        torch.manual_seed(0)
        adversary = kind(settings.adversary, settings.optimizer)
        fake = torch.full((1, 1, 4096), 0.01, requires_grad=True)
        judged = adversary.judge(fake, torch.zeros(1, 1, 4096))
        sum(judged.values()).backward()
        learnt = any(p.grad is not None for p in adversary.discriminators.parameters())
        losses[kind] = judged["adv"].item(), judged["fm"].item(), learnt
    plain, ours = losses[script.PlainAdversary], losses[script.Adversary]
    assert plain[:2] == ours[:2]
    assert (plain[2], ours[2]) == (True, False)
