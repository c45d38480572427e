"""Tests of restoring a corpus on a cluster: killed workers, interruptions, errors."""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from twostage.audio import sound_files
from twostage.cli import main
from twostage.corpus import ray_cluster
from twostage.corpus.corpus import CorpusJob, Item, ModelWeights
from twostage.corpus.ray_cluster import ClusterConfig, ClusterResources
from twostage.corpus.table import RESTORED, TABLE, Result, decode
from twostage.utils.errors import ConfigError

Speech = Callable[..., np.ndarray]


@pytest.fixture
def manifest(tmp_path: Path, speech: Speech, monkeypatch: pytest.MonkeyPatch) -> str:
    """A manifest of six recordings, two of them long, and one file that is no audio."""
    monkeypatch.chdir(tmp_path)
    Path("in/sub").mkdir(parents=True)
    long = np.tile(speech(16000), 20)
    names = [f"{'sub/' if index % 2 else ''}{index}.wav" for index in range(6)]
    for index, name in enumerate(names):
        sound_files.write(f"in/{name}", long if index < 2 else speech(8000, seed=index), 16000)
    Path("in/bad.wav").write_text("not a sound" * 30)
    Path("in/m.csv").write_text("path\n" + "".join(f"{name}\n" for name in [*names, "bad.wav"]))
    return "in/m.csv"


def require_ray() -> None:
    if find_spec("ray") is None and os.environ.get("TWOSTAGE_REQUIRE_CLUSTER") == "1":
        pytest.fail("ray is not installed, and TWOSTAGE_REQUIRE_CLUSTER is 1")
    pytest.importorskip("ray", reason="ray is not installed: pip install 'twostage[cluster]'")


@contextmanager
def this_process(config: ClusterConfig) -> Iterator[ClusterResources]:
    """Resources of one worker, without a cluster."""
    yield ClusterResources(1, 1, "cpu")


def table() -> dict[str, Result]:
    """The results by the name of the output."""
    rows = decode(Path("out", TABLE).read_bytes(), TABLE)
    by_output = {row.output: row for row in rows}
    assert len(by_output) == len(rows)
    return by_output


def outputs() -> set[str]:
    return {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()}


def kill_writer(folder: Path, killed: list[int], stop: threading.Event) -> None:
    """Kill the first process that writes a file: the name of the partial file contains its process id."""
    while not (killed or stop.wait(0.02)):
        for partial in folder.glob(".twostage/*/.made.wav.*.part"):
            pid = int(re.findall(r"\d+", partial.name)[-1])
            assert pid != os.getpid()
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            return


@pytest.mark.slow
def test_a_killed_worker_loses_no_files(manifest: str, tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_ray()
    killed: list[int] = []
    stop = threading.Event()
    watcher = threading.Thread(target=kill_writer, args=(Path("out"), killed, stop))
    watcher.start()
    try:
        arguments = ["-o", "out", "--model", str(tiny_path), "--workers", "2", "--device", "cpu"]
        code = main(["restore-corpus", manifest, *arguments])
    finally:
        stop.set()
        watcher.join()
    out, err = capsys.readouterr()
    assert code == 1  # one file is no audio
    assert len(killed) == 1
    names = {"0.wav", "2.wav", "4.wav", "sub/1.wav", "sub/3.wav", "sub/5.wav"}
    rows = table()
    assert {name for name, row in rows.items() if row.status == RESTORED} == names
    assert rows.keys() - names == {"bad.wav"}
    assert outputs() == names | {TABLE, "corpus.json"}  # no partial files of the killed worker
    assert main(["restore", "in", "-o", "plain", "--model", str(tiny_path), "--device", "cpu"]) == 1
    for name in names:
        assert Path("out", name).read_bytes() == Path("plain", name).read_bytes()
    errors = [line for line in err.splitlines() if not line.startswith("twostage: warning: ")]  # of full-band speech
    assert errors == [f"twostage: error: {rows['bad.wav'].error}"]
    assert out.splitlines()[0] == "7 files to restore on 2 x cpu, 0 done before"
    assert out.splitlines()[-1].startswith("6 restored, 1 failed of 7; 42.0 s of sound in ")
    assert all(" of 7; " in line for line in out.splitlines()[1:])  # no messages of Ray


def test_only_the_file_that_kills_its_workers_fails(
    manifest: str, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of a batch that was never finished are tried one by one."""
    weights = ModelWeights.read(str(tiny_path))
    job = CorpusJob("out", weights.digest)
    sizes = []

    def map_losing_batches_with_one_file(
        items: list[Item], files: int, work: object, resources: ClusterResources
    ) -> Iterator[list[Result]]:
        chunks = [items[start : start + files] for start in range(0, len(items), files)]
        sizes.extend(map(len, chunks))
        for chunk in chunks:
            if not any(item.name == "66.wav" for item in chunk):
                yield [Result(item.source, item.name, RESTORED) for item in chunk]

    monkeypatch.setattr(ray_cluster, "_map", map_losing_batches_with_one_file)
    items = [Item(f"/in/{index}.wav", f"{index}.wav") for index in range(100)]
    results = [row for rows in ray_cluster.restored(items, job, weights, ClusterResources(2, 1, "cpu")) for row in rows]
    assert sizes == [3] * 33 + [1] + [1] * 3
    assert sorted(row.path for row in results) == sorted(item.source for item in items)
    (failed,) = [row for row in results if row.status != RESTORED]
    assert failed.error == "/in/66.wav: the process that restored it died, or could not write its results"


def test_an_interrupted_command_continues_when_it_is_repeated(
    manifest: str, tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt = True

    def map_one_by_one(
        items: list[Item], files: int, work: tuple[type, CorpusJob, ModelWeights], resources: ClusterResources
    ) -> Iterator[list[Result]]:
        worker = work[0](*work[1:])
        for count, item in enumerate(items):
            if interrupt and count == 2:
                signal.raise_signal(signal.SIGTERM)
            yield worker([item])

    monkeypatch.setattr(ray_cluster, "cluster", this_process)
    monkeypatch.setattr(ray_cluster, "_map", map_one_by_one)
    command = ["restore-corpus", manifest, "-o", "out", "--model", str(tiny_path)]
    assert main(command) == 130
    out, err = capsys.readouterr()
    assert err.endswith("twostage: interrupted\n")
    assert "2 restored of 7; " in out
    assert re.search(r", \d+ s left; 5 not done, the same command continues with them$", out)
    assert table().keys() == {"0.wav", "sub/1.wav"}
    interrupt = False
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "5 files to restore on 1 x cpu, 2 done before"
    assert out.splitlines()[-1].startswith("4 restored, 2 done before, 1 failed of 7; ")
    assert "not a sound file" in err
    before = {name: Path("out", name).stat().st_mtime_ns for name in table() if name != "bad.wav"}
    Path("in/m.csv").write_text("path\n0.wav\nsub/1.wav\n")
    assert main(command) == 0  # nothing to do, for which no cluster is started
    assert capsys.readouterr().out == "0 restored, 2 done before of 2\n"
    assert {name: Path("out", name).stat().st_mtime_ns for name in before} == before
    assert len(table()) == 7


def test_only_the_first_twenty_errors_are_printed(
    tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray_cluster, "cluster", this_process)
    monkeypatch.setattr(ray_cluster, "_map", lambda items, files, work, resources: iter([work[0](*work[1:])(items)]))
    Path("m.csv").write_text("path\n" + "".join(f"{index}.wav\n" for index in range(25)))
    assert main(["restore-corpus", "m.csv", "-o", "out", "--model", str(tiny_path)]) == 1
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 21
    assert err[-1] == "twostage: 5 more errors are in the table"
    assert {row.status for row in table().values()} == {"failed"}
    assert len(table()) == 25


def test_a_cluster_that_cannot_be_reached_is_reported() -> None:
    require_ray()
    with (
        pytest.raises(ConfigError, match=r"no cluster 127.0.0.1:1: "),
        ray_cluster.cluster(ClusterConfig("127.0.0.1:1")),
    ):
        pass
