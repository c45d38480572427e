"""Damaged files through the commands that read them: sound, weights, settings, manifests, sensors, ONNX."""

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from torture import mutations
from torture.assets import Assets, training
from torture.harness import MEMORY, Limits, Outcome, Place, Session, complaints, noted
from torture.mutations import RATE, Mutation, encoded, mutated, sound_file, speech

WAYS_OUT = ((), (), (), ("--sample-rate", "input"), ("--format", "flac"), ("--format", "ogg"), ("--level", "model"))
BLOCK = 1 << 16


def audio(session: Session, assets: Assets, count: int = 240, names: Sequence[str] = ()) -> None:
    """Damaged sound files through ``restore``, every tenth with the shipped default model; then ``names`` (all)."""
    for number in range(count):
        rng = np.random.default_rng([session.seed, 1, number])
        kind, name, content = sound_file(rng, number)
        model = "default" if number % 10 == 9 else str(assets.tiny)
        more = WAYS_OUT[number % len(WAYS_OUT)]
        with session.case(f"{number:03}", kind) as (place, row):
            place.put(name, content)
            words = ["restore", name, "-o", "out/", "--model", model, *more]
            outcome = place.run(words, then=lambda: _verify(Path(name), "input" in more))  # noqa: B023
            noted(row, outcome, complaints(outcome) + _left(place, outcome))
    _names(session, assets, names)
    if not names:
        _giants(session, assets)


def _giants(session: Session, assets: Assets) -> None:
    """Long files of many channels, mostly silence: the memory that they take must not grow with either."""
    for number, (channels, seconds) in enumerate(((1000, 4.0), (250, 16.0))):
        with session.case(f"giant-{number}", "giants") as (place, row):
            sound = speech(np.random.default_rng(0), seconds)
            with soundfile.SoundFile(place.work / "x.wav", "w", RATE, channels, "PCM_16") as file:
                for block in np.array_split(sound, 100):
                    file.write(np.pad(block, [(0, 0), (0, channels - 1)]))
            words = ["restore", "x.wav", "-o", "out/", "--model", str(assets.tiny)]
            outcome = place.run(words, then=lambda: _verify(Path("x.wav"), False))
            noted(row, outcome, complaints(outcome) + _left(place, outcome))


def _left(place: Place, outcome: Outcome) -> list[str]:
    """What a command that failed has left behind."""
    output = [path.name for path in (place.work / "out").rglob("*.*") if not path.name.endswith(".part")]
    return [f"left {name} behind a failure" for name in output] if outcome.code else []


def _verify(source: Path, same_rate: bool) -> int:
    """Compare what is in "out" with what libsndfile itself reads of ``source``; 1, and a line, if it is not alike."""
    output = list(Path("out").rglob("*.*"))
    if len(output) != 1:
        print(f"{len(output)} outputs", file=sys.stderr)
        return 1
    with soundfile.SoundFile(os.fsencode(source)) as inputs, soundfile.SoundFile(output[0]) as out:
        frames = 0
        while len(block := inputs.read(BLOCK, always_2d=True)):  # its blocks() hides that a file ends early
            frames += len(block)
        rate = inputs.samplerate if same_rate else RATE
        wanted = max(1, round(frames * rate / inputs.samplerate))
        actual = finite = 0
        for block in out.blocks(BLOCK, always_2d=True):
            actual, finite = actual + len(block), finite + int(np.isfinite(block).all(axis=1).sum())
        problems = [f"{finite} of {actual} samples are finite"] * (finite != actual)
        problems += [f"{actual} samples, wanted {wanted}"] * (actual != wanted)
        problems += [f"{out.samplerate} Hz, wanted {rate}"] * (out.samplerate != rate)
        problems += [f"{out.channels} channels, wanted {inputs.channels}"] * (out.channels != inputs.channels)
    if problems:
        print("; ".join(problems), file=sys.stderr)
    return int(bool(problems))


def _names(session: Session, assets: Assets, chosen: Sequence[str]) -> None:
    """Sound files whose content is sound and whose name or nature is not."""
    content = encoded(speech(np.random.default_rng(session.seed)), RATE, "WAV", "PCM_16")
    names: dict[str, str] = {
        "no UTF-8": os.fsdecode(b"a\xff\xfe.wav"),
        "line break": "a\nb.wav",
        "escape": "a\x1b[31m.wav",
        "255 bytes": "a" * 251 + ".wav",
        "83 letters of three bytes": "\uac00" * 83 + ".wav",
        "minus": "-o.wav",
        "spaces": "  a .wav",
        "pattern": "[a]*?.wav",
        "percent": "%s%d{0}.wav",
        "equals": "a=b.wav",
        "capital suffix": "A.WAV",
        "two suffixes": "a.flac.wav",
        "no suffix": "recording",
        "suffix of raw sound": "a.raw",
    }
    for number, (kind, name) in enumerate(names.items()):
        if chosen and kind not in chosen:
            continue
        for where, inputs in (("file", f"in/{name}"), ("folder", "in"))[len(chosen) > 0 :]:
            with session.case(f"name-{number:02}-{where}", f"name, {kind}") as (place, row):
                place.put(f"in/{name}", content)
                more = ("--json", "r.json", "--plot") if where == "folder" else ()
                outcome = place.run(["restore", inputs, "-o", "out/", "--model", str(assets.tiny), *more])
                named = where == "file" or Path(name).suffix.lower() == ".wav"
                problems = complaints(outcome, codes=(0,) if named and kind != "suffix of raw sound" else (0, 1))
                output = [p for p in (place.work / "out").rglob("*") if p.suffix.lower() == ".wav"]
                noted(row, outcome, problems + [f"{len(output)} outputs"] * (outcome.code == 0 and len(output) != 1))

    def unreadable(path: Path) -> None:
        path.write_bytes(content)
        path.chmod(0)

    natures: dict[str, Callable[[Path], object]] = {
        "folder": Path.mkdir,
        "dangling link": lambda path: path.symlink_to("nowhere"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "pipe": lambda path: os.mkfifo(path),
        "endless device": lambda path: path.symlink_to("/dev/zero"),
        "unreadable": unreadable,
    }
    for number, (kind, make) in enumerate(natures.items()):
        if chosen and kind not in chosen:
            continue
        with session.case(f"nature-{number:02}", f"nature, {kind}") as (place, row):
            make(place.work / "x.wav")
            outcome = place.run(["restore", "x.wav", "-o", "out/", "--model", str(assets.tiny)])
            noted(row, outcome, complaints(outcome))


@dataclass(frozen=True)
class Way:
    """A file, what may happen to it, and the command that reads it: FILE in its words stands for the file.

    ``beside`` are files and folders that must lie beside it, by the names they have there.
    """

    kind: str
    file: Callable[[Assets], Path]
    mutations: Mapping[str, Mutation]
    words: Callable[[Assets], list[str]]
    count: int
    beside: Callable[[Assets], dict[str, Path]] = lambda assets: {}
    name: str = ""
    lines: int = 1
    memory: float = MEMORY


SOUND = "corpus/0.wav"


def _restoring(assets: Assets) -> list[str]:
    return ["restore", SOUND, "-o", "out.wav", "--model", "FILE"]


def _one_step(command: str, *more: str) -> Callable[[Assets], list[str]]:
    return lambda assets: training(Path("corpus"), command, "run", *more, steps=1)


def _corpus(assets: Assets) -> dict[str, Path]:
    return {"corpus": assets.corpus}


def _run(assets: Assets) -> dict[str, Path]:
    """A training that has begun, of which the damaged file is a part."""
    run = assets.folder / "run"
    if not run.exists():
        place = Place(assets.folder / "making" / "run")
        outcome = place.run(training(assets.corpus, "train-vocoder", "run", steps=2), Limits(300))
        if outcome.code:
            raise RuntimeError(outcome.err)
        shutil.copytree(place.work / "run", run, dirs_exist_ok=True)
    return {"run": run, "corpus": assets.corpus}


def _scores(assets: Assets) -> dict[str, Path]:
    """A folder of scores."""
    scores = assets.folder / "scores"
    if not scores.exists():
        place = Place(assets.folder / "making" / "scores")
        words = ["evaluate", "--pairs", str(assets.corpus / "pairs.csv"), "--model", str(assets.tiny), "-o", "scores"]
        outcome = place.run([*words, "--pictures", "0"], Limits(300))
        if outcome.code:
            raise RuntimeError(outcome.err)
        shutil.copytree(place.work / "scores", scores, dirs_exist_ok=True)
    return {"scores": scores}


def _resuming(assets: Assets) -> list[str]:
    return [*training(assets.corpus, "train-vocoder", "run", steps=3), "--resume"]


ASKED = 8192.0  # MB: damaged settings may ask for a larger model, which is a user's to ask for
WAYS = (
    Way("weights, restore", lambda a: a.tiny, mutations.WEIGHTS, _restoring, 56, _corpus),
    Way("restorer and vocoder, restore", lambda a: a.vocoder, mutations.WEIGHTS,
        lambda a: [*_restoring(a), str(a.restorer)], 14, _corpus),
    Way("weights, export", lambda a: a.tiny, mutations.WEIGHTS, lambda a: ["export", "FILE", "out.onnx"], 8),
    Way("weights, stream", lambda a: a.causal, mutations.WEIGHTS,
        lambda a: ["stream", "--file", SOUND, "-o", "out.wav", "--model", "FILE"], 14, _corpus),
    Way("weights, init_from", lambda a: a.vocoder,
        mutations.WEIGHTS, _one_step("train-vocoder", "init_from=FILE"), 8, _corpus),
    Way("weights, evaluate", lambda a: a.tiny, mutations.WEIGHTS,
        lambda a: ["evaluate", "--pairs", "corpus/pairs.csv", "--model", "FILE", "-o", "out", "--pictures", "1"],
        8, _corpus, lines=4),
    Way("state, resume", lambda a: _run(a)["run"] / "state.pt", mutations.DAMAGE, _resuming, 18, _run, "run/state.pt"),
    Way("state, adversary.init_from", lambda a: _run(a)["run"] / "state.pt", mutations.DAMAGE,
        _one_step("train-vocoder", "adversary.init_from=FILE"), 9, _corpus),
    Way("log of a run, resume", lambda a: _run(a)["run"] / "log.jsonl",
        {**mutations.JSONLS, **mutations.DAMAGE}, _resuming, 12, _run, "run/log.jsonl"),
    Way("settings of a run, resume", lambda a: _run(a)["run"] / "config.yaml", mutations.YAMLS,
        lambda a: ["train-vocoder", "--run", "run", "--resume"], 12, _run, "run/config.yaml"),
    Way("generator, import-hifigan", lambda a: a.published / "generator", mutations.DAMAGE,
        lambda a: ["import-hifigan", "FILE", "published/config.json", "out.safetensors"], 18,
        lambda a: {"published": a.published}),
    Way("generator's JSON, import-hifigan", lambda a: a.published / "config.json", mutations.JSONS,
        lambda a: ["import-hifigan", "published/generator", "FILE", "out.safetensors"], 20,
        lambda a: {"published": a.published}),
    Way("settings, train-restorer", lambda a: _settings(a, "restorer"), mutations.YAMLS,
        lambda a: _with_settings(_one_step("train-restorer")(a)), 40, _corpus, "settings.yaml", memory=ASKED),
    Way("settings, train-vocoder", lambda a: _settings(a, "vocoder"), mutations.YAMLS,
        lambda a: _with_settings(_one_step("train-vocoder")(a)), 24, _corpus, "settings.yaml", memory=ASKED),
    Way("sensor, simulate", lambda a: a.sensor, mutations.YAMLS,
        lambda a: ["simulate", SOUND, "out", "--sensor", "FILE"], 40, _corpus),
    Way("sensor, train-restorer", lambda a: a.sensor, mutations.YAMLS,
        _one_step("train-restorer", "data.sensors=[FILE]", "data.sensor_weights=[]"), 16, _corpus),
    Way("JSONL, split", lambda a: a.corpus / "clean.jsonl", mutations.JSONLS,
        lambda a: ["manifest", "split", "FILE", "-o", "a.jsonl", "b.jsonl"], 24, _corpus, "corpus/x.jsonl"),
    Way("JSONL, align", lambda a: a.corpus / "pairs.jsonl", mutations.JSONLS,
        lambda a: ["manifest", "align", "FILE", "-o", "a.jsonl", "--report", "r.json"], 24, _corpus, "corpus/x.jsonl"),
    Way("JSONL, train", lambda a: a.corpus / "clean.jsonl", mutations.JSONLS,
        lambda a: [*_one_step("train-vocoder")(a)[:3], "data.train=[FILE]", "data.valid=[FILE]",
                   *_one_step("train-vocoder")(a)[5:]], 18, _corpus, "corpus/x.jsonl"),
    Way("JSONL, evaluate", lambda a: a.corpus / "pairs.jsonl", mutations.JSONLS,
        lambda a: ["evaluate", "--pairs", "FILE", "--model", "none", "-o", "out", "--pictures", "1"],
        12, _corpus, "corpus/x.jsonl", lines=4),
    Way("CSV, split", lambda a: a.corpus / "clean.csv", mutations.CSVS,
        lambda a: ["manifest", "split", "FILE", "-o", "a.jsonl", "b.jsonl"], 24, _corpus, "corpus/x.csv"),
    Way("CSV, fit-sensor", lambda a: a.corpus / "pairs.csv", mutations.CSVS,
        lambda a: ["fit-sensor", "FILE", "-o", "s.yaml"], 12, _corpus, "corpus/x.csv"),
    Way("scores, compare", lambda a: _scores(a)["scores"] / "utterances.csv", {**mutations.CSVS, **mutations.DAMAGE},
        lambda a: ["compare", "scores", "-o", "out"], 15, _scores, "scores/utterances.csv"),
    Way("summary, compare", lambda a: _scores(a)["scores"] / "summary.json", mutations.JSONS,
        lambda a: ["compare", "scores", "-o", "out"], 12, _scores, "scores/summary.json"),
    Way("ONNX, restore", lambda a: a.onnx, mutations.DAMAGE, _restoring, 36, _corpus, "x.onnx"),
    Way("ONNX of a step, stream", lambda a: a.step, mutations.DAMAGE,
        lambda a: ["stream", "--file", SOUND, "-o", "out.wav", "--model", "FILE"], 18, _corpus, "x.onnx"),
)  # fmt: skip


def weights(session: Session, assets: Assets, share: float = 1.0, kinds: Sequence[str] = ()) -> None:
    """Damaged files that are not sound, each way that there is for one. ``share`` of them, those of ``kinds`` (all)."""
    for index, way in enumerate(WAYS):
        if kinds and way.kind not in kinds:
            continue
        source = way.file(assets)
        for number in range(max(1, round(share * way.count))):
            rng = np.random.default_rng([session.seed, 2, index, number])
            kind, content = mutated(rng, way.mutations, source.read_bytes(), number + index)
            name = f"{index:02}-{number:02}"
            with session.case(name, f"{way.kind}: {kind}") as (place, row):
                for below, folder in way.beside(assets).items():
                    shutil.copytree(folder, place.work / below)
                file = way.name or f"x{source.suffix}"
                place.put(file, content)
                words = [word.replace("FILE", file) for word in way.words(assets)]
                outcome = place.run(words)
                problems = complaints(outcome, lines=way.lines, memory=way.memory)
                if (place.work / "marker").exists():
                    problems.append("code in the file was run")
                if outcome.code == 0 and "out.wav" in words:
                    problems += _unlike_sound(place)
                noted(row, outcome, problems)


def _settings(assets: Assets, stage: str) -> Path:
    """One YAML with what a small training needs, besides what its words say."""
    path = assets.folder / f"{stage}.yaml"
    if not path.exists():
        from twostage.training.config import RestorerRun, VocoderRun, load_config, to_yaml

        words = training(assets.corpus, f"train-{stage}", "run", steps=1)
        schema = RestorerRun if stage == "restorer" else VocoderRun
        settings = load_config(schema, words[1:3], [*words[3:-2], "run_dir=run"])
        path.write_text(to_yaml(settings).replace(str(assets.corpus), "corpus"))
    return path


def _with_settings(words: list[str]) -> list[str]:
    """The same training with all settings from the damaged file, but for those that bound its time."""
    return [words[0], "FILE", "steps=1", *words[-2:]]


def _unlike_sound(place: Place) -> list[str]:
    output, rate = soundfile.read(place.work / "out.wav", always_2d=True)
    inputs = soundfile.info(place.work / SOUND)
    wanted = max(1, round(inputs.frames * rate / inputs.samplerate))
    problems = [f"{len(output)} samples, wanted {wanted}"] * (len(output) != wanted)
    return problems + ["samples that are not finite"] * (not np.isfinite(output).all())
