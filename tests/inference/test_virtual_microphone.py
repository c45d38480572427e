"""Claims about the virtual microphone, against a real PulseAudio server without hardware; and about live meters."""

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
from test_cli_stream import FakeDevices
from test_stream import offline, speech
from test_streaming import chain

from twostage import cli
from twostage.audio.highpass import highpass
from twostage.inference import virtual_microphone
from twostage.inference.meter import Meter
from twostage.inference.realtime import run_duplex
from twostage.inference.stream import Stream
from twostage.models import checkpoint
from twostage.utils.errors import AudioError, ConfigError

ROOT = Path(__file__).parents[2]
RATE = 16000
CHUNK = 160  # samples: less than a hop, since a busy machine may lose sound between any two
CAPTURE = ["--raw", "--rate=16000", "--channels=1", "--format=float32le", "--latency-msec=10"]


@pytest.fixture
def pulse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pulse]:
    with pulse_server(tmp_path) as server:
        for name in ("HOME", "XDG_RUNTIME_DIR", "PULSE_SERVER"):
            monkeypatch.setenv(name, server.environment[name])
        yield server


@pytest.fixture
def model(tmp_path: Path) -> str:
    checkpoint.save(tmp_path / "causal.safetensors", chain(), provenance={})
    return str(tmp_path / "causal.safetensors")


class Recorder:
    """What a program hears of a source, and when each part of it came."""

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

    def when(self, sample: int) -> float:
        """The moment at which a sample came."""
        for moment, data in self._parts:
            sample -= len(data) // 4
            if sample < 0:
                return moment
        raise IndexError


def play(pulse: Pulse, sound: np.ndarray) -> None:
    command = ["pacat", "--playback", "--device=body", *CAPTURE[:-1]]  # buffered well: a busy machine leaves no gaps
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
    raise AssertionError(f"it ended without saying {words!r}")


def wait_until(done: Any) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def best_match(recorded: np.ndarray, expected: np.ndarray) -> tuple[int, float]:
    """Where ``heard`` is most like ``expected``, whatever its loudness, and the correlation there."""
    recorded, expected = recorded.astype(np.float64), expected.astype(np.float64)
    size, places = len(recorded) + len(expected), len(recorded) - len(expected) + 1
    product = np.fft.irfft(np.fft.rfft(recorded, size) * np.conj(np.fft.rfft(expected, size)), size)[:places]
    energy = np.concatenate([[0.0], np.cumsum(recorded**2)])
    energy = np.maximum(energy[len(expected) :] - energy[: -len(expected)], 1e-6)
    like = product / np.sqrt(energy * (expected @ expected))
    place = int(np.argmax(like))
    return place, float(like[place])


def restored_of(sound: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """What the model makes of ``sound``, which began anywhere within a hop: where, is seen in what was ``heard``.

    The stream takes away what lies below speech first, and has heard silence before.
    """
    sound = highpass(np.concatenate([np.zeros(RATE, np.float32), sound]), RATE, causal=True)[RATE:]
    starts = [np.concatenate([np.zeros(first, np.float32), sound[: 8192 - first]]) for first in range(256)]
    with torch.inference_mode():
        output = chain()(torch.from_numpy(np.stack(starts))[:, None])[:, 0].numpy()
    chunks = (4000, 5600, 7200)
    like = [max(best_match(recorded, row[place : place + 2 * CHUNK])[1] for place in chunks) for row in output]
    first = int(np.argmax(like))
    with torch.inference_mode():
        whole = chain()(torch.from_numpy(np.pad(sound, (first, 512)))[None, None])[0, 0].numpy()
    return whole[first : first + len(sound)]


def share_recorded(recorded: np.ndarray, expected: np.ndarray) -> float:
    """Of ``expected`` in chunks, how many are in ``heard``: a busy machine may lose some sound. By chance none is."""
    chunks = np.split(expected[: len(expected) // CHUNK * CHUNK], len(expected) // CHUNK)
    return float(np.mean([best_match(recorded, chunk)[1] > 0.95 for chunk in chunks]))


class Call:
    """What a call and the microphone heard while ``sound`` was played; a busy machine needs several tries."""

    def __init__(self, pulse: Pulse, sound: np.ndarray) -> None:
        for _ in range(6):
            before, after = Recorder(pulse, "bone"), Recorder(pulse, "restored")
            time.sleep(4.0)  # the server gives nothing of a new stream for up to two seconds, and then much at once
            play(pulse, sound)
            time.sleep(1.0)
            self.before, self.after = before, after
            self.microphone, self.recorded = before.stop(), after.stop()
            self.share = 0.0
            if self.recorded.any():
                self.restored = restored_of(sound, self.recorded)
                self.share = share_recorded(self.recorded, self.restored[4000:28000])
            if self.share > 0.2:
                break


@pytest.mark.slow
def test_a_call_hears_what_is_restored_soon(pulse: Pulse, model: str) -> None:
    process = serve(pulse, model, "--microphone", "bone")
    wait_for_line(process, "restored is a microphone now, with the restored sound of bone")
    assert "restored" in pulse.names("sources")
    sound = speech(2 * RATE)
    call = Call(pulse, sound)
    assert call.share > 0.2
    assert share_recorded(call.recorded, sound[4000:28000]) == 0  # it is the model's sound, not the microphone's
    delays = []
    for first in range(4000, 28000, 800):
        chunk = slice(first, first + CHUNK)
        place_in, like_in = best_match(call.microphone, sound[chunk])
        place_out, like_out = best_match(call.recorded, call.restored[chunk])
        if min(like_in, like_out) > 0.95:
            delays.append(call.after.when(place_out) - call.before.when(place_in))
    print(f"latency {1000 * np.median(delays):.0f} ms, of which the model's are 48")
    assert np.median(delays) > 0.01  # how much it is depends on the machine
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert "restored" not in pulse.names("sources")
    assert pulse.names("sinks") == {"body"}


@pytest.mark.slow
def test_a_microphone_that_is_lost_is_found_again_and_a_kill_leaves_nothing(pulse: Pulse, model: str) -> None:
    process = serve(pulse, model, "--microphone", "bone")
    wait_for_line(process, "restored is a microphone now")
    modules = pulse.pactl("list", "short", "modules").splitlines()
    bone = next(line.split("\t")[0] for line in modules if "source_name=bone" in line)
    pulse.pactl("unload-module", bone)
    wait_for_line(process, "bone is lost; waiting for it")
    assert "restored" in pulse.names("sources")  # a call goes on, and hears silence
    pulse.pactl("load-module", "module-remap-source", "source_name=bone", "master=body.monitor")
    wait_for_line(process, "bone is back")
    assert Call(pulse, speech(2 * RATE)).share > 0.2
    process.kill()
    process.wait(20)
    wait_until(lambda: "restored" not in pulse.names("sources"))
    assert pulse.names("sinks") == {"body"}
    wait_until(lambda: "twostage" not in pulse.pactl("list", "clients"))


@pytest.mark.slow
def test_a_server_that_restarts_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    with pulse_server(tmp_path) as pulse:
        monkeypatch.setenv("PULSE_SERVER", pulse.environment["PULSE_SERVER"])
        meter = Meter(256 / RATE, 0.0, said.append, pace=0.0)
        stop = (Stream(chain()), 256, "mine", "bone", 8.0, said.append)
        thread = threading.Thread(target=virtual_microphone.run_virtual_microphone, args=stop, kwargs={"meter": meter})
        thread.start()
        wait_until(lambda: said and meter.hops > 10)
    again = start(pulse)
    try:
        wait_until(lambda: len(said) == 3 and "mine" in pulse.names("sources"))
        thread.join(30)
        assert [line.split()[0] for line in said] == ["mine", "the", "mine"]
        assert "mine" not in pulse.names("sources")
    finally:
        again.terminate()
        again.wait(20)


@pytest.mark.slow
def test_what_cannot_be_is_said_and_what_is_left_is_swept(
    pulse: Pulse, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["stream", "--model", model, "--for", "0.1", "--virtual-microphone"]
    for words, complaint in (
        (["a b"], "--virtual-microphone a b: must be letters, digits"),
        (["x", "--microphone", "none"], "none: no such microphone; there are body.monitor, bone, nothing"),
        (["nothing", "--microphone", "bone"], "--virtual-microphone nothing: a source with this name exists already"),
    ):
        assert cli.main([*command, *words]) == 1
        assert complaint in capsys.readouterr().err
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


def test_without_the_tools_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match="needs pactl, parec, pacat: install pulseaudio-utils"):
        virtual_microphone.require()
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ConfigError, match="needs Linux"):
        virtual_microphone.require()


def test_what_waits_too_long_is_left_out() -> None:
    reader, writer = os.pipe()
    sound = speech(RATE // 2)
    os.write(writer, sound.tobytes())
    os.close(writer)
    played, meter = [], Meter(256 / RATE, 0.05, print, pace=0.0)

    class Sink:
        write = staticmethod(played.append)

    with open(reader, "rb", buffering=0) as capture:
        virtual_microphone._relay(Stream(chain()), 256, capture, Sink, lambda: True, meter)  # type: ignore[arg-type]
    assert meter.xruns == 1
    assert meter.lost_seconds == pytest.approx(0.45, abs=256 / RATE)
    rest = sound[int(meter.lost_seconds * RATE) :]
    output = np.frombuffer(b"".join(played), "<f4")
    whole = len(rest) // 256 * 256
    np.testing.assert_allclose(output, offline(chain(), rest[:whole])[: len(output)], atol=1e-5)


def test_a_meter_says_level_load_and_lateness() -> None:
    said = list[str]()
    meter = Meter(0.016, 0.050, said.append, pace=1e-9)
    time.sleep(0.001)
    meter.xrun()
    meter.hop(np.full(256, 0.1, np.float32), work=0.004, waiting=0.010)
    assert said == ["input level -20 dBFS, load 0.25, 60 ms late, sound lost 1 times"]
    meter.hop(np.zeros(256, np.float32), work=0.032)
    assert said[1] == "input level -120 dBFS, load 2.00, 50 ms late, sound lost 1 times"
    assert (meter.hops, meter.late_hops) == (2, 1)


def test_a_live_stream_goes_on_after_what_is_no_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = speech(256 * 40)
    broken = sound.copy()
    broken[256 * 10 + 5] = np.nan
    devices = FakeDevices(broken)
    monkeypatch.setitem(sys.modules, "sounddevice", devices)
    meter = Meter(0.016, 0.0, print, pace=0.0)
    assert run_duplex(Stream(chain()), 256, (None, None), seconds=1.0, meter=meter) == 1
    assert meter.hops == 40
    assert meter.latency == pytest.approx(0.048 + 0.03)
    played = np.concatenate(devices.played)
    assert np.isfinite(played).all()
    afterwards = offline(chain(), sound[256 * 11 :])[: 256 * 10]
    assert best_match(played, afterwards)[1] > 0.999


def test_no_device_at_all_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    monkeypatch.setattr(virtual_microphone, "source_list", lambda: (_ for _ in ()).throw(AudioError("no server")))
    assert cli.main(["stream", "--list-devices"]) == 1
    assert "twostage: warning: --microphone: no server" in capsys.readouterr().err
