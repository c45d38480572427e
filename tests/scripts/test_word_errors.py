"""Tests of scripts/word_errors.py: counted errors, tables, and a recognizer without memory of earlier audio."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from twostage.audio import sound_files
from twostage.utils.errors import DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("word_errors")


@pytest.mark.parametrize(
    ("reference", "recognized", "errors"),
    [
        ("she turned in at the hotel", "she turned in at the hotel", 0),
        ("she turned in at the hotel", "she turned at a hotel", 2),
        ("she turned in", "", 3),
        ("", "she turned in", 3),
        ("in the book", "in the end the book", 2),
        ("a b c d", "b c d a", 2),
    ],
)
def test_word_errors_are_substitutions_deletions_and_insertions(script, reference, recognized, errors):
    assert script.word_errors(reference.split(), recognized.split()) == errors


def test_without_a_text_the_transcript_of_the_clean_speech_is_the_reference(script):
    transcripts = {0.0: ["one", "two"], 1.0: ["one", "too"], 2.0: []}
    sounds = {"raw input": np.full(4, 2.0), "model": np.full(4, 1.0), "clean": np.zeros(4)}
    without_text = list(script.transcribe(sounds, "a.wav", lambda sound: transcripts[sound[0]]))
    assert [(row.system, row.errors) for row in without_text] == [("raw input", 2), ("model", 1), ("clean", 0)]
    with_text = list(script.transcribe(sounds, "a.wav", lambda sound: transcripts[sound[0]], ["one", "too", "three"]))
    assert [row.errors for row in with_text] == [3, 1, 2]
    table = script.table(without_text + with_text)
    assert "| model | 2 | 5 | 40 [" in table
    assert "| clean | 2 | 5 | 40 [0, 67] |" in table


@pytest.mark.slow  # loads a model and recognizes for some seconds
def test_the_transcript_does_not_depend_on_level_or_earlier_audio(script):
    clean, throat = (sound_files.read(ROOT / "samples" / f"{n}.flac")[0][0, :48000] for n in ("clean", "throat"))
    recognizer = script.Recognizer()
    first = recognizer(clean)
    assert len(first) > 3
    assert recognizer(0.1 * throat) == recognizer(throat) != first
    assert recognizer(clean) == first
    assert recognizer(np.zeros(16000, np.float32)) == []


def test_invalid_texts_are_errors_that_name_the_file(script, tmp_path):
    (tmp_path / "texts.csv").write_text("path,text\na.wav,One two\nb.wav,...\n")
    with pytest.raises(DataError, match=r"texts.csv:3: needs the columns path and text"):
        script.read_texts(str(tmp_path / "texts.csv"))
    with pytest.raises(DataError, match=r"gone.csv: No such file"):
        script.read_texts(str(tmp_path / "gone.csv"))
    (tmp_path / "texts.csv").write_text("path,text\na.wav,One two\n")
    assert script.read_texts(str(tmp_path / "texts.csv")) == {"a.wav": "One two"}


@pytest.mark.slow  # loads a model and recognizes for half a minute
def test_the_script_writes_the_transcripts(tmp_path):
    sound_files.write(tmp_path / "a.flac", sound_files.read(ROOT / "samples" / "clean.flac")[0][0, :48000], 16000)
    (tmp_path / "clean.csv").write_text("path,speaker\na.flac,s\n")
    arguments = ["--clean", tmp_path / "clean.csv", "--simulate", "eben", "-o", tmp_path / "words.csv"]
    command = [sys.executable, ROOT / "scripts" / "word_errors.py", *arguments]
    printed = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, timeout=300).stdout
    with (tmp_path / "words.csv").open(newline="") as file:
        rows = {row["system"]: row for row in csv.DictReader(file)}
    copies = ["default, copy-synthesis", "default, with the sensor, copy-synthesis"]
    assert list(rows) == ["raw input", "default", *copies, "clean"]
    assert (rows["clean"]["errors"], rows["clean"]["recognized"]) == ("0", rows["clean"]["reference"])
    assert int(rows["raw input"]["errors"]) > 0
    assert "| clean | 1 |" in printed
    assert "the transcript of the clean speech" in printed
