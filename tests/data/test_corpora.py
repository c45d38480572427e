"""Tests of importing published corpora from Parquet shards into sound files and manifests."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from trainings import data_overrides

from twostage import cli
from twostage.audio import sound_files
from twostage.data import corpora
from twostage.data.corpora import import_config, import_corpus
from twostage.data.manifest import read_manifest
from twostage.models import checkpoint
from twostage.models.restorer import Restorer
from twostage.training import recipes
from twostage.training.config import RestorerRun, load_config
from twostage.utils.errors import ConfigError, DataError

VIBRAVOX = ("headset_microphone", *(name.removeprefix("audio.") for name in corpora.CORPORA["vibravox"].sensors))
TAPS = ("acoustic_microphone", "throat_microphone")
Speech = Callable[..., np.ndarray]
SOUND = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def encoded(audio: np.ndarray, rate: int, kind: str = "WAV") -> dict[str, Any]:
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format=kind)
    return {"bytes": file.getvalue(), "path": "x.wav"}


def write_shard(path: Path, columns: dict[str, list[Any]]) -> None:
    """Write columns to a shard of two row groups, in which the names of audio columns start with "audio."."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"audio.{name}" if name.endswith(("microphone", "accelerometer", "pickup")) else name: (
            pyarrow.array(cells, SOUND) if isinstance(cells[0], dict) else pyarrow.array(cells)
        )
        for name, cells in columns.items()
    }
    pyarrow.parquet.write_table(pyarrow.table(arrays), path, row_group_size=2)


@pytest.fixture
def vibravox(tmp_path: Path, speech: Speech) -> Path:
    """Three splits of three rows of two speakers at 48 kHz, in the default subset and in another one."""
    for index, split in enumerate(("train", "validation", "test")):
        rows = range(3)
        sounds = {
            name: [encoded(speech(24000, 48000, seed=10 * index + row) / (1 + number), 48000) for row in rows]
            for number, name in enumerate(VIBRAVOX)
        }
        texts = {"gender": ["female"] * 3, "speaker_id": [f"{split}{row % 2}" for row in rows]}
        texts |= {"sentence_id": list(rows), "duration": [0.5] * 3, "raw_text": [f"phrase {row}" for row in rows]}
        for subset in ("speech_clean", "speech_noisy"):
            write_shard(tmp_path / "hub" / subset / f"{split}-00000-of-00001.parquet", sounds | texts)
    return tmp_path / "hub"


def test_the_command_imports_vibravox(vibravox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["manifest", "import", str(vibravox), "--corpus", "vibravox", "-o", str(tmp_path / "out")]
    assert cli.main([*arguments, "--report", str(tmp_path / "r.json")]) == 0
    printed = capsys.readouterr().out
    assert "passed over: 3 files of other subsets than speech_clean" in printed
    assert "train.jsonl: 3 pairs of 2 speakers" in printed
    entries = read_manifest(tmp_path / "out" / "train.jsonl")
    assert [(entry.speaker, entry.text, entry.corpus) for entry in entries] == [
        ("train0", "phrase 0", "vibravox"),
        ("train1", "phrase 1", "vibravox"),
        ("train0", "phrase 2", "vibravox"),
    ]
    assert [entry.seconds for entry in entries] == [0.5] * 3
    bone, air = (sound_files.read(str(path)) for path in (entries[1].degraded, entries[1].clean))
    assert bone[1] == air[1] == 16000
    np.testing.assert_allclose(bone[0], air[0] / 2, atol=1e-4)  # the throat microphone of the same row
    assert sorted(json.loads((tmp_path / "r.json").read_text())["splits"]) == ["test", "train", "valid"]
    speakers = [{e.speaker for e in read_manifest(tmp_path / "out" / f"{s}.jsonl")} for s in ("train", "valid", "test")]
    assert not set.intersection(*speakers)


def test_every_sensor_becomes_a_pair(vibravox: Path, tmp_path: Path) -> None:
    config = import_config("vibravox", sensors=["all"], sample_rate=0)
    result = import_corpus([str(vibravox / "speech_clean" / "test-00000-of-00001.parquet")], tmp_path / "out", config)
    (entries,) = result.manifests.values()
    assert len(entries) == 15
    assert {entry.corpus for entry in entries} == {f"vibravox-{name}" for name in VIBRAVOX[1:]}
    assert len({entry.clean for entry in entries}) == 3
    assert sound_files.info(str(entries[0].degraded)).sample_rate == 48000


def test_taps_is_imported_with_its_dev_split_and_nested_cells(tmp_path: Path, speech: Speech) -> None:
    air = speech(16000)
    cells = {name: [encoded(air / (1 + number), 16000, "FLAC")] for number, name in enumerate(TAPS)}
    write_shard(tmp_path / "in/data/dev-00000-of-00001.parquet", {**cells, "speaker_id": [7], "text": ["말"]})
    nested = {name: {"array": (air / (1 + number)).tolist(), "sampling_rate": 8000} for number, name in enumerate(TAPS)}
    table = pyarrow.Table.from_pylist([{"audio": nested, "speaker_id": "p9"}])
    (tmp_path / "in/train").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "in/train/0000.parquet")
    result = import_corpus([str(tmp_path / "in")], tmp_path / "out", import_config("taps"))
    ((valid,), (train,)) = result.manifests["valid"], result.manifests["train"]
    assert (valid.speaker, valid.text, valid.seconds) == ("7", "말", 1.0)
    assert (train.speaker, train.text, train.seconds) == ("p9", "", 2.0)
    np.testing.assert_allclose(sound_files.read(str(valid.clean))[0][0], air, atol=1e-4)


def test_another_corpus_is_imported_by_its_column_names(tmp_path: Path, speech: Speech) -> None:
    cells = [encoded(speech(8000), 16000)]
    write_shard(tmp_path / "mine.parquet", {"air_microphone": cells, "bone_microphone": cells, "speaker": ["a"]})
    config = import_config("mine", air="audio.air_microphone", sensors=["audio.bone_microphone"])
    assert list(import_corpus([str(tmp_path / "mine.parquet")], tmp_path / "out", config).manifests) == ["all"]


def test_unreadable_rows_are_reported_and_the_others_imported(
    tmp_path: Path, speech: Speech, capsys: pytest.CaptureFixture[str]
) -> None:
    audio, empty = encoded(speech(8000), 16000), {"bytes": None, "path": "lost.wav"}
    noise = {"bytes": b"no sound at all", "path": "n.wav"}
    sounds = {TAPS[0]: [audio, audio, audio, audio], TAPS[1]: [audio, empty, noise, None]}
    write_shard(tmp_path / "test-0.parquet", {**sounds, "speaker_id": ["a"] * 4})
    arguments = [
        "manifest",
        "import",
        str(tmp_path / "test-0.parquet"),
        "--corpus",
        "taps",
        "-o",
        str(tmp_path / "out"),
    ]
    assert cli.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "row 1: audio.throat_microphone: holds no sound, only the name 'lost.wav'" in printed
    assert "row 2: audio.throat_microphone: not a sound file" in printed
    assert "row 3: audio.throat_microphone: holds no sound" in printed
    assert len(read_manifest(tmp_path / "out" / "test.jsonl")) == 1


def test_an_interrupted_import_continues_where_it_stopped(
    vibravox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = import_config("vibravox"), tmp_path / "out"
    written: list[str] = []
    write = sound_files.write

    def interrupted_write(path: Path, *args: Any, **kwargs: Any) -> None:
        if len(written) == 9:  # in the second shard
            raise KeyboardInterrupt
        write(path, *args, **kwargs)
        written.append(str(path))

    monkeypatch.setattr(sound_files, "write", interrupted_write)
    with pytest.raises(KeyboardInterrupt):
        import_corpus([str(vibravox)], out, config)
    assert not list(out.glob("*.jsonl"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.flac")}
    monkeypatch.setattr(sound_files, "write", write)
    result = import_corpus([str(vibravox)], out, config)
    assert {split: len(entries) for split, entries in result.manifests.items()} == {"train": 3, "valid": 3, "test": 3}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(out.rglob("*.flac"))) == 18
    manifests = [(out / f"{split}.jsonl").read_bytes() for split in ("train", "valid", "test")]
    import_corpus([str(vibravox)], out, config)
    assert [(out / f"{split}.jsonl").read_bytes() for split in ("train", "valid", "test")] == manifests


def test_rows_are_read_with_the_requested_columns_only(vibravox: Path) -> None:
    rows = corpora.ParquetRows(vibravox / "speech_clean" / "train-00000-of-00001.parquet")
    columns = ["audio.throat_microphone", "speaker_id"]
    assert [set(row) for row in rows.read(columns)] == [set(columns)] * 3
    assert rows.length == 3


def test_invalid_imports_are_refused(vibravox: Path, tmp_path: Path) -> None:
    out, taps = tmp_path / "out", import_config("taps")
    with pytest.raises(ConfigError, match="vibravox has no sensor 'chin'; there are throat_microphone, forehead"):
        import_config("vibravox", sensors=["chin"])
    with pytest.raises(ConfigError, match="no subset 'loud'"):
        import_config("vibravox", subset="loud")
    with pytest.raises(ConfigError, match="corpus 'abc' is not one of vibravox, taps"):
        import_config("abc")
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet: no column audio\.acoustic_microphone"):
        import_corpus([str(vibravox / "speech_clean/train-00000-of-00001.parquet")], out, taps)
    with pytest.raises(ConfigError, match=r"holds another import \(corpus: taps there, vibravox here"):
        import_corpus([str(vibravox)], out, import_config("vibravox"))
    with pytest.raises(DataError, match="nowhere: no such file"):
        import_corpus([str(tmp_path / "nowhere")], tmp_path / "new", taps)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 is all that it has")
    with pytest.raises(DataError, match=r"bad\.parquet: not a Parquet file"):
        import_corpus([str(tmp_path / "bad.parquet")], tmp_path / "other", taps)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("speech_clean/train-00000-of-00201.parquet", "train"),
        ("speech_clean/validation/0000.parquet", "valid"),
        ("data/dev-00000-of-00002.parquet", "valid"),
        ("train/test-1.parquet", "test"),
        ("vibravox_test.parquet", "test"),
        ("latest/contest.parquet", "all"),
        ("test-run/mine.parquet", "all"),
    ],
)
def test_the_split_is_taken_from_the_file_name(path: str, split: str) -> None:
    assert corpora._split(Path("/x") / path) == split


@pytest.mark.parametrize("name", ["vibravox", "taps"])
def test_the_shipped_settings_of_a_corpus_train(name: str, paired_corpus: Path, corpus: Path, tmp_path: Path) -> None:
    tiny = load_config(RestorerRun, ["restorer", "tiny"], data_overrides(corpus))
    checkpoint.save(tmp_path / "r.safetensors", Restorer(tiny.restorer), provenance={})
    data = data_overrides(paired_corpus, tmp_path / "run")
    small_training = [
        "steps=2",
        "save_every=1",
        "log_every=1",
        "valid.every=2",
        "data.segment_length=2048",
        "threads=1",
        "valid.metrics=[mel_l1]",
    ]
    small_training += [
        "data.batch_size=10",
        "valid.best=mel_l1",
        f"init_from={tmp_path / 'r.safetensors'}",
        "valid.vocoder=''",
    ]
    with pytest.raises(ConfigError, match=rf"data\.train: corpora/{name}/train\.jsonl: no such file"):
        load_config(RestorerRun, ["restorer", name], data[2:])
    shipped = load_config(RestorerRun, ["restorer", name], data)
    assert (shipped.init_from, shipped.data.real_fraction, shipped.valid.best) == ("base", 0.9, "estoi")
    recipes.train_restorer(load_config(RestorerRun, ["restorer", name, "tiny"], [*data, *small_training]))
    assert checkpoint.read_header(tmp_path / "run" / "last.safetensors").provenance["steps"] == 2


def test_one_command_imports_trains_and_evaluates_and_continues(
    vibravox: Path,
    tiny_path: Path,
    tmp_path: Path,
    load_script: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint.save(tmp_path / "vocoder.safetensors", checkpoint.load_stage(tiny_path, "vocoder"), provenance={})
    settings = [
        "steps=2",
        "save_every=1",
        "valid.every=2",
        "valid.vocoder=''",
        "init_from=''",
        "restorer.mel.n_mels=80",
    ]
    arguments = ["vibravox", str(vibravox), "-o", str(tmp_path / "out"), "--overlay", "tiny", *settings]
    arguments += ["--vocoder", str(tmp_path / "vocoder.safetensors"), "--evaluate", "--metrics lsd --pictures 0"]
    monkeypatch.setattr("sys.argv", ["run_corpus.py", *arguments])
    script = load_script("run_corpus")
    script.main()
    shutil.rmtree(vibravox)  # imported already
    script.main()
    assert "twostage train-restorer" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "scores" / "summary.json").read_text())
    assert summary["systems"]["vibravox"]["lsd"]["n"] == 3


def test_every_known_corpus_has_settings() -> None:
    folder = Path(__file__).parents[2] / "configs" / "corpora"
    assert {path.stem for path in folder.glob("*.yaml")} == set(corpora.CORPORA)
