"""Standard logging: the package logs to loggers named after its modules, below "twostage".

A program that uses the package decides where the records go; the command line writes them to stderr. Loggers of other
packages are silenced only individually and temporarily, because the logging configuration belongs to the host program.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twostage.utils.errors import one_line

NAME = "twostage"
LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}  # for -q, no option, -v, -vv


class Lines(logging.Handler):
    """Writes records as lines to stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = "" if record.levelno in (logging.INFO, logging.DEBUG) else f"{record.levelname.lower()}: "
        line = f"{NAME}: {kind}{one_line(record.getMessage())}"
        tqdm = sys.modules.get("tqdm")
        try:
            if tqdm:
                tqdm.tqdm.write(line, file=sys.stderr)
            else:
                print(line, file=sys.stderr)
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


@contextmanager
def shown(verbosity: int = 0) -> Iterator[None]:
    """Write the package's log records to stderr within the block: errors at -1, warnings at 0, more at 1 and 2."""
    logger, handler = logging.getLogger(NAME), Lines()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(LEVELS[max(-1, min(2, verbosity))])
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def quieted(*packages: str, level: int = logging.ERROR) -> Iterator[None]:
    """Silence the loggers of ``packages`` below ``level`` within the block; all others are not affected.

    Some packages log to the root logger itself. Records from their files are filtered out there, and handlers that they
    added are removed.
    """
    levels = {logger: logger.level for logger in _loggers_of(packages)}
    root, handlers = logging.root, logging.root.handlers[:]

    def is_allowed(record: logging.LogRecord) -> bool:
        return record.levelno >= level or not {*packages} & {*Path(record.pathname).parts}

    for logger in levels:
        logger.setLevel(max(level, logger.level))
    root.addFilter(is_allowed)
    try:
        yield
    finally:
        root.removeFilter(is_allowed)
        for handler in root.handlers[:]:
            if handler not in handlers:
                root.removeHandler(handler)
        for logger in _loggers_of(packages):
            logger.setLevel(levels.get(logger, logger.level))


def _loggers_of(packages: tuple[str, ...]) -> list[logging.Logger]:
    """The logger of each package and all existing loggers below it."""
    below = [name for name in logging.root.manager.loggerDict if name.startswith(tuple(f"{p}." for p in packages))]
    return [logging.getLogger(name) for name in (*packages, *below)]
