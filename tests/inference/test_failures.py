"""Tests of processing many files: an error becomes a line that starts with the file's name, and the others go on."""

import pytest

from twostage.inference.failures import Failure, one_by_one
from twostage.utils.errors import AudioError, OutputError, called
from twostage.utils.memory import raise_memory_error


def restore_by_name(name: str) -> str:
    errors: dict[str, Exception] = {
        "own": AudioError("is empty (0 bytes)", subject="own"),
        "other": OutputError("is a folder", subject="out/other"),
        "none": AudioError("seconds is 0, must be positive"),
        "disk": OSError(28, "No space left on device", "somewhere"),
        "memory": MemoryError(),
    }
    if name in errors:
        raise errors[name]
    return name.upper()


def test_errors_become_lines_and_the_other_files_are_processed() -> None:
    names = ["a", "own", "other", "none", "disk", "memory", "z"]
    outcomes = dict(one_by_one(names, restore_by_name, name=str))
    assert outcomes == {
        "a": "A",
        "own": Failure("own: is empty (0 bytes)"),
        "other": Failure("other: out/other: is a folder"),
        "none": Failure("none: seconds is 0, must be positive"),
        "disk": Failure("disk: No space left on device"),
        "memory": Failure("memory: out of memory; shorter windows (--seconds) need less"),
        "z": "Z",
    }


def test_each_outcome_is_yielded_before_the_next_item_starts() -> None:
    started: list[int] = []
    outcomes = one_by_one([1, 2, 3], started.append, name=str)
    next(outcomes)
    assert started == [1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_unexpected_exceptions_and_ctrl_c_are_raised(error: type[BaseException]) -> None:
    def failing(item: int) -> None:
        raise error("2 is too much")

    with pytest.raises(error):
        list(one_by_one([1, 2], failing, name=str))


def test_other_exceptions_are_caught_on_request_but_not_ctrl_c() -> None:
    def failing(error: BaseException) -> None:
        raise error

    outcomes = list(one_by_one([ValueError("2 is\ntoo much")], failing, name=lambda _: "a", catch=(Exception,)))
    assert [failure for _, failure in outcomes] == [Failure("a: ValueError: 2 is")]
    with pytest.raises(KeyboardInterrupt):
        list(one_by_one([KeyboardInterrupt()], failing, name=str, catch=(Exception,)))


def test_errors_of_intermediate_files_name_the_original_file() -> None:
    with pytest.raises(AudioError, match=r"^a\.wav: damaged, see scratch/x$"), called({"scratch/x": "a.wav"}):
        raise AudioError("damaged, see scratch/x", subject="scratch/x")  # the text of the reason is never changed
    with pytest.raises(AudioError, match=r"^b\.wav: damaged$"), called({"scratch/x": "a.wav"}):
        raise AudioError("damaged", subject="b.wav")


def test_an_out_of_memory_error_of_a_gpu_becomes_a_memory_error() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(MemoryError), raise_memory_error():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
