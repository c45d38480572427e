"""Errors that are the user's to mend. The command line prints them as one line; everything else is a bug."""

from unicodedata import category

LONGEST = 1000  # characters of a message
UNSEEN = ("Cc", "Cs", "Zl", "Zp")  # categories of characters that break a line, steer a terminal or cannot be encoded


def one_line(text: object) -> str:
    """A message as it may be printed: of one line whatever names and values it quotes, and not without end.

    >>> one_line("a\\nb\\x1b.wav: no such file")
    'a\\\\nb\\\\x1b.wav: no such file'
    """
    shown = "".join(repr(c)[1:-1] if category(c) in UNSEEN else c for c in str(text))
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST // 2]} ... {shown[5 - LONGEST // 2 :]}"


class TwoStageError(Exception):
    """A file, setting or value that cannot be used. The message names it and says what is wrong."""


class AudioError(TwoStageError):
    """A sound file that cannot be read or written."""


class CheckpointError(TwoStageError):
    """A file of weights that is missing, corrupt, foreign, or does not fit."""


class ConfigError(TwoStageError):
    """A setting that is unknown, of the wrong type, or impossible."""


class OutputError(TwoStageError):
    """A file or folder that cannot be written."""


class DataError(TwoStageError):
    """A corpus, manifest or pair that cannot be used."""


class Cancelled(Exception):
    """Work that was asked to stop. Not an error of the input, so nothing that goes on after a bad file swallows it."""
