"""Tests of scripts/benchmark_speed.py: the quick form, the timing of alternatives, and the plain training step."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("benchmark_speed")


@pytest.mark.slow
def test_the_quick_form_measures_draws_and_writes_everything(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the first length is measured in a separate process, as all are usually; its memory is checked."""
    original = script.in_a_process

    def measure(kind: str, threads: int, **arguments: Any) -> dict[str, Any]:
        if arguments.get("seconds") == script.QUICK_LENGTHS[0]:
            return original(kind, threads, **arguments)
        return {"threads": threads} | json.loads(json.dumps(script.MEASURES[kind](**arguments)))

    monkeypatch.setattr(script, "in_a_process", measure)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    arguments = ["--quick", "--threads", "1", "--training", "tiny", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["benchmark_speed", *arguments])
    script.main()
    assert capsys.readouterr().out.strip() == (tmp_path / "speed.md").read_text().strip()
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"
    actual = json.loads((tmp_path / "speed.json").read_text())
    row = actual["speed"][0]
    assert row["gmac"] == pytest.approx(1.79, abs=0.05)
    stages = [row["factors"][name] for name in ("mel", "restorer", "vocoder", "Griffin-Lim")]
    assert min(stages) > 0
    assert [r["seconds"] for r in actual["lengths"]] == [0.5, 1.0]
    assert min(r["memory"] for r in actual["lengths"]) > 100
    assert actual["training"][0]["equal"] is True


def test_alternatives_are_timed_in_turn_and_the_median_is_returned(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    clock_values = iter([0, 9, 9, 19, 19, 20, 20, 22, 22, 25, 25, 29, 29, 31, 31, 37])  # a warm-up round of 9 and 10 s
    monkeypatch.setattr(script, "clock", lambda: next(clock_values))
    medians = script.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4
    assert medians == {"a": 2, "b": 4}


def test_the_plain_adversary_has_the_same_losses_but_leaves_gradients_in_the_discriminators(script: ModuleType) -> None:
    settings = script.settings_of("tiny")
    losses = {}
    for kind in (script.PlainAdversary, script.Adversary):
        torch.manual_seed(0)
        adversary = kind(settings.adversary, settings.optimizer)
        fake = torch.full((1, 1, 4096), 0.01, requires_grad=True)
        generator_losses = adversary.generator_loss(fake, torch.zeros(1, 1, 4096))
        sum(generator_losses.values()).backward()
        has_gradients = any(p.grad is not None for p in adversary.discriminators.parameters())
        losses[kind] = generator_losses["adv"].item(), generator_losses["fm"].item(), has_gradients
    plain, ours = losses[script.PlainAdversary], losses[script.Adversary]
    assert plain[:2] == ours[:2]
    assert (plain[2], ours[2]) == (True, False)
