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

NAME = re.compile(r"[A-Za-z][\w.-]{0,63}", re.ASCII)  # what needs no quotes in any server's arguments
OWNER = "twostage.owner"  # property of what we load: the process that it is for
CAPTURE, PLAYBACK = 20, 60  # milliseconds that the server is asked to keep: of the microphone, and for who listens
BEHIND = 0.2  # seconds of sound that may wait; of more, what is old is left out
SILENT = 2.0  # seconds without a sample after which a microphone is asked for anew
PIPE = 4096  # bytes: the smallest pipe, so that what waits in it is not late
RETRY = 0.3  # seconds between two looks for what was lost
SETTLE = 5.0  # seconds for a process to end by itself
FLOAT = np.dtype("<f4")
# waits until our end of the pipe closes, which even a kill does, and takes away what was loaded
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


def run_virtual_microphone(
    stream: Stream, hop: int, name: str, microphone: str | None, seconds: float, say: Say, *, meter: Meter
) -> None:
    """Restore the sound of ``microphone`` (default: the system's) into a microphone ``name``, for ``seconds`` (0:
    ever).

    If a microphone is unplugged or the server restarts, it waits for their return and reports this to ``say``.

    Raises:
        ConfigError: the name is invalid or taken, or the tools of PulseAudio are missing.
        AudioError: there is no server, or no such microphone, at the start.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"--virtual-microphone {name}: must be letters, digits or any of . _ -, a letter first")
    require()
    sweep()
    microphone = microphone or default_source()
    if microphone not in sources():
        raise AudioError(f"no such microphone; there are {', '.join(sources()) or 'none'}", subject=microphone)
    if microphone == name or name in sources():
        raise ConfigError(f"--virtual-microphone {name}: there is a source of that name already")
    warm_up(stream, hop)
    until = time.monotonic() + seconds if seconds else float("inf")
    while time.monotonic() < until:
        try:
            with _loaded(name, stream.sample_rate) as sink:
                say(f"{name} is a microphone now, of what {microphone} hears")
                _run(stream, hop, microphone, sink, until, say, meter)
        except ServerLost:
            say("the sound server is gone; waiting for it")
            while time.monotonic() < until and not _is_there():
                time.sleep(RETRY)


def _run(stream: Stream, hop: int, microphone: str, sink: str, until: float, say: Say, meter: Meter) -> None:
    """Stream from the microphone to the sink, and continue whenever the microphone was lost."""
    with _watching() as watch, _playing(sink, stream.sample_rate) as playback:
        while time.monotonic() < until:
            watch.check(microphone)
            if not watch.has(microphone):
                say(f"{microphone} is lost; waiting for it")
                while time.monotonic() < until and not watch.has(microphone):
                    watch.check(microphone)
                    time.sleep(RETRY)
                if time.monotonic() < until:
                    say(f"{microphone} is back")
            stream.reset()
            with _recording(microphone, stream) as capture:
                _relay(
                    stream, hop, capture, playback, lambda: time.monotonic() < until and watch.has(microphone), meter
                )


def _relay(
    stream: Stream, hop: int, capture: IO[bytes], playback: IO[bytes], going: Callable[[], bool], meter: Meter
) -> None:
    """Stream hop after hop, until the microphone stops or ``going`` is False."""
    frame = FLOAT.itemsize * stream.inputs
    while going():
        waiting = _waiting(capture) / frame / stream.sample_rate
        if waiting > BEHIND:
            left_out = int((waiting - BEHIND / 4) * stream.sample_rate) // hop
            if _read(capture, left_out * hop * frame) is None:
                return
            meter.lost(left_out * hop / stream.sample_rate)
        data = _read(capture, hop * frame)
        if data is None:
            return
        recorded = np.frombuffer(data, FLOAT).reshape(-1, stream.inputs).T
        began = time.perf_counter()
        try:
            restored = stream.push(recorded[0] if stream.inputs == 1 else recorded)
        except AudioError:  # samples that are no sound, of a device that is being plugged in
            stream.reset()
            restored = np.zeros(hop, np.float32)
        meter.hop(recorded[0], time.perf_counter() - began, waiting)
        try:
            playback.write(restored.astype(FLOAT).tobytes())
        except OSError:
            raise ServerLost("the sound server takes nothing any more") from None


def require() -> None:
    """Raise ConfigError if the tools of PulseAudio are not installed."""
    if not sys.platform.startswith("linux"):
        raise ConfigError("--virtual-microphone needs Linux; elsewhere a virtual cable does it (docs: In a call)")
    missing = [tool for tool in ("pactl", "parec", "pacat") if not shutil.which(tool)]
    if missing:
        raise ConfigError(f"--virtual-microphone needs {', '.join(missing)}: install pulseaudio-utils")


def sweep() -> None:
    """Unload the modules that processes which have ended had loaded."""
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
        # of a session of its own, so that Ctrl-C leaves it to its work
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
    kind, shown = ("sink", f"{name.removesuffix('.input')}-input") if sink else ("source", name)
    properties = f'{kind}_properties="device.description={shown} {owner}"'
    shape = [] if sink else ["remix=no"]
    words = (f"{kind}_name={name}", *options, "channels=1", "channel_map=mono", *shape, properties)
    return _pactl("load-module", module, *words).strip()


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
    shape = [f"--rate={sample_rate}", f"--channels={channels}", "--format=float32le"]
    return ["--raw", *shape, f"--latency-msec={buffer}", "--client-name=twostage"]


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
    with subprocess.Popen(["pactl", "subscribe"], env=_plain(), **options) as process:
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
        done = subprocess.run(
            ["pactl", *words], capture_output=True, text=True, timeout=SETTLE, env=_plain(), check=False
        )
    except subprocess.TimeoutExpired:
        raise AudioError("the sound server does not answer") from None
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise AudioError(f"the sound server refuses `pactl {' '.join(words[:2])}` ({reason})")
    return done.stdout


def _plain() -> dict[str, str]:
    """Words of no language but the one that is looked for."""
    return {**os.environ, "LC_ALL": "C"}
