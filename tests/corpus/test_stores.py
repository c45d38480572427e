"""Tests of the storage of a corpus: files are complete or absent, and none is written outside the folder."""

from pathlib import Path

import fsspec
import pytest

from twostage.corpus import storage
from twostage.corpus.storage import SCRATCH, Store, fetch, read_text
from twostage.utils.errors import AudioError, ConfigError, OutputError


@pytest.fixture(params=["local", "file", "memory", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A local folder, its URL, an object store, and a file server, on which complete files are renamed."""
    if request.param == "server":
        monkeypatch.setattr(storage, "OBJECT_STORES", set())
    locations = {"local": str(tmp_path / "out"), "file": f"file://{tmp_path}/out"}
    return Store(locations.get(request.param, f"memory://{tmp_path.name}/{request.param}"))


def test_written_files_are_listed_read_and_removed(store: Store) -> None:
    assert store.names() == store.names("parts") == []
    store.write("parts/b.bin", b"2")
    store.write("parts/a.bin", b"old")
    store.write("parts/a.bin", b"1")
    assert store.names() == ["parts"]
    assert store.names("parts") == ["parts/a.bin", "parts/b.bin"]
    assert store.read(["parts/b.bin", "parts/a.bin"]) == [b"2", b"1"]
    store.remove(["parts/a.bin", "parts/a.bin"])
    assert store.names("parts") == ["parts/b.bin"]
    with pytest.raises(OutputError, match="cannot be read"):
        store.read(["parts/a.bin"])


def test_a_delivered_file_is_stored_and_its_scratch_folder_removed(store: Store) -> None:
    for content in (b"first", b"second"):
        with store.scratch() as folder:
            (folder / "restored.wav").write_bytes(content)
            store.deliver(folder / "restored.wav", "a/b/x.wav")
        assert not folder.exists()
        assert store.read(["a/b/x.wav"]) == [content]
        assert store.names("a/b") == ["a/b/x.wav"]
    store.sweep()
    assert store.names() == ["a"]


def test_a_failed_write_leaves_no_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(self: object, path: str, value: bytes, **_: object) -> None:
        raise OSError(28, "No space left on device")

    store.write("before", b"")
    monkeypatch.setattr(type(store._files), "pipe_file", raise_disk_full)
    with pytest.raises(OutputError, match=r"x.bin: cannot be written \(No space left on device\)"):
        store.write("x.bin", b"1")
    assert store.names() == ["before"]


def test_no_file_is_written_through_a_symbolic_link_to_another_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "x.wav").write_bytes(b"precious")
    store = Store(str(tmp_path / "out"))
    for name in ("a/x.wav", "a/new/x.wav"):
        with store.scratch() as folder:
            (folder / "restored.wav").write_bytes(b"1")
            with pytest.raises(OutputError, match=r"leads out of .* by a symbolic link"):
                store.deliver(folder / "restored.wav", name)
    assert [path.name for path in (tmp_path / "elsewhere").rglob("*")] == ["x.wav"]
    assert (tmp_path / "elsewhere" / "x.wav").read_bytes() == b"precious"


def test_a_symbolic_link_to_a_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "precious.wav").write_bytes(b"precious")
    (tmp_path / "out" / "x.wav").symlink_to(tmp_path / "precious.wav")
    store = Store(str(tmp_path / "out"))
    with store.scratch() as folder:
        (folder / "restored.wav").write_bytes(b"1")
        store.deliver(folder / "restored.wav", "x.wav")
    assert (tmp_path / "precious.wav").read_bytes() == b"precious"
    assert (tmp_path / "out" / "x.wav").read_bytes() == b"1"


def test_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / SCRATCH / "twostage-dead").mkdir(parents=True)
    (tmp_path / SCRATCH / "twostage-dead" / ".x.wav.1.part").touch()
    store.sweep()
    assert store.names() == []


def test_fetch_returns_a_local_path_or_a_copy_with_the_same_suffix(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"1")
    assert fetch(str(tmp_path / "x.wav"), tmp_path / "none") == tmp_path / "x.wav"
    assert fetch(f"file://{tmp_path}/x.wav", tmp_path / "none") == tmp_path / "x.wav"
    fsspec.filesystem("memory").pipe_file("/sources/y.flac", b"2")
    copy = fetch("memory://sources/y.flac", tmp_path)
    assert (copy.suffix, copy.read_bytes()) == (".flac", b"2")
    with pytest.raises(AudioError, match=r"memory://sources/z.flac: no such file"):
        fetch("memory://sources/z.flac", tmp_path)
    with pytest.raises(AudioError, match="memory://sources: "):
        fetch("memory://sources", tmp_path)


def test_a_store_recognizes_paths_inside_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    local, memory = Store(str(tmp_path / "out")), Store("memory://b/out")
    inside = [str(tmp_path / "out/a.wav"), f"file://{tmp_path}/link/a.wav", f"{tmp_path}/in/../out/a.wav"]
    assert all(local.holds(source) for source in inside)
    assert not any(local.holds(source) for source in [f"{tmp_path}/outer/a.wav", f"memory://{tmp_path}/out/a.wav"])
    assert memory.holds("memory://b/out/a.wav")
    assert not any(memory.holds(source) for source in ["memory://b/outer/a.wav", "/b/out/a.wav"])


def test_a_byte_order_mark_before_a_text_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path\nx.wav\n", encoding="utf-8-sig")
    assert read_text(str(tmp_path / "m.csv")) == "path\nx.wav\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere://b/m.csv", "nowhere://b/m.csv: Protocol not known: nowhere"),
        ("memory://none/m.csv", "memory://none/m.csv: no such file"),
        ("none.csv", "none.csv: no such file"),
        ("memory://sources/m.csv", "memory://sources/m.csv: not a text file"),
    ],
)
def test_a_text_that_cannot_be_read_is_an_error(source: str, message: str) -> None:
    fsspec.filesystem("memory").pipe_file("/sources/m.csv", b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=message):
        read_text(source)


def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"a corpus needs fsspec: pip install 'twostage\[cluster\]'"):
        Store("out")
