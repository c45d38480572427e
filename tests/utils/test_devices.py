"""Tests of devices: how "auto" chooses, and errors about devices that are not available."""

import pytest
import torch

from twostage.cli import main
from twostage.models.precision import computes_bfloat16
from twostage.training.distributed import team
from twostage.utils.devices import available_devices, device_for
from twostage.utils.errors import ConfigError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """machine(cuda, mps) sets which devices torch reports as available."""

    def set_available(cuda: bool, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return set_available


def test_auto_chooses_cuda_or_the_cpu_but_never_mps(machine):
    machine(False, True)
    assert (device_for("auto"), device_for("mps"), device_for("cpu")) == ("cpu", "mps", "cpu")
    assert available_devices() == ["cpu", "mps"]
    machine(True, False)
    assert (device_for("auto"), available_devices()) == ("cuda", ["cpu", "cuda"])


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_an_unavailable_device_is_an_error_that_names_it(machine, name, capsys):
    machine(False, False)
    with pytest.raises(ConfigError, match=f"device {name}: there is no {name.upper()} device that torch can use"):
        device_for(name)
    assert main(["restore", "samples/throat.flac", "-o", "x.wav", "--device", name]) == 1
    assert f"--device {name}: there is no {name.upper()} device" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="device is 'tpu', must be one of auto, cpu, cuda, mps"):
        device_for("tpu")


def test_a_training_uses_mps_only_on_request(machine):
    machine(False, True)
    with team("mps") as processes:
        assert (processes.device.type, processes.world) == ("mps", 1)
    with team("auto") as processes:
        assert processes.device.type == "cpu"


def test_bfloat16_is_not_used_on_mps():
    assert not computes_bfloat16("mps")
