"""What the commands that train have in common."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="CONFIG|key=value",
        help="YAML files (paths, or names of shipped ones), merged left to right, and single settings on top",
    )
    # another name inside: `run` is the command's function
    parser.add_argument(
        "--run", dest="directory", metavar="DIR", help="directory of the training: logs, weights, state (run=DIR)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the training in DIR, if it has begun")


def run(args: Namespace, schema: type[Any], train: Callable[..., None]) -> int:
    """Read the settings and train. A resumed training without CONFIG takes the settings that it began with."""
    from twostage.config import load_config
    from twostage.errors import ConfigError
    from twostage.recipes import SETTINGS

    files = [text for text in args.settings if "=" not in text]
    overrides = [text for text in args.settings if "=" in text] + ([f"run={args.directory}"] if args.directory else [])
    if not files and args.resume and args.directory and (begun := Path(args.directory, SETTINGS)).is_file():
        files = [str(begun)]
    if not files:
        raise ConfigError("give a YAML file of settings, such as those in configs/, or --resume with --run DIR")
    train(load_config(schema, files, overrides), resume=args.resume)
    return 0
