"""Claims about writing: a file is there when it is complete, or not at all, and what is in its way is named."""

from pathlib import Path

import pytest

from twostage.utils.errors import OutputError
from twostage.utils.files import partial_name, replacing


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as partial:
        partial.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_fails_leaves_the_file_that_was(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), replacing(tmp_path / "a.txt") as partial:  # noqa: PT012
        partial.write_text("half")
        raise error
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_file_that_exists_is_replaced_only_if_it_may(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OutputError, match=r"a\.txt: exists already"), replacing(tmp_path / "a.txt", overwrite=False):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("file/a.txt", "file: cannot make this folder"),
        ("file/deeper/a.txt", "deeper: cannot make this folder"),
        ("folder", "folder: is a folder"),
    ],
)
def test_what_is_in_the_way_is_named(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=what), replacing(tmp_path / name) as partial:
        partial.write_text("x")


def test_a_write_that_fails_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.txt: cannot be written \(No space left"), replacing(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")


def test_processes_of_one_number_do_not_share_a_hidden_file(tmp_path: Path) -> None:
    """As on two machines, or in two containers, that write to one disk."""
    names = {partial_name(tmp_path / "a.wav") for _ in range(100)}
    assert len(names) == 100
    assert all(name.parent == tmp_path and name.name.startswith(".a.wav.") for name in names)


@pytest.mark.parametrize("name", ["\uac00" * 85, "a" * 255, "\U0001f600" * 63])
def test_hidden_names_fit_where_names_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    partial = partial_name(tmp_path / name)
    partial.touch()
    assert partial.name.encode().decode() == partial.name
