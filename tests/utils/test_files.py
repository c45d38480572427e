"""Tests of writing files: a file appears when it is complete or not at all, and errors name what is in the way."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import twostage
from twostage.audio import sound_files
from twostage.corpus.storage import Store
from twostage.data.manifest import Entry, write_manifest
from twostage.evaluation.report import write_rows
from twostage.models import checkpoint
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
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), replacing(tmp_path / "a.txt") as partial:  # noqa: PT012
        partial.write_text("half")
        raise error
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def test_an_existing_file_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OutputError, match=r"a\.txt: exists already"), replacing(tmp_path / "a.txt", overwrite=False):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/a.txt", "file: cannot make this folder"),
        ("file/deeper/a.txt", "deeper: cannot make this folder"),
        ("folder", "folder: is a folder"),
    ],
)
def test_an_obstacle_in_the_path_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=message), replacing(tmp_path / name) as partial:
        partial.write_text("x")


def test_an_error_while_writing_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.txt: cannot be written \(No space left"), replacing(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")


def test_processes_with_the_same_process_id_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    """Process ids repeat on two machines or in two containers that write to the same disk."""
    names = {partial_name(tmp_path / "a.wav") for _ in range(100)}
    assert len(names) == 100
    assert all(name.parent == tmp_path and name.name.startswith(".a.wav.") for name in names)


@pytest.mark.parametrize("name", ["\uac00" * 85, "a" * 255, "\U0001f600" * 63])
def test_temporary_names_fit_wherever_the_name_itself_fits(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    partial = partial_name(tmp_path / name)
    partial.touch()
    assert partial.name.encode().decode() == partial.name


def test_a_reader_sees_either_the_old_or_the_new_file(tmp_path: Path) -> None:
    """The new file is renamed and not copied over the old one, which stays readable where it is open."""
    (tmp_path / "a.txt").write_text("old")
    with (tmp_path / "a.txt").open() as reader:
        with replacing(tmp_path / "a.txt") as partial:
            partial.write_text("new")
            written = partial.stat().st_ino
        assert reader.read() == "old"
    assert (tmp_path / "a.txt").read_text() == "new"
    assert (tmp_path / "a.txt").stat().st_ino == written


# cannot write another byte once the file is complete: if it were copied now, the process would be killed half-way
WRITES_WITHOUT_COPYING = """
import resource, signal, sys
from pathlib import Path
from twostage.utils.files import replacing

signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
with replacing(sys.argv[1]) as partial:
    partial.write_bytes(b"n" * 10_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
"""


@pytest.mark.parametrize("before", [b"", b"o" * 10_000])
def test_a_complete_file_is_renamed_and_not_copied(tmp_path: Path, before: bytes) -> None:
    if before:
        (tmp_path / "a.bin").write_bytes(before)
    process = subprocess.run([sys.executable, "-c", WRITES_WITHOUT_COPYING, str(tmp_path / "a.bin")], check=False)
    assert process.returncode == 0
    assert (tmp_path / "a.bin").read_bytes() == b"n" * 10_000


def test_the_file_is_flushed_before_renaming_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, replace, calls = os.fsync, os.replace, []

    def recorded_fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def recorded_replace(old: Path, new: Path) -> None:
        calls.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    with replacing(tmp_path / "a.txt") as partial:
        partial.write_text("x")
    assert calls == ["file", "rename", "folder"]


@pytest.mark.parametrize("refused", ["open", "fsync"])
@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(22, "Invalid argument")])
def test_files_are_written_on_systems_that_cannot_flush_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str, error: OSError
) -> None:
    """Windows cannot open folders, and some network disks cannot flush them."""
    call = getattr(os, refused)

    def refusing(target: int | str | Path, *args: int) -> int | None:
        if os.path.isdir(target if refused == "open" else f"/proc/self/fd/{target}"):
            raise error
        return call(target, *args)

    monkeypatch.setattr(os, refused, refusing)
    with replacing(tmp_path / "a.txt") as partial:
        partial.write_text("x")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "x")]


def test_a_rename_that_windows_refuses_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, refusals = os.replace, [PermissionError(13, "Access is denied")] * 2

    def refused_twice(source: Path, target: Path) -> None:
        if refusals:
            raise refusals.pop()
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused_twice)
    monkeypatch.setattr("twostage.utils.files.RETRIES", (0.0, 0.0))
    with replacing(tmp_path / "a.txt") as partial:
        partial.write_text("complete")
    assert (tmp_path / "a.txt").read_text() == "complete"
    refusals[:] = [PermissionError(13, "Access is denied")] * 3
    with pytest.raises(OutputError, match="cannot be written"), replacing(tmp_path / "b.txt") as partial:
        partial.write_text("complete")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_flush_is_an_error_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("old")

    def raise_input_output_error(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", raise_input_output_error)
    with pytest.raises(OutputError, match=r"a\.txt: cannot be written \(Input"), replacing(tmp_path / "a.txt") as file:
        file.write_text("new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_file_that_another_process_created_meanwhile_is_kept(tmp_path: Path) -> None:
    raises_exists = pytest.raises(OutputError, match=r"a\.txt: exists already")
    with raises_exists, replacing(tmp_path / "a.txt", overwrite=False) as partial:
        partial.write_text("ours")
        (tmp_path / "a.txt").write_text("another's")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "another's")]


def copied(path: Path) -> Path:
    return Path(shutil.copy(__file__, path))


WRITERS: dict[str, Callable[[Path], object]] = {
    "a training's state": lambda path: checkpoint.save_state(path, {"step": 1}),
    "a sound file": lambda path: sound_files.write(path, np.zeros(9, np.float32), 16000, overwrite=True),
    "a corpus's file": lambda path: Store(str(path.parent)).deliver(copied(path.parent / "x"), path.name),
    "a manifest": lambda path: write_manifest(path, [Entry("a.wav", None, "s", 1.0)], overwrite=True),
    "rows": lambda path: write_rows(path, []),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_replaces_files_as_a_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / "out.wav"
    path.write_text("old")
    with path.open() as reader:
        WRITERS[name](path)
        assert reader.read() == "old"
    assert path.stat().st_size != 3
    assert {file.name for file in tmp_path.iterdir()} - {".twostage"} == {"out.wav"}


def test_files_are_renamed_in_one_module_only() -> None:
    package = Path(twostage.__file__).parent
    users = [path.relative_to(package).as_posix() for path in package.rglob("*.py") if "os.replace" in path.read_text()]
    assert users == ["utils/files.py"]
