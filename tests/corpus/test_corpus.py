"""Tests of restoring a corpus without a cluster: names, resuming, the table, and outputs equal to those of restore."""

import importlib
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from unsafe_pickles import TouchesFile

from twostage.audio import sound_files
from twostage.cli import main
from twostage.corpus import corpus, ray_cluster
from twostage.corpus.corpus import CorpusJob, Item, ModelWeights, Worker, begin, plan, refused, safe_name, sources
from twostage.corpus.ray_cluster import ClusterConfig
from twostage.corpus.storage import Store
from twostage.corpus.table import PARTS, TABLE, Result, Table, decode, distinct, to_arrow
from twostage.inference.restore_options import Options
from twostage.utils.errors import CheckpointError, ConfigError, DataError, OutputError

Speech = Callable[..., np.ndarray]


@pytest.fixture
def manifest(mixed_recordings: Path) -> Path:
    """A manifest of readable, unreadable and missing recordings in "in"."""
    names = ("good.wav", "sub/stereo.flac", "silent.wav", "text.wav", "missing.wav")
    Path("in/m.csv").write_text("path\n" + "".join(f"{name}\n" for name in names))
    return mixed_recordings / "in" / "m.csv"


@pytest.fixture
def job(tiny_path: Path) -> CorpusJob:
    return CorpusJob("out", ModelWeights.read(str(tiny_path)).digest)


def items(manifest: Path, *, done: dict[str, Result] | None = None, suffix: str = "") -> list[Item]:
    return list(plan(*sources(str(manifest)), done or {}, suffix=suffix))


def result(path: str, status: str = "restored", **values: Any) -> Result:
    return Result(path, f"{path}.wav", status, **values)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/c/a/x.wav", "a/x.wav"),  # below the manifest: the folder structure is kept
        ("/d/a/x.wav", "d/a/x.wav"),  # absolute
        ("/c/../../etc/x.wav", "etc/x.wav"),
        ("/c/a/../../../x.wav", "x.wav"),
        ("/c/..", "_"),
        ("/c/a/..\\..\\..\\x.wav", "x.wav"),
        ("/c/C:\\windows\\x.wav", "C_/windows/x.wav"),  # drive letters
        ("/c/C:x.wav", "C_x.wav"),
        ("/c/\\\\server\\share\\x.wav", "server/share/x.wav"),
        ("s3://bucket/a/x.wav", "bucket/a/x.wav"),
        ("s3://bucket/../../x.wav", "x.wav"),
        ("/c/a//./x.wav", "a/x.wav"),
        ("/c/ . / .. /x.wav", "x.wav"),
        ("/c/x.wav. .", "x.wav"),  # Windows would drop the ending
        ("/c/a\nb\x00.wav", "a_b_.wav"),
        ("/c/results.parquet/x.wav", "_results.parquet/x.wav"),  # the corpus's own files
        ("/c/.twostage/x.wav", "_.twostage/x.wav"),
        ("/c/Corpus.JSON", "_Corpus.JSON"),
    ],
)
def test_output_names_stay_below_the_output_folder(source: str, name: str) -> None:
    assert safe_name(source, "/c") == name
    target = Path("/dest") / name
    assert ".." not in target.parts
    assert target.is_relative_to("/dest")


def test_output_names_do_not_collide() -> None:
    """Not with another suffix, nor on file systems that ignore case or Unicode normalization."""
    paths = ["/c/a.wav", "/c/a.flac", "/c/A.wav", "/c/\u00e9.wav", "/c/e\u0301.wav", "/c/b/../a.wav"]
    planned = list(plan(paths, "/c", {}, suffix="wav"))
    assert [item.source for item in planned] == paths
    assert [item.name.partition("-")[0] for item in planned] == ["a.wav", "a", "A", "\u00e9.wav", "e\u0301", "a"]
    assert len({corpus._folded(item.name) for item in planned}) == len(paths)
    assert all(item.name.endswith(".wav") for item in planned)
    assert list(plan(paths, "/c", {}, suffix="wav")) == planned  # reproducible


def test_restored_files_keep_their_names_and_are_not_planned_again() -> None:
    done = {"/c/a.wav": Result("/c/a.wav", "a.wav", "restored")}
    (item,) = plan(["/c/a.wav", "/c/A.wav"], "/c", done)
    assert item.source == "/c/A.wav"
    assert item.name != "A.wav"


def test_formats_that_cannot_be_written_are_replaced_by_wav() -> None:
    paths = ["/c/a.mp3", "/c/b.m4a", "/c/take.2"]
    assert [item.name for item in plan(paths, "/c", {})] == ["a.mp3", "b.wav", "take.2.wav"]
    assert [item.name for item in plan(paths, "/c", {}, suffix="flac")] == ["a.flac", "b.flac", "take.2.flac"]


def test_paths_are_relative_to_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.csv").write_text("path\na.wav\n./a.wav\n/abs/b.wav\ns3://b/c.wav\na.wav\n")
    expected = [f"{tmp_path}/a.wav", "/abs/b.wav", "s3://b/c.wav"]
    assert sources("m.csv") == (expected, str(tmp_path))
    fsspec.filesystem("memory").pipe_file("/corpus/m.jsonl", b'{"degraded": "d/a.wav"}\n{"path": "/abs/b.wav"}\n')
    assert sources("memory://corpus/m.jsonl") == (
        ["memory://corpus/d/a.wav", "/abs/b.wav"],
        "memory://corpus",
    )


def test_outputs_and_errors_equal_those_of_restore(manifest: Path, job: CorpusJob, tiny_path: Path) -> None:
    """The same bytes, and the same error messages."""
    assert main(["restore", "in", "-o", "plain", "--model", str(tiny_path), "--device", "cpu", "--json", "r.json"]) == 1
    begin(job)
    results = {item.name: row for item, row in _restored(job, tiny_path, items(manifest))}
    for report in json.loads(Path("r.json").read_text())["files"]:
        name = Path(report["target"]).relative_to("plain").as_posix()
        row = results.pop(name)
        assert (row.status, row.seconds, row.sample_rate) == (
            report["status"],
            report["seconds"],
            report["sample_rate"],
        )
        assert row.warnings == "; ".join(report["warnings"])
        if row.status == "failed":
            assert row.error == report["error"].replace("in/", f"{manifest.parent}/")
        else:
            assert Path("out", name).read_bytes() == Path("plain", name).read_bytes()
            assert row.realtime_factor > 0
            assert row.model == job.model
    (missing,) = results.values()
    assert missing.error == f"{manifest.parent}/missing.wav: no such file"


def _restored(job: CorpusJob, weights: Path, inputs: list[Item]) -> list[tuple[Item, Result]]:
    return list(zip(inputs, Worker(job, ModelWeights.read(str(weights)))(inputs), strict=True))


def test_a_corpus_in_remote_storage_is_restored_like_a_local_one(
    manifest: Path, job: CorpusJob, tiny_path: Path
) -> None:
    begin(job)
    local_results = _restored(job, tiny_path, items(manifest))
    memory, root = fsspec.filesystem("memory"), f"memory:/{manifest.parent}"
    memory.put(str(manifest.parent), str(manifest.parent), recursive=True)
    remote_job = replace(job, dest=f"{root}-out")
    begin(remote_job)
    remote_items = list(plan(*sources(f"{root}/m.csv"), {}))
    for (item, remote), (_, local) in zip(_restored(remote_job, tiny_path, remote_items), local_results, strict=True):
        assert (remote.output, remote.status) == (local.output, local.status)
        assert remote.error == local.error.replace(str(manifest.parent), root)
        if remote.status == "restored":
            assert memory.cat_file(f"{manifest.parent}-out/{item.name}") == Path("out", item.name).read_bytes()
    assert Table(Store(remote_job.dest)).read().keys() == {item.source for item in remote_items}


def test_a_later_run_restores_only_the_remaining_files(manifest: Path, job: CorpusJob, tiny_path: Path) -> None:
    assert begin(job) == {}
    inputs = items(manifest)
    _restored(job, tiny_path, inputs[:2])
    _restored(job, tiny_path, inputs[3:])  # both failed
    done = begin(job)
    assert done.keys() == {item.source for item in inputs[:2]}
    assert [item.name for item in items(manifest, done=done)] == ["silent.wav", "text.wav", "missing.wav"]
    sound_files.write("in/missing.wav", np.full(100, 0.1), 16000)
    _restored(job, tiny_path, items(manifest, done=done))
    assert begin(job).keys() == {item.source for item in inputs} - {f"{manifest.parent}/text.wav"}
    assert begin(job, overwrite=True) == {}
    assert Table(Store("out")).read() == {}


def test_a_file_that_is_restored_twice_has_one_row(manifest: Path, job: CorpusJob, tiny_path: Path) -> None:
    """A process that dies before its row is written leaves an output, which is then restored again."""
    begin(job)
    inputs = items(manifest)[:2]
    _restored(job, tiny_path, inputs)
    before = {item.name: Path("out", item.name).read_bytes() for item in inputs}
    _restored(job, tiny_path, inputs)  # the same batch
    _restored(job, tiny_path, inputs[:1])  # another batch
    assert len(list(Path("out", PARTS).iterdir())) == 2
    assert Table(Store("out")).fold().keys() == {item.source for item in inputs}
    assert len(decode(Path("out", TABLE).read_bytes(), TABLE)) == 2
    assert list(Path("out", PARTS).iterdir()) == []
    assert {item.name: Path("out", item.name).read_bytes() for item in inputs} == before


def test_the_table_prefers_restored_rows_and_then_the_latest() -> None:
    first, second = result("a", "failed", error="1", finished=1.0), result("a", "failed", error="2", finished=2.0)
    restored = result("a", finished=0.5)
    assert distinct([first, second, result("b")]) == {"a": second, "b": result("b")}
    assert distinct([second, first])["a"] == second
    assert distinct([restored, second])["a"] == distinct([second, restored])["a"] == restored


def test_an_interruption_while_the_table_is_merged_loses_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    table = Table(store)
    table.add([result("a")])
    table.fold()
    table.add([result("b")])
    monkeypatch.setattr(Store, "remove", lambda self, names: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        table.fold()
    monkeypatch.undo()
    assert len(store.names(PARTS)) == 1
    assert table.fold() == {"a": result("a"), "b": result("b")}
    assert store.names(PARTS) == []


def test_a_damaged_table_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / TABLE).write_bytes(b"no parquet")
    with pytest.raises(DataError, match=rf"{tmp_path}/{TABLE}: not a table of results, or damaged"):
        Table(Store(str(tmp_path))).read()


def test_a_folder_with_other_files_is_refused_and_unchanged(manifest: Path, job: CorpusJob) -> None:
    before = sorted(Path("in").iterdir())
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"in: contains good.wav and no corpus.json"):
            begin(replace(job, dest="in"), overwrite=overwrite)
    assert sorted(Path("in").iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "out: model is 'other', was '"),
        ({"suffix": "flac"}, "out: format is 'flac', was ''"),
        ({"options": Options(level="model")}, "out: level is 'model', was 'input'"),
        ({"options": Options(if_full_band="copy")}, "out: if_full_band is 'copy', was 'restore'"),
    ],
)
def test_a_corpus_continues_only_with_the_same_settings(
    manifest: Path, job: CorpusJob, change: dict[str, Any], message: str
) -> None:
    begin(job)
    begin(replace(job, options=Options(seconds=5.0, batch=4)))  # these settings do not change the outputs
    with pytest.raises(ConfigError, match=message):
        begin(replace(job, **change))
    begin(replace(job, **change), overwrite=True)
    assert begin(replace(job, **change)) == {}


def test_sources_inside_the_output_folder_are_refused(manifest: Path, job: CorpusJob) -> None:
    begin(job)
    inputs = [Item(f"{manifest.parent.parent}/out/x.wav", "x.wav"), Item(str(manifest.parent / "good.wav"), "good.wav")]
    inputs.append(Item("nowhere://b/x.wav", "b/x.wav"))
    errors = {source: result.error for source, result in refused(inputs, job).items()}
    assert errors == {
        inputs[0].source: f"{inputs[0].source}: lies in out, which is written to",
        inputs[2].source: "nowhere://b/x.wav: Protocol not known: nowhere",
    }


def test_the_digest_of_weights_depends_only_on_their_content(tiny_path: Path, tmp_path: Path) -> None:
    weights = ModelWeights.read(str(tiny_path))
    ((name, content),) = weights.files
    (tmp_path / "other.safetensors").write_bytes(content)
    assert ModelWeights.read(str(tmp_path / "other.safetensors")).digest == weights.digest
    two = ModelWeights((("a", b"1"), ("b", b"2")))
    assert two.digest == ModelWeights(two.files[::-1]).digest != weights.digest
    assert name == "tiny.safetensors"
    with pytest.raises(CheckpointError, match="none: no such file"):
        ModelWeights.read("none")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": -1}, "workers is -1"),
        ({"threads": 0}, "threads is 0"),
        ({"device": "tpu"}, "device is 'tpu'"),
    ],
)
def test_invalid_cluster_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClusterConfig(**values)


@pytest.mark.parametrize(
    ("config", "resources", "message"),
    [
        (ClusterConfig(device="cuda"), {"CPU": 8.0}, "device is 'cuda', but the cluster has no GPU"),
        (ClusterConfig(threads=16), {"CPU": 8.0}, "threads is 16, but the cluster has 8 cores"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused(
    config: ClusterConfig, resources: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ray_cluster._resources(config, resources)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.csv"], "none.csv: no such file"),
        (["in/m.csv", "--batch", "0"], "batch is 0, must be at least 1"),
        (["in/m.csv", "--workers", "-1"], "workers is -1, must be 0 or more"),
        (["in/m.csv", "-o", "in"], "in: contains good.wav and no corpus.json"),
        (["in/m.csv", "-o", "nowhere://b/out"], "nowhere://b/out: Protocol not known: nowhere"),
        (["in/m.csv", "--model", "none"], "none: no such file, folder or shipped model"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(
    manifest: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    model = [] if "--model" in arguments else ["--model", str(tiny_path)]
    assert main(["restore-corpus", "-o", "out", *arguments, *model]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"twostage: error: {message}")
    assert len(err.splitlines()) == 1
    assert not Path("out").exists()


def test_a_table_with_pickled_objects_is_refused_and_their_code_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once Ray is imported, reading a column of its type for Python objects would unpickle them."""
    monkeypatch.chdir(tmp_path)
    table = to_arrow([result("a")])
    objects = pyarrow.array([pickle.dumps(TouchesFile())], pyarrow.large_binary())
    metadata = {"ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": b""}
    table = table.set_column(0, pyarrow.field("path", objects.type, metadata=metadata), objects)
    pyarrow.parquet.write_table(table, TABLE)
    importlib.import_module("ray.data.extensions")  # registers the type
    with pytest.raises(DataError, match=rf"{TABLE}: not a table of results, or damaged \(it has columns that are"):
        Table(Store(str(tmp_path))).read()
    assert not Path("marker").exists()
