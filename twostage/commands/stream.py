"""``twostage stream``: restores speech in real time, between pipes, from a file, or live."""

import argparse
import json
import logging
import sys
from typing import TYPE_CHECKING

from twostage.commands.options import is_quiet
from twostage.utils.errors import AudioError, ConfigError

if TYPE_CHECKING:
    from twostage.inference.meter import Meter
    from twostage.inference.stream import Stream
    from twostage.models.protocol import Enhancer

HELP = "restore speech in real time: raw PCM from standard input to standard output, a file, or a live microphone"
logger = logging.getLogger(__name__)
TERMINAL_PACE, LOG_PACE = 0.5, 60.0  # seconds between status lines, on a terminal and in a log
EXAMPLE = """
twostage stream --file recording.wav -o restored.wav --json timing.json
arecord -q -t raw -f S16_LE -r 16000 -c 1 | twostage stream | aplay -q -t raw -f S16_LE -r 16000 -c 1
twostage stream --live --gain 12
twostage stream --virtual-microphone restored --microphone alsa_input.usb-throat --gain 12
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        action="extend",
        metavar="NAME|PATH",
        help="model, as for restore (default: causal); a model that looks ahead adds seconds of latency",
    )
    add(
        "--format",
        choices=("s16", "f32"),
        default="s16",
        help="sample format of raw PCM, little-endian, interleaved if there are two channels (default: s16)",
    )
    add(
        "--gain",
        metavar="DB[,DB]|auto",
        help="gain that brings the input to the active level of -26 dBFS that models expect; it is removed from the "
        "output; auto measures it, for files only (default: auto for files, else 0)",
    )
    add("--seconds", type=float, default=1.0, help="window length for a model that looks ahead (default: 1)")
    add("--threads", type=int, default=1, help="processor threads (default: 1)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--file", metavar="FILE", help="stream the first channel (or two) of a sound file, and report the time per hop"
    )
    mode.add_argument("--live", action="store_true", help="stream from the microphone to the loudspeaker (extra: live)")
    mode.add_argument(
        "--virtual-microphone",
        metavar="NAME",
        help="provide a microphone of this name to other programs (Linux: PulseAudio or PipeWire)",
    )
    mode.add_argument("--list-devices", action="store_true", help="list the values for --devices and --microphone")
    add("-o", "--out", metavar="OUT", help="with --file: write the output at the model's sample rate")
    add("--json", metavar="FILE.json", help="with --file: write the timing as JSON")
    add("--overwrite", action="store_true", help="replace outputs that exist")
    add(
        "--devices",
        nargs=2,
        metavar=("IN", "OUT"),
        help="with --live: device names or numbers (default: those of the system)",
    )
    add("--microphone", metavar="SOURCE", help="with --virtual-microphone: its source (default: that of the system)")
    add("--for", dest="duration", type=float, default=0.0, metavar="SECONDS", help="live: stop after this many seconds")


def run(args: argparse.Namespace) -> int:
    if args.list_devices:
        return _list_devices()
    from twostage.inference.stream import Stream
    from twostage.models.loading import load_for_stream

    for name in ("out", "json"):
        if getattr(args, name) and not args.file:
            raise ConfigError(f"--{name} goes with --file")
    if args.threads < 1:
        raise ConfigError(f"--threads {args.threads}: must be at least 1")
    if args.duration < 0:
        raise ConfigError(f"--for {args.duration}: must not be negative")
    if args.microphone and not args.virtual_microphone:
        raise ConfigError("--microphone goes with --virtual-microphone")
    if not (args.file or args.live or args.virtual_microphone) and sys.stdin.isatty():
        raise ConfigError("standard input is a terminal: pipe raw PCM in, or give --file or --live")
    if args.gain == "auto" and not args.file:
        raise ConfigError("--gain auto: measures a file; with --file it says what to give here")
    gain = None if args.gain in (None, "auto") else _decibels(args.gain)
    if args.virtual_microphone:
        from twostage.inference.virtual_microphone import checked_microphone

        checked_microphone(args.virtual_microphone, args.microphone)  # before the model is loaded
    model = load_for_stream(*args.model or ["causal"], threads=args.threads)
    if args.virtual_microphone and not model.causal:
        raise ConfigError(
            f"--virtual-microphone needs a causal model: {' '.join(args.model)} returns whole windows, and "
            "sound would be lost meanwhile"
        )
    if args.file:
        return _file(args, model, gain)
    stream = Stream(model, seconds=args.seconds, gain_db=gain or [0.0])
    channels = "one channel" if stream.inputs == 1 else "bone and air"
    latency = stream.latency / stream.sample_rate * 1000
    if not is_quiet(args):
        print(f"twostage: {stream.sample_rate} Hz, {channels}, latency {latency:.0f} ms", file=sys.stderr)
    if args.virtual_microphone:
        return _virtual(args, stream, model.stride)
    return _live(args, stream, model.stride) if args.live else _pipe(args, stream)


def _decibels(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--gain {text}: must be a number of dB, or auto") from None


def _pipe(args: argparse.Namespace, stream: "Stream") -> int:
    from twostage.inference.realtime import Pcm, pipe

    pcm = Pcm(args.format, stream.inputs)
    pipe(stream, sys.stdin.buffer, sys.stdout.buffer, pcm)
    if pcm.clipped:
        logger.warning("%d samples clipped: lower the input's level", pcm.clipped)
    return 0


def _live(args: argparse.Namespace, stream: "Stream", hop: int) -> int:
    from twostage.inference.realtime import run_duplex

    meter = _meter(args, stream, hop, devices=0.0)
    devices = [int(name) if name.isdigit() else name for name in args.devices or ()] or [None, None]
    lost = run_duplex(stream, hop, (devices[0], devices[1]), args.duration, meter)
    if lost:
        logger.warning("sound was lost %d times: the processor does not keep up", lost)
    return 0


def _virtual(args: argparse.Namespace, stream: "Stream", hop: int) -> int:
    from twostage.inference.virtual_microphone import CAPTURE, PLAYBACK, run_virtual_microphone

    meter = _meter(args, stream, hop, devices=(CAPTURE + PLAYBACK) / 1000)

    def say(text: str) -> None:
        if not is_quiet(args):
            print(f"twostage: {text}", file=sys.stderr, flush=True)

    name, microphone = args.virtual_microphone, args.microphone
    try:
        run_virtual_microphone(stream, hop, name, microphone, args.duration, say, meter=meter)
    finally:
        if meter.xruns:
            logger.warning("sound was lost %d times, %.2f s of it", meter.xruns, meter.lost_seconds)
    return 0


def _meter(args: argparse.Namespace, stream: "Stream", hop: int, *, devices: float) -> "Meter":
    """The status of a live stream, on one line of a terminal or in a log. ``devices``: their latency in seconds."""
    from twostage.inference.meter import Meter

    terminal = sys.stderr.isatty()

    def say(line: str) -> None:
        print(
            f"\rtwostage: {line} " if terminal else f"twostage: {line}", end="" if terminal else "\n", file=sys.stderr
        )
        sys.stderr.flush()

    pace = 0.0 if is_quiet(args) else TERMINAL_PACE if terminal else LOG_PACE
    latency = stream.latency / stream.sample_rate + devices
    return Meter(hop / stream.sample_rate, latency, say, pace)


def _list_devices() -> int:
    """Sound devices, and sources of PulseAudio, as far as there are any."""
    from twostage.inference import realtime, virtual_microphone

    any_device = False
    for title, ask in (("--devices", realtime.device_list), ("--microphone", virtual_microphone.source_list)):
        try:
            print(f"{title}:\n{ask()}")
            any_device = True
        except (AudioError, ConfigError) as error:
            logger.warning("%s: %s", title, error)
    return int(not any_device)


def _file(args: argparse.Namespace, model: "Enhancer", gain: list[float] | None) -> int:
    from pathlib import Path

    from twostage.inference.stream_file import measure_gain, stream_file
    from twostage.utils.files import check_writable, replacing

    for path in filter(None, (args.out, args.json)):
        check_writable(Path(path), args.overwrite)
    gain = measure_gain(model, args.file) if gain is None else gain
    timing = stream_file(model, args.file, args.out, seconds=args.seconds, gain_db=gain, overwrite=args.overwrite)
    exact, rounded = ", ".join(f"{g:+.1f}" for g in gain), ",".join(f"{g:.0f}" for g in gain)
    print(f"{args.file}: gain {exact} dB (for a live stream of this microphone: --gain {rounded})")
    print("\n".join(timing.lines()))
    if args.json:
        with replacing(args.json) as partial:
            partial.write_text(
                json.dumps({"gain_db": gain[0] if len(gain) == 1 else gain, **timing.as_json()}, indent=2) + "\n",
                encoding="utf-8",
            )
    return 0
