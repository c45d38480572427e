"""Settings that trainings in tests share, and a comparison of two trainings."""

from pathlib import Path

import torch

from twostage.models import checkpoint


def equal(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


def assert_same_training(first: Path, second: Path) -> None:
    """Assert that two run folders have bitwise the same weights and training state."""
    states = [checkpoint.load_state(run / "state.pt") for run in (first, second)]
    for state in states:
        state["settings"].pop("run_dir")
        state["settings"].pop("steps")
    for key in states[0]:
        assert equal(states[0][key], states[1][key]), key
    for name in ("best.safetensors", "last.safetensors"):
        models = [checkpoint.load_stage(run / name) for run in (first, second)]
        assert equal(models[0].state_dict(), models[1].state_dict())


def data_overrides(corpus: Path, run_dir: Path | str = "x") -> list[str]:
    """Settings of a training on a manifest, which is also the validation data."""
    return [f"data.train=[{corpus}]", f"data.valid=[{corpus}]", f"run_dir={run_dir}"]
