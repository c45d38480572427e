"""Claims about files that lie elsewhere: they are whole or not there, and nothing is written outside a folder."""

from pathlib import Path

import fsspec
import pytest

from twostage.corpus import storage
from twostage.corpus.storage import SCRATCH, Store, fetch, read_text
from twostage.utils.errors import AudioError, ConfigError, OutputError


@pytest.fixture(params=["local", "file", "memory", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A folder, its URL, an object store, and a server of files, where a name is changed when all is there."""
    if request.param == "server":
        monkeypatch.setattr(storage, "OBJECT_STORES", set())
    places = {"local": str(tmp_path / "out"), "file": f"file://{tmp_path}/out"}
    return Store(places.get(request.param, f"memory://{tmp_path.name}/{request.param}"))


def test_what_is_written_can_be_read_listed_and_removed(store: Store) -> None:
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


def test_a_file_is_delivered_and_nothing_stays_behind(store: Store) -> None:
    for content in (b"first", b"second"):
        with store.scratch() as folder:
            (folder / "made.wav").write_bytes(content)
            store.deliver(folder / "made.wav", "a/b/x.wav")
        assert not folder.exists()
        assert store.read(["a/b/x.wav"]) == [content]
        assert store.names("a/b") == ["a/b/x.wav"]
    store.sweep()
    assert store.names() == ["a"]


def test_a_put_that_fails_leaves_no_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, path: str, value: bytes, **_: object) -> None:
        raise OSError(28, "No space left on device")

    store.write("before", b"")
    monkeypatch.setattr(type(store._files), "pipe_file", full)
    with pytest.raises(OutputError, match=r"x.bin: cannot be written \(No space left on device\)"):
        store.write("x.bin", b"1")
    assert store.names() == ["before"]


def test_a_symbolic_link_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "x.wav").write_bytes(b"precious")
    store = Store(str(tmp_path / "out"))
    for name in ("a/x.wav", "a/new/x.wav"):
        with store.scratch() as folder:
            (folder / "made.wav").write_bytes(b"1")
            with pytest.raises(OutputError, match=r"leads out of .* by a symbolic link"):
                store.deliver(folder / "made.wav", name)
    assert [path.name for path in (tmp_path / "elsewhere").rglob("*")] == ["x.wav"]
    assert (tmp_path / "elsewhere" / "x.wav").read_bytes() == b"precious"


def test_a_link_in_a_files_place_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "precious.wav").write_bytes(b"precious")
    (tmp_path / "out" / "x.wav").symlink_to(tmp_path / "precious.wav")
    store = Store(str(tmp_path / "out"))
    with store.scratch() as folder:
        (folder / "made.wav").write_bytes(b"1")
        store.deliver(folder / "made.wav", "x.wav")
    assert (tmp_path / "precious.wav").read_bytes() == b"precious"
    assert (tmp_path / "out" / "x.wav").read_bytes() == b"1"


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / SCRATCH / "twostage-dead").mkdir(parents=True)
    (tmp_path / SCRATCH / "twostage-dead" / ".x.wav.1.part").touch()
    store.sweep()
    assert store.names() == []


def test_a_source_is_itself_or_a_copy_with_its_suffix(tmp_path: Path) -> None:
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


def test_what_lies_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    local, memory = Store(str(tmp_path / "out")), Store("memory://b/out")
    inside = [str(tmp_path / "out/a.wav"), f"file://{tmp_path}/link/a.wav", f"{tmp_path}/in/../out/a.wav"]
    assert all(local.holds(source) for source in inside)
    assert not any(local.holds(source) for source in [f"{tmp_path}/outer/a.wav", f"memory://{tmp_path}/out/a.wav"])
    assert memory.holds("memory://b/out/a.wav")
    assert not any(memory.holds(source) for source in ["memory://b/outer/a.wav", "/b/out/a.wav"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere://b/m.csv", "nowhere://b/m.csv: Protocol not known: nowhere"),
        ("memory://none/m.csv", "memory://none/m.csv: no such file"),
        ("none.csv", "none.csv: no such file"),
        ("memory://sources/m.csv", "memory://sources/m.csv: not a text file"),
    ],
)
def test_texts_that_cannot_be_read(source: str, message: str) -> None:
    fsspec.filesystem("memory").pipe_file("/sources/m.csv", b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=message):
        read_text(source)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"a corpus needs fsspec: pip install 'twostage\[cluster\]'"):
        Store("out")
