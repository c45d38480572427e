"""A PulseAudio server for a test, without sound hardware. Without PulseAudio the test is skipped or fails."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

TOOLS = ("pulseaudio", "pactl", "parec", "pacat")


def is_required() -> bool:
    return os.environ.get("TWOSTAGE_REQUIRE_PULSE") == "1"


@dataclass(frozen=True)
class Pulse:
    """A running server, with the environment variables for its clients."""

    home: Path
    environment: dict[str, str]

    def pactl(self, *arguments: str) -> str:
        process = subprocess.run(
            ["pactl", *arguments], env=self.environment, capture_output=True, text=True, timeout=10
        )
        assert process.returncode == 0, (arguments, process.stderr)
        return process.stdout.strip()

    def names(self, kind: str) -> set[str]:
        return {line.split("\t")[1] for line in self.pactl("list", "short", kind).splitlines()}


@contextmanager
def pulse_server(home: Path) -> Iterator[Pulse]:
    """A server with a sink "body", and a microphone "bone" that records what is played there."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing and not is_required():
        pytest.skip(f"{', '.join(missing)} not installed (apt-get install pulseaudio pulseaudio-utils)")
    assert not missing, "TWOSTAGE_REQUIRE_PULSE=1, but PulseAudio is not installed"
    socket = home / "native"
    environment = os.environ | {"HOME": str(home), "XDG_RUNTIME_DIR": str(home), "PULSE_SERVER": f"unix:{socket}"}
    pulse = Pulse(home, environment)
    process = start(pulse)
    try:
        yield pulse
    finally:
        process.terminate()
        process.wait(20)


def start(pulse: Pulse) -> "subprocess.Popen[bytes]":
    socket = pulse.home / "native"
    loads = [
        f"module-native-protocol-unix socket={socket} auth-anonymous=1",
        "module-null-sink sink_name=body rate=16000 channels=1",
        "module-remap-source source_name=bone master=body.monitor channels=1 channel_map=mono remix=no",
        "module-null-source source_name=nothing",
    ]
    command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", "--log-target=null"]
    command += [argument for load in loads for argument in ("-L", load)]
    environment = {name: value for name, value in pulse.environment.items() if name != "PULSE_SERVER"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, **quiet)  # type: ignore[call-overload]
    deadline = time.monotonic() + 20
    while subprocess.run(["pactl", "info"], env=pulse.environment, capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.05)
    return process  # type: ignore[no-any-return]
