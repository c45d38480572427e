"""Errors that the user can fix. The command line prints them as one line; every other exception is a bug."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unicodedata import category

LONGEST = 1000  # characters of a message
UNSEEN = ("Cc", "Cs", "Zl", "Zp")  # categories of characters that break lines, control terminals or cannot be encoded


def one_line(text: object) -> str:
    """A message in printable form: one line of limited length, whatever names and values it quotes.

    >>> one_line("a\\nb\\x1b.wav: no such file")
    'a\\\\nb\\\\x1b.wav: no such file'
    """
    line = "".join(repr(c)[1:-1] if category(c) in UNSEEN else c for c in str(text))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[5 - LONGEST // 2 :]}"


def first_line(error: BaseException) -> str:
    """The first line of the message of another package's error, or the name of its type if there is no message.

    >>> first_line(ValueError("bad header\\nread_header, line 7"))
    'bad header'
    >>> first_line(KeyboardInterrupt())
    'KeyboardInterrupt'
    """
    return str(error).strip().partition("\n")[0] or type(error).__name__


def reason_of(error: BaseException) -> str:
    """The reason of an error: the message of the system for system errors, else the first line of the message."""
    return getattr(error, "strerror", None) or first_line(error)


class TwoStageError(Exception):
    """A file, setting or value that cannot be used: ``subject`` names it and ``reason`` explains the problem.

    The message is "subject: reason", or the reason only if there is no subject.

    >>> str(TwoStageError("no such file", subject="a.wav"))
    'a.wav: no such file'
    """

    def __init__(self, reason: str, *, subject: object = "") -> None:
        super().__init__(reason)
        self.reason, self.subject = reason, str(subject)

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}" if self.subject else self.reason

    def about(self, name: str) -> str:
        """The message with ``name`` at its start, once.

        >>> TwoStageError("no such file", subject="a.wav").about("a.wav")
        'a.wav: no such file'
        >>> TwoStageError("is full", subject="/disk").about("a.wav")
        'a.wav: /disk: is full'
        """
        return str(self) if self.subject == name else f"{name}: {self}"


@contextmanager
def called(names: Mapping[str, str]) -> Iterator[None]:
    """Replace the subjects of errors by ``names``, for example those of temporary files by those that users know."""
    try:
        yield
    except TwoStageError as error:
        error.subject = names.get(error.subject, error.subject)
        raise


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
    """Work that was asked to stop. It is not an input error: loops that continue after a bad file do not catch it."""
