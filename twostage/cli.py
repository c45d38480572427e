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
INTERRUPTED = 130  # 128 + SIGINT, as in shells


class Parser(argparse.ArgumentParser):
    """A parser whose errors explain how to pass files whose names begin like options."""

    _arguments: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._arguments = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        files = [word for word in self._arguments if len(word) > 1 and word.startswith("-") and os.path.lexists(word)]
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
    """Add -q and -v, which may be given before or after a command."""
    group = parser.add_mutually_exclusive_group()
    add, unset = group.add_argument, argparse.SUPPRESS
    add("-q", "--quiet", action="store_true", default=unset, help="print only errors and requested output")
    add("-v", "--verbose", action="count", default=unset, help="print each step; -vv: with details")


def verbosity(args: argparse.Namespace) -> int:
    """-1 for -q, else the number of -v."""
    return -1 if getattr(args, "quiet", False) else getattr(args, "verbose", 0)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse arguments; settings of a training may also follow options, which argparse does not support."""
    top = parser()
    args, unrecognized = top.parse_known_args(argv)
    if unrecognized and (not hasattr(args, "settings") or any(word.startswith("-") for word in unrecognized)):
        top.error(f"unrecognized arguments: {' '.join(unrecognized)}")
    if unrecognized:
        args.settings += unrecognized
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
    ignore()  # the process is about to end, and a signal must not change its exit code
    return code


def step(*arguments: object) -> None:
    """Print and run a command as one step of a script, which ends with its exit code if it fails."""
    command = [str(argument) for argument in arguments]
    print("twostage", *command, flush=True)
    if code := main(command):
        sys.exit(code)


def _run(args: argparse.Namespace) -> int:
    try:
        with raise_memory_error(), shown(verbosity(args)):
            code: int = args.run(args)
        sys.stdout.flush()
        return code
    except TwoStageError as error:
        return _failed(error)
    except ModuleNotFoundError as error:  # in an installation without PyTorch
        if not error.name or error.name.partition(".")[0] == "twostage":
            raise
        return _failed(f"needs {error.name}, which is not installed here (pip install twostage installs it)")
    except KeyboardInterrupt:
        print("twostage: interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
        _give_up_output()
        return 1
    except MemoryError as error:
        return _failed(f"out of memory ({error})" if str(error) else "out of memory")
    except OSError as error:
        # if a disk is full or missing, every write can fail, even to standard output
        _give_up_output()
        named = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return _failed(f"{named}{reason_of(error)}")


def _open_streams() -> None:
    """Replace closed standard streams by the null device, and escape characters that the terminal cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process lives
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, TextIOWrapper):
            with suppress(OSError):  # an output that was redirected outside of Python is not changed
                output.reconfigure(errors="backslashreplace")


def _failed(error: object) -> int:
    try:
        print(f"twostage: error: {one_line(error)}", file=sys.stderr, flush=True)
    except OSError:  # stderr fails, too: only the exit code remains
        _give_up_output()
    return 1


def _give_up_output() -> None:
    """Redirect standard output and error to the null device if they fail, so that flushing at exit does not."""
    for output in (sys.stdout, sys.stderr):
        try:
            output.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
