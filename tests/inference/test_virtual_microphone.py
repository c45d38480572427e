"""Tests of the virtual microphone with a PulseAudio server without hardware, and of live meters."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pulse import Pulse, pulse_server, start
from streams import FakeDevices, causal_model, noise, offline

from twostage import cli
from twostage.audio.highpass import highpass
from twostage.inference import virtual_microphone
from twostage.inference.meter import Meter
from twostage.inference.realtime import run_duplex
from twostage.inference.stream import Stream
from twostage.utils.errors import AudioError, ConfigError

ROOT = Path(__file__).parents[2]
RATE = 16000
CHUNK = 160  # samples, less than a hop, since a busy machine may lose audio anywhere
CAPTURE = ["--raw", "--rate=16000", "--channels=1", "--format=float32le", "--latency-msec=10"]


@pytest.fixture
def pulse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pulse]:
    with pulse_server(tmp_path) as server:
        for name in ("HOME", "XDG_RUNTIME_DIR", "PULSE_SERVER"):
            monkeypatch.setenv(name, server.environment[name])
        yield server


class Recorder:
    """Records a source of PulseAudio, with the time at which each part arrived."""

    def __init__(self, pulse: Pulse, source: str) -> None:
        command = ["parec", f"--device={source}", *CAPTURE]
        self._process = subprocess.Popen(command, env=pulse.environment, stdout=subprocess.PIPE, bufsize=0)
        self._parts: list[tuple[float, bytes]] = []
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        while data := self._process.stdout.read(640):
            self._parts.append((time.monotonic(), data))

    def stop(self) -> np.ndarray:
        self._process.kill()
        self._thread.join(10)
        self._process.wait(10)
        return np.frombuffer(b"".join(data for _, data in self._parts), "<f4")

    def arrival_time(self, sample: int) -> float:
        """The time at which a sample arrived."""
        for moment, data in self._parts:
            sample -= len(data) // 4
            if sample < 0:
                return moment
        raise IndexError


def play(pulse: Pulse, sound: np.ndarray) -> None:
    command = [
        "pacat",
        "--playback",
        "--device=body",
        *CAPTURE[:-1],
    ]  # with the usual buffer, so that a busy machine leaves no gaps
    subprocess.run(command, env=pulse.environment, input=sound.astype("<f4").tobytes(), check=True, timeout=60)


def serve(pulse: Pulse, model: str, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "twostage", "stream", "--virtual-microphone", "restored", "--model", model]
    environment = pulse.environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *options], env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_line(process: "subprocess.Popen[str]", words: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"the process ended without printing {words!r}")


def wait_until(done: Any) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def best_match(recorded: np.ndarray, expected: np.ndarray) -> tuple[int, float]:
    """(position, correlation) of the best match of ``expected`` in ``recorded``, whatever its level."""
    recorded, expected = recorded.astype(np.float64), expected.astype(np.float64)
    size, positions = len(recorded) + len(expected), len(recorded) - len(expected) + 1
    product = np.fft.irfft(np.fft.rfft(recorded, size) * np.conj(np.fft.rfft(expected, size)), size)[:positions]
    energy = np.concatenate([[0.0], np.cumsum(recorded**2)])
    energy = np.maximum(energy[len(expected) :] - energy[: -len(expected)], 1e-6)
    correlations = product / np.sqrt(energy * (expected @ expected))
    position = int(np.argmax(correlations))
    return position, float(correlations[position])


def expected_output(sound: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """The model's output for ``sound``. Its position within a hop is not known and is estimated from ``recorded``.

    The stream first removes what lies below speech, and has processed silence before.
    """
    sound = highpass(np.concatenate([np.zeros(RATE, np.float32), sound]), RATE, causal=True)[RATE:]
    starts = [np.concatenate([np.zeros(first, np.float32), sound[: 8192 - first]]) for first in range(256)]
    with torch.inference_mode():
        output = causal_model()(torch.from_numpy(np.stack(starts))[:, None])[:, 0].numpy()
    chunks = (4000, 5600, 7200)
    correlations = [
        max(best_match(recorded, row[position : position + 2 * CHUNK])[1] for position in chunks) for row in output
    ]
    first = int(np.argmax(correlations))
    with torch.inference_mode():
        whole = causal_model()(torch.from_numpy(np.pad(sound, (first, 512)))[None, None])[0, 0].numpy()
    return whole[first : first + len(sound)]


def fraction_recorded(recorded: np.ndarray, expected: np.ndarray) -> float:
    """The fraction of chunks of ``expected`` that were recorded: a busy machine may lose some, none match by chance."""
    chunks = np.split(expected[: len(expected) // CHUNK * CHUNK], len(expected) // CHUNK)
    return float(np.mean([best_match(recorded, chunk)[1] > 0.95 for chunk in chunks]))


class Call:
    """Recordings of the microphone and of the call while ``sound`` is played, repeated if a busy machine lost most."""

    def __init__(self, pulse: Pulse, sound: np.ndarray) -> None:
        for _ in range(6):
            before, after = Recorder(pulse, "bone"), Recorder(pulse, "restored")
            time.sleep(4.0)  # a new stream gets nothing for up to two seconds, and then much at once
            play(pulse, sound)
            time.sleep(1.0)
            self.before, self.after = before, after
            self.microphone, self.recorded = before.stop(), after.stop()
            self.fraction = 0.0
            if self.recorded.any():
                self.restored = expected_output(sound, self.recorded)
                self.fraction = fraction_recorded(self.recorded, self.restored[4000:28000])
            if self.fraction > 0.2:
                break


@pytest.mark.slow
def test_a_call_records_the_restored_microphone(pulse: Pulse, causal_path: str) -> None:
    process = serve(pulse, causal_path, "--microphone", "bone")
    wait_for_line(process, "restored is a microphone now, with the restored sound of bone")
    assert "restored" in pulse.names("sources")
    sound = noise(2 * RATE)
    call = Call(pulse, sound)
    assert call.fraction > 0.2
    assert fraction_recorded(call.recorded, sound[4000:28000]) == 0  # the output of the model, not of the microphone
    delays = []
    for first in range(4000, 28000, 800):
        chunk = slice(first, first + CHUNK)
        position_in, correlation_in = best_match(call.microphone, sound[chunk])
        position_out, correlation_out = best_match(call.recorded, call.restored[chunk])
        if min(correlation_in, correlation_out) > 0.95:
            delays.append(call.after.arrival_time(position_out) - call.before.arrival_time(position_in))
    print(f"latency {1000 * np.median(delays):.0f} ms, of which the model's are 48")
    assert np.median(delays) > 0.01  # the value depends on the machine
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert "restored" not in pulse.names("sources")
    assert pulse.names("sinks") == {"body"}


@pytest.mark.slow
def test_a_lost_microphone_reconnects_and_a_killed_process_leaves_no_devices(pulse: Pulse, causal_path: str) -> None:
    process = serve(pulse, causal_path, "--microphone", "bone")
    wait_for_line(process, "restored is a microphone now")
    modules = pulse.pactl("list", "short", "modules").splitlines()
    bone = next(line.split("\t")[0] for line in modules if "source_name=bone" in line)
    pulse.pactl("unload-module", bone)
    wait_for_line(process, "bone is lost; waiting for it")
    assert "restored" in pulse.names("sources")  # a call continues with silence
    pulse.pactl("load-module", "module-remap-source", "source_name=bone", "master=body.monitor")
    wait_for_line(process, "bone is back")
    assert Call(pulse, noise(2 * RATE)).fraction > 0.2
    process.kill()
    process.wait(20)
    wait_until(lambda: "restored" not in pulse.names("sources"))
    wait_until(lambda: pulse.names("sinks") == {"body"})
    wait_until(lambda: "twostage" not in pulse.pactl("list", "clients"))


@pytest.mark.slow
def test_a_server_that_restarts_is_reconnected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = list[str]()
    with pulse_server(tmp_path) as pulse:
        monkeypatch.setenv("PULSE_SERVER", pulse.environment["PULSE_SERVER"])
        meter = Meter(256 / RATE, 0.0, messages.append, pace=0.0)
        arguments = (Stream(causal_model()), 256, "mine", "bone", 8.0, messages.append)
        thread = threading.Thread(
            target=virtual_microphone.run_virtual_microphone, args=arguments, kwargs={"meter": meter}
        )
        thread.start()
        wait_until(lambda: messages and meter.hops > 10)
    restarted = start(pulse)
    try:
        wait_until(lambda: len(messages) == 3 and "mine" in pulse.names("sources"))
        thread.join(30)
        assert [line.split()[0] for line in messages] == ["mine", "the", "mine"]
        assert "mine" not in pulse.names("sources")
    finally:
        restarted.terminate()
        restarted.wait(20)


@pytest.mark.slow
def test_invalid_names_are_refused_and_devices_of_dead_processes_removed(
    pulse: Pulse, causal_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["stream", "--model", causal_path, "--for", "0.1", "--virtual-microphone"]
    for arguments, error in (
        (["a b"], "--virtual-microphone a b: must be letters, digits"),
        (["x", "--microphone", "none"], "none: no such microphone; there are body.monitor, bone, nothing"),
        (["nothing", "--microphone", "bone"], "--virtual-microphone nothing: a source with this name exists already"),
    ):
        assert cli.main([*command, *arguments]) == 1
        assert error in capsys.readouterr().err
    dead = subprocess.Popen(["true"])
    dead.wait()
    properties = f'sink_properties="device.description=x {virtual_microphone.OWNER}={dead.pid}"'
    pulse.pactl("load-module", "module-null-sink", "sink_name=left.input", properties)
    alive = f'sink_properties="device.description=x {virtual_microphone.OWNER}={os.getpid()}"'
    pulse.pactl("load-module", "module-null-sink", "sink_name=alive.input", alive)
    assert cli.main([*command, "mine", "--microphone", "bone"]) == 0
    assert "mine is a microphone now" in capsys.readouterr().err
    assert pulse.names("sinks") == {"body", "alive.input"}
    assert cli.main(["stream", "--list-devices"]) == 0
    assert " bone\n" in capsys.readouterr().out


def test_missing_tools_are_reported_with_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match="needs pactl, parec, pacat: install pulseaudio-utils"):
        virtual_microphone.require()
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ConfigError, match="needs Linux"):
        virtual_microphone.require()


def test_a_model_that_looks_ahead_is_refused(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(virtual_microphone, "checked_microphone", lambda *_: None)
    assert cli.main(["stream", "--virtual-microphone", "mine", "--model", str(tiny_path)]) == 1
    error = capsys.readouterr().err
    assert f"--virtual-microphone needs a causal model: {tiny_path} returns whole windows" in error
    assert error.count("\n") == 1


def test_audio_that_waits_too_long_is_skipped() -> None:
    reader, writer = os.pipe()
    sound = noise(RATE // 2)
    os.write(writer, sound.tobytes())
    os.close(writer)
    played, meter = [], Meter(256 / RATE, 0.05, print, pace=0.0)

    class Sink:
        write = staticmethod(played.append)

    with open(reader, "rb", buffering=0) as capture:
        virtual_microphone._relay(Stream(causal_model()), 256, capture, Sink, lambda: True, meter)  # type: ignore[arg-type]
    assert meter.xruns == 1
    assert meter.lost_seconds == pytest.approx(0.45, abs=256 / RATE)
    rest = sound[int(meter.lost_seconds * RATE) :]
    output = np.frombuffer(b"".join(played), "<f4")
    whole = len(rest) // 256 * 256
    np.testing.assert_allclose(output, offline(causal_model(), rest[:whole])[: len(output)], atol=1e-5)


def test_the_meter_prints_level_load_and_delay() -> None:
    lines = list[str]()
    meter = Meter(0.016, 0.050, lines.append, pace=1e-9)
    time.sleep(0.001)
    meter.xrun()
    meter.hop(np.full(256, 0.1, np.float32), work=0.004, waiting=0.010)
    assert lines == []  # a device's callback must not wait for a terminal
    meter.report()
    assert lines == ["input level -20 dBFS, load 0.25, 60 ms late, sound lost 1 times"]
    meter.hop(np.zeros(256, np.float32), work=0.032)
    meter.report()
    assert lines[1] == "input level -120 dBFS, load 2.00, 50 ms late, sound lost 1 times"
    assert (meter.hops, meter.late_hops) == (2, 1)


def test_a_live_stream_continues_after_samples_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = noise(256 * 40)
    broken = sound.copy()
    broken[256 * 10 + 5] = np.nan
    devices = FakeDevices(broken)
    monkeypatch.setitem(sys.modules, "sounddevice", devices)
    meter = Meter(0.016, 0.0, print, pace=0.0)
    assert run_duplex(Stream(causal_model()), 256, (None, None), seconds=0.01, meter=meter) == 1
    assert meter.hops == 40
    assert meter.latency == pytest.approx(0.048 + 0.03)
    played = np.concatenate(devices.played)
    assert np.isfinite(played).all()
    afterwards = offline(causal_model(), sound[256 * 11 :])[: 256 * 10]
    assert best_match(played, afterwards)[1] > 0.999


def test_missing_devices_are_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    monkeypatch.setattr(virtual_microphone, "source_list", lambda: (_ for _ in ()).throw(AudioError("no server")))
    assert cli.main(["stream", "--list-devices"]) == 1
    assert "twostage: warning: --microphone: no server" in capsys.readouterr().err
