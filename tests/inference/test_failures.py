"""Many files: a bad one becomes a line that begins with its name, and does not stop the rest."""

import pytest

from twostage.inference.failures import Failure, one_by_one
from twostage.utils.errors import AudioError, OutputError, called
from twostage.utils.memory import raise_memory_error


def restored(name: str) -> str:
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


def test_what_fails_is_a_line_and_the_rest_goes_on() -> None:
    names = ["a", "own", "other", "none", "disk", "memory", "z"]
    actual = dict(one_by_one(names, restored, name=str))
    assert actual == {
        "a": "A",
        "own": Failure("own: is empty (0 bytes)"),
        "other": Failure("other: out/other: is a folder"),
        "none": Failure("none: seconds is 0, must be positive"),
        "disk": Failure("disk: No space left on device"),
        "memory": Failure("memory: out of memory; shorter windows (--seconds) need less"),
        "z": "Z",
    }


def test_each_is_told_before_the_next_is_begun() -> None:
    begun: list[int] = []
    outcomes = one_by_one([1, 2, 3], begun.append, name=str)
    next(outcomes)
    assert begun == [1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_bug_and_ctrl_c_stop_the_rest(error: type[BaseException]) -> None:
    def failing(item: int) -> None:
        raise error("2 is too much")

    with pytest.raises(error):
        list(one_by_one([1, 2], failing, name=str))


def test_where_anything_can_go_wrong_anything_is_caught_but_ctrl_c() -> None:
    def failing(error: BaseException) -> None:
        raise error

    actual = list(one_by_one([ValueError("2 is\ntoo much")], failing, name=lambda _: "a", catch=(Exception,)))
    assert [failure for _, failure in actual] == [Failure("a: ValueError: 2 is")]
    with pytest.raises(KeyboardInterrupt):
        list(one_by_one([KeyboardInterrupt()], failing, name=str, catch=(Exception,)))


def test_files_in_between_go_by_the_names_of_those_that_they_stand_for() -> None:
    with pytest.raises(AudioError, match=r"^a\.wav: damaged, see scratch/x$"), called({"scratch/x": "a.wav"}):
        raise AudioError("damaged, see scratch/x", subject="scratch/x")  # the reason is nobody's to edit
    with pytest.raises(AudioError, match=r"^b\.wav: damaged$"), called({"scratch/x": "a.wav"}):
        raise AudioError("damaged", subject="b.wav")


def test_a_gpu_without_memory_is_out_of_memory_as_a_cpu_is() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(MemoryError), raise_memory_error():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
