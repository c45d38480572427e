"""The command line: ``twostage COMMAND ...``. Commands import what they need only when they run."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from types import ModuleType
from typing import Any, NoReturn

from twostage import __version__
from twostage.commands import (
    app,
    compare,
    completion,
    config,
    evaluate,
    export,
    finetune,
    fit_sensor,
    import_hifigan,
    manifest,
    models,
    restore,
    restore_corpus,
    serve,
    simulate,
    stream,
    train_enhancer,
    train_restorer,
    train_vocoder,
)
from twostage.utils.errors import TwoStageError, one_line, reason_of
from twostage.utils.logs import shown
from twostage.utils.memory import keep_freed, raise_memory_error
from twostage.utils.signals import DebouncedInterrupt, answer, ignore, terminable

COMMANDS: dict[str, ModuleType] = {
    "restore": restore,
    "restore-corpus": restore_corpus,
    "stream": stream,
    "train-enhancer": train_enhancer,
    "train-restorer": train_restorer,
    "train-vocoder": train_vocoder,
    "finetune": finetune,
    "evaluate": evaluate,
    "compare": compare,
    "simulate": simulate,
    "fit-sensor": fit_sensor,
    "manifest": manifest,
    "export": export,
    "app": app,
    "serve": serve,
    "import-hifigan": import_hifigan,
    "models": models,
    "config": config,
    "completion": completion,
}
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Parser(argparse.ArgumentParser):
    """Explains how to give files whose names begin like options."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        files = [word for word in self._words if len(word) > 1 and word.startswith("-") and os.path.lexists(word)]
        hint = f"; if {files[0]} is a file: ./{files[0]}, or -- before it and no option behind it" if files else ""
        super().error(message + hint)


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="twostage",
        description="Restore the missing high band of bone-conducted speech.",
        epilog="example:\n  twostage restore recording.wav -o restored.wav",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"twostage {__version__}")
    _add_verbosity(top)
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        example = "example:\n" + "\n".join(f"  {line.strip()}" for line in module.EXAMPLE.strip().splitlines())
        sub = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        _add_verbosity(sub)
        sub.set_defaults(run=module.run)
        if name == "completion":
            sub.set_defaults(parser=top)
    return top


def _add_verbosity(parser: argparse.ArgumentParser) -> None:
    """-q and -v, before a command or behind it."""
    how_much = parser.add_mutually_exclusive_group()
    add, unset = how_much.add_argument, argparse.SUPPRESS
    add("-q", "--quiet", action="store_true", default=unset, help="print only errors and requested output")
    add("-v", "--verbose", action="count", default=unset, help="print each step; -vv: with details")


def verbosity(args: argparse.Namespace) -> int:
    """-1 for -q, else how often -v was given."""
    return -1 if getattr(args, "quiet", False) else getattr(args, "verbose", 0)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of a command; settings of a training may also stand behind options, which argparse would not have."""
    top = parser()
    args, rest = top.parse_known_args(argv)
    if rest and (not hasattr(args, "settings") or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.settings += rest
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 1 is a failure, explained on stderr, 2 wrong usage, 130 Ctrl-C."""
    _open_streams()
    args = parse(argv)
    keep_freed()
    if argv is not None:
        with terminable():
            return _run(args)
    answer(DebouncedInterrupt())
    code = _run(args)
    ignore()  # the process ends with this: a signal is not to change how
    return code


def _run(args: argparse.Namespace) -> int:
    try:
        with raise_memory_error(), shown(verbosity(args)):
            code: int = args.run(args)
        sys.stdout.flush()
        return code
    except TwoStageError as error:
        return _failed(error)
    except ModuleNotFoundError as error:  # of an installation without PyTorch
        if not error.name or error.name.partition(".")[0] == "twostage":
            raise
        return _failed(f"needs {error.name}, which is not installed here (pip install twostage brings it)")
    except KeyboardInterrupt:
        print("twostage: interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as `head` does
        _give_up_output()
        return 1
    except MemoryError as error:
        return _failed(f"out of memory ({error})" if str(error) else "out of memory")
    except OSError as error:
        # a disk that is full or gone can fail every write, that to standard output included
        _give_up_output()
        named = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return _failed(f"{named}{reason_of(error)}")


def _open_streams() -> None:
    """Give what is closed a place to go, and let names be printed that the terminal has no letters for."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process lives
    for end in (sys.stdout, sys.stderr):
        if isinstance(end, TextIOWrapper):
            with suppress(OSError):  # of one that was redirected behind Python's back, which then stays as it is
                end.reconfigure(errors="backslashreplace")


def _failed(error: object) -> int:
    try:
        print(f"twostage: error: {one_line(error)}", file=sys.stderr, flush=True)
    except OSError:  # stderr has no room either: the exit code has to do
        _give_up_output()
    return 1


def _give_up_output() -> None:
    """What standard output and error cannot take any more goes nowhere, not even what waits for the process's end."""
    for end in (sys.stdout, sys.stderr):
        try:
            end.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), end.fileno())
