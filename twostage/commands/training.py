"""What the commands that train have in common."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from twostage.training.config import RunConfig

S = TypeVar("S", bound="RunConfig")


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


def settings(args: Namespace, schema: type[S]) -> S:
    """The settings of a training. One that goes on without CONFIG takes those that it began with."""
    from twostage.training.config import SETTINGS, load_config
    from twostage.utils.errors import ConfigError

    files = [text for text in args.settings if "=" not in text]
    overrides = [text for text in args.settings if "=" in text] + ([f"run={args.directory}"] if args.directory else [])
    if not files and args.resume and args.directory and (begun := Path(args.directory, SETTINGS)).is_file():
        files = [str(begun)]
    if not files:
        raise ConfigError("give a YAML file of settings, such as those in configs/, or --resume with --run DIR")
    return load_config(schema, files, overrides)
