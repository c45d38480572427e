"""Measure word error rates of a speech recognizer on raw, restored and clean English speech.

    python scripts/word_errors.py --clean dev.csv --simulate throat --model default --limit 20 -o words.csv
    python scripts/word_errors.py --clean dev.csv --simulate throat --texts texts.csv

The recognizer is PocketSphinx, whose model of US English is inside the package. With --texts, a CSV file with the
columns path (as in the manifest) and text, errors are relative to that text, in which numbers are written as words.
Without it, the reference is the transcript of the clean speech, which then has no errors by definition. A table is
printed.
"""

import argparse
import csv
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from twostage.audio.types import Audio
from twostage.commands.options import models_by_label
from twostage.data.manifest import read_manifest
from twostage.data.sensors import load_sensor
from twostage.evaluation.metrics import SAMPLE_RATE as RATE
from twostage.evaluation.pairs import PairSource, select
from twostage.evaluation.report import CLEAN
from twostage.evaluation.systems import estimates, load_systems
from twostage.utils.errors import ConfigError, DataError, TwoStageError
from twostage.utils.files import replacing

PEAK = 0.9  # peak of the recognizer's input, which has 16 bits


@dataclass(frozen=True)
class Transcript:
    """The transcript of one utterance by one system, with the number of word errors relative to ``reference``."""

    utterance: str
    system: str
    reference: str
    words: str
    errors: int


class Recognizer:
    """Recognizes the words of audio (T,) at 16 kHz, by PocketSphinx with its model, dictionary and trigrams."""

    def __init__(self) -> None:
        try:
            import pocketsphinx
        except ImportError:
            raise TwoStageError("the package pocketsphinx is not installed: pip install 'twostage[eval]'") from None
        self._make = lambda: pocketsphinx.Decoder(samprate=RATE, loglevel="FATAL")

    def __call__(self, audio: Audio) -> list[str]:
        loudest = float(np.abs(audio).max(initial=0.0))
        if not loudest:
            return []  # the decoder would invent a word
        # a decoder adapts to earlier audio; a new one makes the result independent of it
        decoder = self._make()
        samples = np.round(audio * (PEAK * 32767 / loudest))
        decoder.start_utt()
        decoder.process_raw(samples.astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        hypothesis = decoder.hyp()
        return words_of(hypothesis.hypstr) if hypothesis else []


def words_of(text: str) -> list[str]:
    """
    >>> words_of("Don't -- the block-books, 'printed'?")
    ["don't", 'the', 'block', 'books', 'printed']
    """
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower().replace("\u2019", "'"))


def word_errors(reference: Sequence[str], words: Sequence[str]) -> int:
    """The least number of words to substitute, delete and insert to turn one into the other (Levenshtein distance).

    >>> word_errors(["a", "b", "c"], ["b", "x", "d"])
    3
    """
    row = list(range(len(words) + 1))
    for index, expected in enumerate(reference, 1):
        above, row = row, [index]
        for column, word in enumerate(words, 1):
            row.append(min(above[column] + 1, row[-1] + 1, above[column - 1] + (word != expected)))
    return row[-1]


def read_texts(path: str) -> dict[str, str]:
    """Read texts by path. Raises DataError, which names the file and the line."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or 'not a CSV in UTF-8'}") from None
    for line, row in enumerate(rows, 2):
        if not row.get("path") or not words_of(row.get("text") or ""):
            raise DataError(f"{path}:{line}: needs the columns path and text, and words in the second")
    return {row["path"]: row["text"] for row in rows}


def transcribe(
    sounds: Mapping[str, Audio], name: str, recognizer: Any, reference: Sequence[str] | None = None
) -> Iterator[Transcript]:
    """Transcripts of ``sounds``, which include the clean speech, relative to the reference or the clean transcript."""
    clean = recognizer(sounds[CLEAN])
    expected = clean if reference is None else reference
    for system, sound in sounds.items():
        words = clean if system == CLEAN else recognizer(sound)
        yield Transcript(name, system, " ".join(expected), " ".join(words), word_errors(expected, words))


def table(transcripts: Sequence[Transcript], draws: int = 2000) -> str:
    """Word error rates (errors per word of the reference) with 95 % bootstrap intervals over utterances."""
    lines = ["| system | utterances | words | WER % |", "| --- | ---: | ---: | ---: |"]
    for system in dict.fromkeys(row.system for row in transcripts):
        rows = [row for row in transcripts if row.system == system]
        errors, words = (np.array(v) for v in ([r.errors for r in rows], [len(r.reference.split()) for r in rows]))
        chosen = np.random.default_rng(0).integers(0, len(rows), (draws, len(rows)))
        rates = 100 * errors[chosen].sum(1) / np.maximum(1, words[chosen].sum(1))
        low, high = np.percentile(rates, [2.5, 97.5])
        rate = 100 * errors.sum() / max(1, words.sum())
        lines.append(f"| {system} | {len(rows)} | {words.sum()} | {rate:.0f} [{low:.0f}, {high:.0f}] |")
    return "\n".join(lines)


def write(path: Path, transcripts: Sequence[Transcript]) -> None:
    with replacing(path, overwrite=True) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["utterance", "system", "errors", "reference", "recognized"])
        writer.writerows([row.utterance, row.system, row.errors, row.reference, row.words] for row in transcripts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--pairs", metavar="CSV", help="manifest of pairs of English speech")
    what.add_argument("--clean", metavar="CSV", help="manifest of clean English speech, degraded by --simulate")
    parser.add_argument("--simulate", metavar="SENSOR", help="preset or YAML file of the sensor, with --clean")
    parser.add_argument("--texts", metavar="CSV", help="texts that were spoken: columns path and text")
    parser.add_argument("--model", nargs="+", action="append", help="as in twostage evaluate (default: default)")
    parser.add_argument("--only-speaker", metavar="S", action="append", default=[], help="only speaker S; repeatable")
    parser.add_argument("--limit", metavar="N", type=int, help="only N utterances, spread evenly")
    parser.add_argument("-o", "--out", metavar="CSV", type=Path, help="file for the transcripts of all utterances")
    options = parser.parse_args()
    if bool(options.clean) != bool(options.simulate):
        raise ConfigError("--clean and --simulate belong together: the sensor that degrades the clean speech")
    manifest = Path(options.pairs or options.clean)
    texts = read_texts(options.texts) if options.texts else {}
    source = PairSource(manifest.absolute().parent, load_sensor(options.simulate) if options.simulate else None)
    entries = select(
        read_manifest(manifest), paired=bool(options.pairs), speakers=options.only_speaker, limit=options.limit
    )
    names = [source.name(entry) for entry in entries]
    if options.texts and (without_text := [name for name in names if name not in texts]):
        raise DataError(f"{options.texts}: no text of {without_text[0]}")
    systems, recognizer, transcripts = load_systems(models_by_label(options.model)), Recognizer(), list[Transcript]()
    for entry, name in tqdm(list(zip(entries, names, strict=True)), unit="file", disable=None):
        degraded, clean = source.read(entry)
        sounds = {**dict(estimates(degraded, clean, systems)), CLEAN: clean}
        transcripts += transcribe(sounds, name, recognizer, words_of(texts[name]) if name in texts else None)
    print(table(transcripts))
    reference = "the given text" if texts else "the transcript of the clean speech"
    print(f"\nErrors per word of the reference, which is {reference}; 95 % bootstrap intervals over utterances.")
    if options.out:
        write(options.out, transcripts)


if __name__ == "__main__":
    try:
        main()
    except TwoStageError as error:
        sys.exit(f"word_errors: error: {error}")
