"""A virtual microphone that other programs can select: the restored sound of a real one, over PulseAudio's protocol.

PipeWire uses the same protocol. Nothing is played aloud: the restored sound is written to a sink without a loudspeaker
(module-null-sink), and the sound of that sink is provided as a source (module-remap-source), which programs list as a
microphone. The sink has a clock, so that programs receive silence, and do not stall, while there is no sound.

A pipe into the server (module-pipe-source) would need fewer parts, but it has no clock, and sound that nobody reads
adds latency.
"""

import os
import re
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import numpy as np

from twostage.inference.meter import Meter
from twostage.inference.realtime import warm_up
from twostage.inference.stream import Stream
from twostage.utils.errors import AudioError, ConfigError

NAME = re.compile(r"[A-Za-z][\w.-]{0,63}", re.ASCII)  # names that need no quoting in the arguments of any server
OWNER = "twostage.owner"  # property of the modules that we load: the process that they belong to
CAPTURE, PLAYBACK = 20, 60  # milliseconds of buffering that the server is asked for: recording and playback
BEHIND = 0.2  # seconds of sound that may wait; if more is waiting, the oldest is skipped
SILENT = 2.0  # seconds without a sample after which the recording is restarted
PIPE = 4096  # bytes: the smallest pipe buffer, for low latency
RETRY = 0.3  # seconds between two checks for a lost device or server
SETTLE = 5.0  # seconds to wait for a process to end
FLOAT = np.dtype("<f4")
# waits until our end of the pipe closes, even if this process is killed, and unloads the modules
KEEPER = 'read -r _; for module in "$@"; do pactl unload-module "$module"; done'

Say = Callable[[str], None]


class ServerLost(AudioError):
    """The sound server has disappeared."""


def sources() -> list[str]:
    """Names of all sources that can be recorded, including monitors of sinks. Raises AudioError without a server."""
    return [line.split("\t")[1] for line in _pactl("list", "short", "sources").splitlines() if "\t" in line]


def source_list() -> str:
    """The names of ``sources``, one in each line, with a mark at the default. Raises ConfigError without the tools."""
    require()
    chosen = default_source()
    return "\n".join(f"{'*' if name == chosen else ' '} {name}" for name in sources())


def default_source() -> str:
    """The default microphone of the system."""
    return _pactl("get-default-source").strip()


def checked_microphone(name: str, microphone: str | None) -> str:
    """The ``microphone`` (default: the system's) for a virtual microphone ``name``, if both are possible.

    Raises ConfigError and AudioError as ``run_virtual_microphone``.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"--virtual-microphone {name}: must be letters, digits or any of . _ -, a letter first")
    require()
    sweep()
    microphone = microphone or default_source()
    if microphone not in sources():
        raise AudioError(f"no such microphone; there are {', '.join(sources()) or 'none'}", subject=microphone)
    if microphone == name or name in sources():
        raise ConfigError(f"--virtual-microphone {name}: a source with this name exists already")
    return microphone


def run_virtual_microphone(
    stream: Stream, hop: int, name: str, microphone: str | None, seconds: float, say: Say, *, meter: Meter
) -> None:
    """Restore the sound of ``microphone`` (default: the system's) into the virtual microphone ``name``.

    It runs for ``seconds`` (0: until interrupted).

    If a microphone is unplugged or the server restarts, it waits for their return and reports this to ``say``.

    Raises:
        ConfigError: the name is invalid or taken, or the tools of PulseAudio are missing.
        AudioError: there is no server, or no such microphone, at the start.
    """
    microphone = checked_microphone(name, microphone)
    warm_up(stream, hop)
    deadline = time.monotonic() + seconds if seconds else float("inf")
    while time.monotonic() < deadline:
        try:
            with _loaded(name, stream.sample_rate) as sink:
                say(f"{name} is a microphone now, with the restored sound of {microphone}")
                _run(stream, hop, microphone, sink, deadline, say, meter)
        except ServerLost:
            say("the sound server is gone; waiting for it")
            while time.monotonic() < deadline and not _is_there():
                time.sleep(RETRY)


def _run(stream: Stream, hop: int, microphone: str, sink: str, deadline: float, say: Say, meter: Meter) -> None:
    """Stream from the microphone to the sink, and continue whenever the microphone was lost."""
    with _watching() as watch, _playing(sink, stream.sample_rate) as playback:
        while time.monotonic() < deadline:
            watch.check(microphone)
            if not watch.has(microphone):
                say(f"{microphone} is lost; waiting for it")
                while time.monotonic() < deadline and not watch.has(microphone):
                    watch.check(microphone)
                    time.sleep(RETRY)
                if time.monotonic() < deadline:
                    say(f"{microphone} is back")
            stream.reset()
            with _recording(microphone, stream) as capture:
                _relay(
                    stream, hop, capture, playback, lambda: time.monotonic() < deadline and watch.has(microphone), meter
                )


def _relay(
    stream: Stream, hop: int, capture: IO[bytes], playback: IO[bytes], is_running: Callable[[], bool], meter: Meter
) -> None:
    """Stream hop by hop until the microphone stops or ``is_running`` returns False."""
    frame = FLOAT.itemsize * stream.inputs
    while is_running():
        waiting = _waiting(capture) / frame / stream.sample_rate
        if waiting > BEHIND:
            skipped_hops = int((waiting - BEHIND / 4) * stream.sample_rate) // hop
            if _read(capture, skipped_hops * hop * frame) is None:
                return
            meter.lost(skipped_hops * hop / stream.sample_rate)
        data = _read(capture, hop * frame)
        if data is None:
            return
        recorded = np.frombuffer(data, FLOAT).reshape(-1, stream.inputs).T
        started = time.perf_counter()
        try:
            restored = stream.push(recorded[0] if stream.inputs == 1 else recorded)
        except AudioError:  # invalid samples while a device is being plugged in
            stream.reset()
            restored = np.zeros(hop, np.float32)
        meter.hop(recorded[0], time.perf_counter() - started, waiting)
        meter.report()
        try:
            playback.write(restored.astype(FLOAT).tobytes())
        except OSError:
            raise ServerLost("the sound server does not accept sound any more") from None


def require() -> None:
    """Raise ConfigError if the tools of PulseAudio are not installed."""
    if not sys.platform.startswith("linux"):
        raise ConfigError("--virtual-microphone needs Linux; elsewhere use a virtual audio cable (docs: Calls)")
    missing = [tool for tool in ("pactl", "parec", "pacat") if not shutil.which(tool)]
    if missing:
        raise ConfigError(f"--virtual-microphone needs {', '.join(missing)}: install pulseaudio-utils")


def sweep() -> None:
    """Unload the modules that were loaded by processes that have ended."""
    for line in reversed(_pactl("list", "short", "modules").splitlines()):
        owner = re.search(rf"{re.escape(OWNER)}=(\d+)", line)
        if owner and not os.path.exists(f"/proc/{owner[1]}"):
            with suppress(AudioError):
                _pactl("unload-module", line.split("\t")[0])


@contextmanager
def _loaded(name: str, sample_rate: int) -> Iterator[str]:
    """The virtual microphone and the name of its sink; both are removed with the block, or with this process."""
    sink, owner = f"{name}.input", f"{OWNER}={os.getpid()}"
    modules: list[str] = []
    keeper: subprocess.Popen[bytes] | None = None
    try:
        modules.append(_load("module-null-sink", sink, f"rate={sample_rate}", sink=True, owner=owner))
        modules.insert(0, _load("module-remap-source", name, f"master={sink}.monitor", sink=False, owner=owner))
        # in its own session, so that Ctrl-C does not stop it
        command = ["sh", "-c", KEEPER, "sh", *modules]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        keeper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **quiet)
        yield sink
    finally:
        if keeper is None:
            for module in modules:
                with suppress(AudioError):
                    _pactl("unload-module", module)
        else:
            assert keeper.stdin is not None
            keeper.stdin.close()
            keeper.wait()


def _load(module: str, name: str, *options: str, sink: bool, owner: str) -> str:
    """Load a module that makes a sink or source of one channel; returns its number."""
    kind, description = ("sink", f"{name.removesuffix('.input')}-input") if sink else ("source", name)
    properties = f'{kind}_properties="device.description={description} {owner}"'
    mixing = [] if sink else ["remix=no"]
    arguments = (f"{kind}_name={name}", *options, "channels=1", "channel_map=mono", *mixing, properties)
    return _pactl("load-module", module, *arguments).strip()


@contextmanager
def _recording(microphone: str, stream: Stream) -> Iterator[IO[bytes]]:
    """The raw samples of a microphone as they arrive."""
    command = ["parec", f"--device={microphone}", *_format(stream.sample_rate, stream.inputs, CAPTURE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.kill()


@contextmanager
def _playing(sink: str, sample_rate: int) -> Iterator[IO[bytes]]:
    """Play what is written into ``sink``, with little buffering."""
    command = ["pacat", "--playback", f"--device={sink}", *_format(sample_rate, 1, PLAYBACK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        assert process.stdin is not None
        _shrink(process.stdin)
        try:
            yield process.stdin
        finally:
            process.kill()
            with suppress(OSError):
                process.stdin.close()


def _format(sample_rate: int, channels: int, buffer: int) -> list[str]:
    sample_format = [f"--rate={sample_rate}", f"--channels={channels}", "--format=float32le"]
    return ["--raw", *sample_format, f"--latency-msec={buffer}", "--client-name=twostage"]


class Watch:
    """The list of sources, updated by the server when they change."""

    def __init__(self, events: IO[str]) -> None:
        self._events, self._known, self._alive = events, set(sources()), True
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def has(self, source: str) -> bool:
        return source in self._known and self._alive

    def check(self, source: str) -> None:
        """Raise ServerLost if the server has disappeared."""
        if not self._alive:
            raise ServerLost(f"{source}: the sound server is gone")

    def join(self) -> None:
        """Wait for the end of the events, which comes with the end of the process that provides them."""
        self._thread.join(SETTLE)

    def _follow(self) -> None:
        for event in self._events:
            if "source #" in event:
                with suppress(AudioError):
                    self._known = set(sources())
        self._alive = False


@contextmanager
def _watching() -> Iterator[Watch]:
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(["pactl", "subscribe"], env=_untranslated(), **options) as process:
        assert process.stdout is not None
        watch = Watch(process.stdout)
        try:
            yield watch
        finally:
            process.kill()
            watch.join()


def _read(capture: IO[bytes], size: int) -> bytes | None:
    """``size`` bytes; None if they do not arrive."""
    data = b""
    while len(data) < size:
        if not select.select([capture], [], [], SILENT)[0]:
            return None
        part = os.read(capture.fileno(), size - len(data))
        if not part:
            return None
        data += part
    return data


def _waiting(capture: IO[bytes]) -> int:
    """The number of bytes that can be read at once."""
    import fcntl
    import termios

    return int.from_bytes(fcntl.ioctl(capture, termios.FIONREAD, bytes(4)), sys.byteorder)


def _shrink(pipe: IO[bytes]) -> None:
    import fcntl

    with suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)


def _is_there() -> bool:
    try:
        _pactl("info")
    except AudioError:
        return False
    return True


def _pactl(*words: str) -> str:
    """The output of pactl. Raises AudioError, one line, if the server refuses."""
    try:
        completed = subprocess.run(
            ["pactl", *words], capture_output=True, text=True, timeout=SETTLE, env=_untranslated(), check=False
        )
    except subprocess.TimeoutExpired:
        raise AudioError("the sound server does not answer") from None
    if completed.returncode:
        reason = (completed.stderr.strip() or "no reason given").splitlines()[-1]
        if "Connection refused" in reason or "Connection failure" in reason:
            raise AudioError("no sound server is running: start PulseAudio or PipeWire (with pipewire-pulse)")
        raise AudioError(f"the sound server refuses `pactl {' '.join(words[:2])}` ({reason})")
    return completed.stdout


def _untranslated() -> dict[str, str]:
    """The environment with untranslated messages, because the output is parsed."""
    return {**os.environ, "LC_ALL": "C"}
