"""Claims about devices: what is asked for is there or named, and Apple's has to be asked for."""

import pytest
import torch

from twostage.cli import main
from twostage.models.precision import computes_bfloat16
from twostage.training.distributed import team
from twostage.utils.devices import available_devices, device_for
from twostage.utils.errors import ConfigError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """machine(cuda, mps): what torch says that there is."""

    def have(cuda: bool, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return have


def test_auto_is_cuda_or_the_cpu_and_mps_has_to_be_asked_for(machine):
    machine(False, True)
    assert (device_for("auto"), device_for("mps"), device_for("cpu")) == ("cpu", "mps", "cpu")
    assert available_devices() == ["cpu", "mps"]
    machine(True, False)
    assert (device_for("auto"), available_devices()) == ("cuda", ["cpu", "cuda"])


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_what_is_not_there_is_named(machine, name, capsys):
    machine(False, False)
    with pytest.raises(ConfigError, match=f"device {name}: there is no {name.upper()} device that torch can use"):
        device_for(name)
    assert main(["restore", "samples/throat.flac", "-o", "x.wav", "--device", name]) == 1
    assert f"--device {name}: there is no {name.upper()} device" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="device is 'tpu', must be one of auto, cpu, cuda, mps"):
        device_for("tpu")


def test_a_training_goes_to_apples_device(machine):
    machine(False, True)
    with team("mps") as mates:
        assert (mates.device.type, mates.world) == ("mps", 1)
    with team("auto") as mates:
        assert mates.device.type == "cpu"


def test_bfloat16_is_not_taken_for_granted_there():
    assert not computes_bfloat16("mps")
