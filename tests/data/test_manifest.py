"""Tests of manifests: reading, writing, errors, scanning folders, and splits by speaker."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from twostage.audio import sound_files
from twostage.data.manifest import Entry, pair, read_manifest, read_paths, scan, split_by_speaker, write_manifest
from twostage.utils.errors import DataError, OutputError, TwoStageError

MakeFiles = Callable[..., None]


@pytest.fixture
def make_files(tmp_path: Path) -> MakeFiles:
    """make_files("a/b.wav", ...) writes files of half a second below tmp_path."""

    def write_files(*names: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            sound_files.write(tmp_path / name, np.full(4000, 0.1, np.float32), 8000)

    return write_files


def test_paths_in_a_csv_are_relative_to_its_folder(tmp_path: Path, make_files: MakeFiles) -> None:
    make_files("corpus/a.wav")
    (tmp_path / "corpus" / "list.csv").write_text("path,corpus,speaker,seconds\na.wav,vctk,p1,0.25\n")
    assert read_manifest(tmp_path / "corpus" / "list.csv") == [
        Entry(str(tmp_path / "corpus" / "a.wav"), None, "p1", 0.25, "vctk")
    ]


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl"])
def test_a_byte_order_mark_is_ignored(tmp_path: Path, make_files: MakeFiles, name: str) -> None:
    make_files("b.wav", "a.wav")
    write_manifest(tmp_path / name, [Entry(str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "p1", 0.5)])
    text = (tmp_path / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    (entry,) = read_manifest(tmp_path / name)
    assert (entry.clean, entry.degraded) == (str(tmp_path / "a.wav"), str(tmp_path / "b.wav"))


def test_a_manifest_in_a_linked_folder_names_files_that_exist(tmp_path: Path, make_files: MakeFiles) -> None:
    make_files("here/a.wav", "data/deep/b.wav")
    (tmp_path / "here" / "out").symlink_to(tmp_path / "data" / "deep")
    paths = [tmp_path / "here" / "a.wav", tmp_path / "here" / "out" / "b.wav"]
    write_manifest(tmp_path / "here" / "out" / "m.jsonl", [Entry(str(path), None, "p1", 0.5) for path in paths])
    entries = read_manifest(tmp_path / "here" / "out" / "m.jsonl")
    assert all(Path(entry.clean or "").samefile(path) for entry, path in zip(entries, paths, strict=True))


def test_missing_durations_are_read_from_the_files(tmp_path: Path, make_files: MakeFiles) -> None:
    make_files("b.wav", "a.wav")
    (tmp_path / "pairs.csv").write_text("bone,air,speaker,sensor\nb.wav,a.wav,p1,throat\n")
    (entry,) = read_manifest(tmp_path / "pairs.csv")
    assert entry.paired
    assert (entry.clean, entry.degraded) == (str(tmp_path / "a.wav"), str(tmp_path / "b.wav"))
    assert (entry.seconds, entry.corpus, entry.speaker) == (0.5, "throat", "p1")


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv", "m.CSV"])
def test_a_manifest_is_read_back_even_after_its_folder_moved(tmp_path: Path, name: str) -> None:
    x, y, text = str(tmp_path / "old/x.wav"), str(tmp_path / "old/y.wav"), 'said, "twice"\nin\u2028two lines'
    entries = [
        Entry(x, y, "ä", 1.5, "c", -0.002, -51.5, True, text),
        Entry(x, None, "p", 2.0),
        Entry(None, y, "p", 2.0),
    ]
    (tmp_path / "old").mkdir()
    write_manifest(tmp_path / "old" / name, entries)
    assert read_manifest(tmp_path / "old" / name) == entries
    (tmp_path / "old").rename(tmp_path / "new")
    moved = read_manifest(tmp_path / "new" / name)[0]
    assert moved.clean == str(tmp_path / "new" / "x.wav")


def test_a_manifest_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    entries = [Entry("x.wav", None, "a", 1.0)]
    write_manifest(tmp_path / "m.jsonl", entries)
    with pytest.raises(OutputError, match="exists already"):
        write_manifest(tmp_path / "m.jsonl", entries)
    write_manifest(tmp_path / "m.jsonl", entries * 2, overwrite=True)
    assert len(read_manifest(tmp_path / "m.jsonl")) == 2


def test_speakers_are_excluded_and_an_unknown_one_is_an_error(tmp_path: Path) -> None:
    write_manifest(tmp_path / "1.jsonl", [Entry("a.wav", None, "p1", 1.0), Entry("b.wav", None, "p2", 1.0)])
    write_manifest(tmp_path / "2.jsonl", [Entry("c.wav", None, "p3", 1.0)])
    both = (tmp_path / "1.jsonl", tmp_path / "2.jsonl")
    assert [e.speaker for e in read_manifest(*both, exclude_speakers=["p2"])] == ["p1", "p3"]
    with pytest.raises(DataError, match="no speaker p02 to exclude"):
        read_manifest(*both, exclude_speakers=["p02"])
    with pytest.raises(DataError, match="left after exclude_speakers"):
        read_manifest(*both, exclude_speakers=["p1", "p2", "p3"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.jsonl", "{", "m.jsonl:1: not JSON"),
        ("m.jsonl", "[1]", "m.jsonl:1"),
        ("m.jsonl", json.dumps({"clean": "a.wav", "speaker": "p", "seconds": 1.0, "speeker": "q"}), "speeker"),
        ("m.jsonl", json.dumps({"clean": "a.wav", "speaker": 3, "seconds": 1.0}), "speaker is 3"),
        ("m.jsonl", json.dumps({"clean": "a.wav", "seconds": 1.0}), "speaker: missing"),
        ("m.jsonl", json.dumps({"clean": "a.wav", "speaker": "p", "seconds": -1.0}), "seconds is -1.0"),
        ("m.jsonl", '{"clean": "a.wav", "speaker": "p", "seconds": NaN}', "seconds is nan"),
        ("m.jsonl", json.dumps({"speaker": "p", "seconds": 1.0}), "neither clean nor degraded"),
        ("m.jsonl", "", "no entries"),
        ("m.jsonl", "[" * 100_000, "m.jsonl:1: not JSON: nested too deeply"),
        ("m.jsonl", '{"seconds": 1' + "0" * 5000 + "}", "m.jsonl:1: not JSON: Exceeds the limit"),
        (
            "m.csv",
            "path,speaker,seconds\nx.wav,p,1\n" + "y" * 200_000,
            "m.csv:2: not CSV: field larger than field limit",
        ),
        ("m.csv", 'path,speaker\n"a\0b.wav",p\n', "cannot be read"),
        ("m.csv", "file,speaker\nx.wav,p\n", "m.csv:2: needs a column path"),
        ("m.csv", "path,speaker,seconds\nx.wav,p,long\n", "m.csv:2"),
        ("m.csv", "path,speaker\nx.wav,p\n", "x.wav: no such file"),
    ],
)
def test_an_invalid_manifest_is_an_error_of_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(TwoStageError, match=message) as error:
        read_manifest(tmp_path / name)
    assert "\n" not in str(error.value)


def test_missing_and_binary_manifests_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_manifest(tmp_path / "none.csv")
    (tmp_path / "m.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match="not a text file"):
        read_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["bone/p1/x.wav", "air/p1/x.flac", "bone/p2/x.wav", "air/p2/x.wav"], [("p1", True), ("p2", True)]),
        (["p1/bone/x.wav", "p1/air/x.wav"], [("p1", True)]),
        (["p1/x_bone.wav", "p1/x_air.wav", "p2/y_air.wav", "p2/y_bone.wav"], [("p1", True), ("p2", True)]),
        (["p1/x.wav", "p2/y.wav", "p2/z.wav"], [("p1", False), ("p2", False), ("p2", False)]),
    ],
)
def test_scan_recognizes_the_folder_layout(
    tmp_path: Path, make_files: MakeFiles, files: list[str], expected: list[tuple[str, bool]]
) -> None:
    make_files(*(f"root/{file}" for file in files))
    problems: list[str] = []
    entries = scan(tmp_path / "root", problems=problems)
    assert [(entry.speaker, entry.paired) for entry in entries] == expected
    assert all(entry.seconds == 0.5 for entry in entries)
    assert not problems
    for entry in entries:
        assert entry.clean
        assert "bone" not in Path(entry.clean).relative_to(tmp_path).as_posix()


def test_scan_reports_files_that_it_leaves_out(tmp_path: Path, make_files: MakeFiles) -> None:
    make_files("x_bone.wav", "x_air.wav", "lone_bone.wav", "bad_bone.wav")
    (tmp_path / "bad_air.wav").write_bytes(b"no sound")
    problems: list[str] = []
    (entry,) = scan(tmp_path, problems=problems)
    assert Path(entry.name).name == "x_bone.wav"
    assert sorted(Path(p.split(":")[0]).name for p in problems) == ["bad_air.wav", "lone_bone.wav"]


def test_scan_takes_the_speaker_from_a_pattern(tmp_path: Path, make_files: MakeFiles) -> None:
    make_files("s_p07_1.wav", "s_p08_1.wav")
    assert [e.speaker for e in scan(tmp_path, speaker=r"p\d+")] == ["p07", "p08"]
    assert [e.speaker for e in scan(tmp_path, speaker=r"p(\d+)")] == ["07", "08"]
    with pytest.raises(DataError, match="does not match"):
        scan(tmp_path, speaker=r"q\d+")
    with pytest.raises(DataError, match="speaker pattern"):
        scan(tmp_path, speaker="(")


def test_scan_refuses_an_empty_or_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(TwoStageError, match="no sound files"):
        scan(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        scan(tmp_path / "none")


def test_two_folders_are_paired_by_name(tmp_path: Path, make_files: MakeFiles) -> None:
    make_files("throat/p1/a.wav", "mic/p1/a.flac", "mic/p1/b.wav")
    problems: list[str] = []
    (entry,) = pair(tmp_path / "throat", tmp_path / "mic", corpus="c", problems=problems)
    assert entry == Entry(str(tmp_path / "mic/p1/a.flac"), str(tmp_path / "throat/p1/a.wav"), "p1", 0.5, "c")
    assert problems == [f"{tmp_path / 'mic/p1/b.wav'}: no partner"]


def test_a_split_separates_speakers_and_meets_the_fraction() -> None:
    entries = [Entry(f"{s}{i}.wav", None, f"s{s}", 1.0 + s % 3) for s in range(40) for i in range(5)]
    train, held_out = split_by_speaker(entries, 0.2, seed=3)
    assert {e.speaker for e in train}.isdisjoint({e.speaker for e in held_out})
    assert len(train) + len(held_out) == len(entries)
    fraction = sum(e.seconds for e in held_out) / sum(e.seconds for e in entries)
    assert fraction == pytest.approx(0.2, abs=0.03)
    assert split_by_speaker(list(reversed(entries)), 0.2, seed=3)[1][::-1] == held_out
    assert split_by_speaker(entries, 0.2, seed=4)[1] != held_out


@pytest.mark.parametrize(
    ("fraction", "speakers", "message"), [(0.0, 3, "fraction"), (1.0, 3, "fraction"), (0.1, 1, "two")]
)
def test_impossible_splits_are_refused(fraction: float, speakers: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_by_speaker([Entry("x", None, str(s), 1.0) for s in range(speakers)], fraction)


def test_a_split_of_two_speakers_leaves_one_on_each_side() -> None:
    train, held_out = split_by_speaker([Entry("x", None, "a", 1.0), Entry("y", None, "b", 9.0)], 0.5)
    assert len(train) == len(held_out) == 1


def test_paths_are_read_from_manifests_without_other_columns() -> None:
    table = "bone,air,speaker\nb/1.wav,a/1.wav,x\n,a/2.wav,x\n"
    assert read_paths(table, "m.CSV") == ["b/1.wav", "a/2.wav"]
    lines = '{"path": "s3://b/1.wav"}\n\n{"clean": "c.wav", "degraded": "d.wav", "speaker": "x", "seconds": 1.0}\n'
    assert read_paths(lines, "m.jsonl") == ["s3://b/1.wav", "d.wav"]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("path\n", "m.csv", "m.csv: no entries"),
        ("name\nx.wav\n", "m.csv", "m.csv:2: needs a column path"),
        ('{"path": 3}', "m.jsonl", "m.jsonl:1: path is 3, must be text"),
        ('\n["x.wav"]', "m.jsonl", "m.jsonl:2: not a JSON object"),
        ("x.wav", "m.jsonl", "m.jsonl:1: not JSON"),
    ],
)
def test_missing_or_invalid_paths_are_errors_that_name_the_line(text: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_paths(text, name)


def test_names_that_are_not_utf_8_are_read_back(tmp_path: Path) -> None:
    entry = Entry(str(tmp_path / os.fsdecode(b"\xff\xfe.wav")), None, os.fsdecode(b"\xff"), 1.0)
    write_manifest(tmp_path / "m.jsonl", [entry])
    assert read_manifest(tmp_path / "m.jsonl") == [entry]
    assert read_paths((tmp_path / "m.jsonl").read_text(), "m.jsonl") == [os.fsdecode(b"\xff\xfe.wav")]
    with pytest.raises(DataError, match=r"m.csv: contains a name that is not UTF-8"):
        write_manifest(tmp_path / "m.csv", [entry])
    assert not (tmp_path / "m.csv").exists()


def test_a_csv_may_contain_drift_polarity_and_text(tmp_path: Path) -> None:
    head = "bone,air,speaker,seconds,delay,drift,inverted,text\n"
    (tmp_path / "p.csv").write_text(f"{head}b.wav,a.wav,p,1.0,3.5,50,yes,hello\nb.wav,a.wav,p,1.0,,,,\n")
    first, second = read_manifest(tmp_path / "p.csv")
    assert (first.delay, first.drift, first.inverted, first.text) == (3.5, 50.0, True, "hello")
    assert (second.delay, second.drift, second.inverted, second.text) == (0.0, 0.0, False, "")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("inverted", "maybe", "inverted is 'maybe'"),
        ("drift", "20000", "drift is 20000.0 ppm"),
        ("drift", "nan", "drift"),
    ],
)
def test_a_csv_with_an_invalid_alignment_is_refused(tmp_path: Path, field: str, value: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(f"bone,air,speaker,seconds,{field}\nb.wav,a.wav,p,1.0,{value}\n")
    with pytest.raises(DataError, match=rf"p\.csv:2: {message}"):
        read_manifest(tmp_path / "p.csv")


def test_an_unreadable_file_does_not_replace_a_readable_one_of_the_same_name(tmp_path: Path) -> None:
    for side in ("bone", "air"):
        (tmp_path / side).mkdir()
        sound_files.write(tmp_path / side / "a.wav", np.full(4000, 0.1, np.float32), 8000)
        (tmp_path / side / "a.aac").write_bytes(b"no sound" * 50)
        (tmp_path / side / "a.webm").write_bytes(b"no sound" * 50)
        (tmp_path / side / "readme.txt").touch()
    for find_pairs in (
        lambda problems: scan(tmp_path, problems=problems),
        lambda problems: pair(tmp_path / "bone", tmp_path / "air", problems=problems),
    ):
        problems: list[str] = []
        (entry,) = find_pairs(problems)
        assert (Path(entry.degraded or "").name, Path(entry.clean or "").name) == ("a.wav", "a.wav")
        assert entry.seconds == 0.5
        assert sum("readme.txt" in problem for problem in problems) >= 1


def test_the_seconds_in_a_manifest_are_those_that_decode(tmp_path: Path) -> None:
    for name in ("1.flac", "2.flac"):
        sound_files.write(tmp_path / name, np.full(4000, 0.1, np.float32), 8000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "joined.flac").write_bytes(b"".join((tmp_path / f"{n}.flac").read_bytes() for n in (1, 2)))
    assert [entry.seconds for entry in scan(tmp_path / "in")] == [1.0]
