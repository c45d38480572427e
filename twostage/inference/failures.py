"""The loop over many files, for all front ends, in which a file that fails does not stop the others."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from twostage.utils.errors import TwoStageError, first_line, reason_of

FAILURES = (TwoStageError, OSError, MemoryError)  # errors of one file that must not stop the others

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Failure:
    """The reason why an item failed: a line that begins with its name."""

    error: str


def one_by_one(
    items: Iterable[Item],
    work: Callable[[Item], Outcome],
    *,
    name: Callable[[Item], object],
    catch: tuple[type[Exception], ...] = FAILURES,
) -> Iterator[tuple[Item, Outcome | Failure]]:
    """Yield each item with the result of ``work`` as it is done, or with a Failure if it failed.

    ``name`` returns the name of an item for messages. Exceptions that are not in ``catch``, and always
    KeyboardInterrupt, stop the loop.
    """
    for item in items:
        try:
            outcome: Outcome | Failure = work(item)
        except catch as error:
            outcome = Failure(explain(error, str(name(item))))
        yield item, outcome


def explain(error: Exception, name: str) -> str:
    """One line that explains why the item ``name`` failed; it begins with the name.

    >>> explain(OSError(28, "No space left on device"), "a.wav")
    'a.wav: No space left on device'
    """
    if isinstance(error, TwoStageError):
        return error.about(name)
    if isinstance(error, OSError):
        return f"{name}: {reason_of(error)}"
    if isinstance(error, MemoryError):
        return f"{name}: out of memory; shorter windows (--seconds) need less"
    return f"{name}: {type(error).__name__}: {first_line(error)}"
