"""Command-line options that several commands share."""

import logging
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from twostage.utils.devices import DEVICE_HELP, DEVICES
from twostage.utils.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twostage.data.noise import Air
    from twostage.inference.restore_options import Options
    from twostage.training.config import RunConfig

S = TypeVar("S", bound="RunConfig")

FORMATS = ("wav", "flac", "ogg", "opus", "mp3", "aiff", "au", "caf", "w64", "rf64")
logger = logging.getLogger(__name__)
PRECISIONS = ("float32", "bfloat16", "bf16")
PRECISION_HELP = (
    "precision of convolutions; bf16 is short for bfloat16, faster on hardware with support (default: float32)"
)


def is_quiet(args: Namespace) -> bool:
    """Whether -q was given, an option that every command has."""
    return getattr(args, "quiet", False)


def precision_for(name: str, device: str) -> str:
    """The precision for --precision; "float32", with a warning, if ``device`` does not support another one."""
    if name == "float32":
        return name
    from twostage.models.precision import shortfall

    unsupported = shortfall(name, device)
    if unsupported:
        logger.warning("--%s", unsupported)
    return "float32" if unsupported else "bfloat16"


def add_restoration_arguments(parser: ArgumentParser) -> None:
    """Add the arguments for ``restoration_options``."""
    add = parser.add_argument
    add("--device", choices=DEVICES, default="auto", help=DEVICE_HELP)
    add("--precision", choices=PRECISIONS, default="float32", help=PRECISION_HELP)
    add("--sample-rate", choices=("model", "input"), default="model", help="rate of the output (default: model)")
    add("--format", choices=FORMATS, help="format of the outputs (default: that of the input)")
    level_help = "loudness of the output: that of the input, or the model's, -26 dBFS in speech (default: input)"
    add("--level", choices=("input", "model"), default="input", help=level_help)
    add("--keep-low-band", type=float, default=0.0, metavar="HZ", help="keep the input itself below this frequency")
    add("--seconds", type=float, default=10.0, help="window length, which limits the memory (default: 10)")
    add(
        "--if-full-band",
        choices=("restore", "copy", "error"),
        default="restore",
        help="what to do with a channel that is already full-band (default: restore it, with a warning)",
    )
    add(
        "--salvage",
        action="store_true",
        help="restore the readable part of a truncated or damaged file, with a warning",
    )


def restoration_options(args: Namespace, *, overwrite: bool = False, batch: int = 1) -> "Options":
    """The options of a restoration, from the arguments of ``add_restoration_arguments``."""
    from twostage.inference.restore_options import Options

    return Options(
        *(args.seconds, args.level, args.keep_low_band, args.sample_rate, overwrite),
        batch=batch,
        salvage=args.salvage,
        if_full_band=args.if_full_band,
    )


def models_by_label(arguments: "Sequence[Sequence[str]] | None") -> dict[str, list[str]]:
    """Label -> paths. A label is given by ``LABEL=``, otherwise it is the name or the paths themselves."""
    models: dict[str, list[str]] = {}
    for first, *other_paths in arguments or [["default"]]:
        label, equals, path = first.partition("=")
        if not equals or Path(first).exists():
            label, path = " + ".join([first, *other_paths]), first
        if label in models:
            raise ConfigError(f"--model {label}: given twice; give one of them a LABEL=")
        models[label] = [path, *other_paths]
    return {} if list(models) == ["none"] else models


def add_air_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of an air microphone, for ``air_for``."""
    add = parser.add_argument
    add("--air-snr", metavar="DB", type=float, help="add an air microphone as a second channel, with noise at this SNR")
    add("--noise", metavar="FOLDER", help="folder of noise recordings for --air-snr (default: pink noise)")


def air_for(args: Namespace) -> "Air | None":
    """The air microphone, from --air-snr, --noise and --seed."""
    from math import isfinite

    from twostage.audio import sound_files
    from twostage.data.noise import Air

    if args.air_snr is None:
        if args.noise:
            raise ConfigError(f"--noise {args.noise}: goes with --air-snr")
        return None
    if not isfinite(args.air_snr):
        raise ConfigError(f"--air-snr is {args.air_snr}, must be a number of dB")
    noise = tuple(str(path) for path, _ in sound_files.find([args.noise])) if args.noise else ()
    return Air(args.air_snr, noise, args.seed)


def add_training_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the commands that train, for ``training_settings``."""
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="CONFIG|key=value",
        help="YAML files (paths, or names of shipped ones), merged left to right, and single settings on top; "
        "data.train, data.valid and run_dir (or --run) must be set",
    )
    # `dest` differs because `run` is the function of the command
    parser.add_argument(
        "--run",
        dest="directory",
        metavar="DIR",
        help="directory for logs, weights and state of the training (same as run_dir=DIR)",
    )
    parser.add_argument("--resume", action="store_true", help="continue the training in DIR")


def training_settings(args: Namespace, schema: type[S]) -> S:
    """The settings of a training. A training that is resumed without CONFIG uses those that it was started with."""
    from twostage.training.config import CONFIG_FILE, load_config

    files = [text for text in args.settings if "=" not in text]
    overrides = [text for text in args.settings if "=" in text] + (
        [f"run_dir={args.directory}"] if args.directory else []
    )
    if not files and args.resume and args.directory and (stored_file := Path(args.directory, CONFIG_FILE)).is_file():
        return load_config(schema, [str(stored_file)], overrides, stored=True)
    if not files:
        raise ConfigError("give a YAML file of settings, such as those in configs/, or --resume with --run DIR")
    return load_config(schema, files, overrides)
