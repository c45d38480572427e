"""Damaged files for the commands that read them: sound, weights, settings, manifests, sensors, ONNX."""

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
from torture.harness import MEMORY, Limits, Outcome, Place, Session, record, violations
from torture.mutations import RATE, Mutation, encoded, mutated, sound_file, speech

OUTPUT_OPTIONS = (
    (),
    (),
    (),
    ("--sample-rate", "input"),
    ("--format", "flac"),
    ("--format", "ogg"),
    ("--level", "model"),
)
BLOCK = 1 << 16


def audio(session: Session, assets: Assets, count: int = 240, names: Sequence[str] = ()) -> None:
    """Restore damaged sound files, every tenth with the shipped default model, then files of unusual ``names``."""
    for number in range(count):
        rng = np.random.default_rng([session.seed, 1, number])
        kind, name, content = sound_file(rng, number)
        model = "default" if number % 10 == 9 else str(assets.tiny)
        output_options = OUTPUT_OPTIONS[number % len(OUTPUT_OPTIONS)]
        with session.case(f"{number:03}", kind) as (place, row):
            place.put(name, content)
            arguments = ["restore", name, "-o", "out/", "--model", model, *output_options]
            outcome = place.run(arguments, then=lambda: _verify(Path(name), "input" in output_options))  # noqa: B023
            record(row, outcome, violations(outcome) + _leftover_outputs(place, outcome))
    _names(session, assets, names)
    if not names:
        _giants(session, assets)


def _giants(session: Session, assets: Assets) -> None:
    """Long files with many channels, mostly silence: memory must grow with neither length nor channels."""
    for number, (channels, seconds) in enumerate(((1000, 4.0), (250, 16.0))):
        with session.case(f"giant-{number}", "giants") as (place, row):
            sound = speech(np.random.default_rng(0), seconds)
            with soundfile.SoundFile(place.work / "x.wav", "w", RATE, channels, "PCM_16") as file:
                for block in np.array_split(sound, 100):
                    file.write(np.pad(block, [(0, 0), (0, channels - 1)]))
            arguments = ["restore", "x.wav", "-o", "out/", "--model", str(assets.tiny)]
            outcome = place.run(arguments, then=lambda: _verify(Path("x.wav"), False))
            record(row, outcome, violations(outcome) + _leftover_outputs(place, outcome))


def _leftover_outputs(place: Place, outcome: Outcome) -> list[str]:
    """Outputs of a command that failed."""
    output = [path.name for path in (place.work / "out").rglob("*.*") if not path.name.endswith(".part")]
    return [f"left {name} behind a failure" for name in output] if outcome.code else []


def _verify(source: Path, same_rate: bool) -> int:
    """Compare "out" with what libsndfile reads from ``source``; print the differences and return 1 if there are any."""
    output = list(Path("out").rglob("*.*"))
    if len(output) != 1:
        print(f"{len(output)} outputs", file=sys.stderr)
        return 1
    with soundfile.SoundFile(os.fsencode(source)) as inputs, soundfile.SoundFile(output[0]) as out:
        frames = 0
        while len(block := inputs.read(BLOCK, always_2d=True)):  # blocks() would hide that a file ends early
            frames += len(block)
        rate = inputs.samplerate if same_rate else RATE
        expected = max(1, round(frames * rate / inputs.samplerate))
        frames_written = finite = 0
        for block in out.blocks(BLOCK, always_2d=True):
            frames_written, finite = frames_written + len(block), finite + int(np.isfinite(block).all(axis=1).sum())
        problems = [f"{finite} of {frames_written} samples are finite"] * (finite != frames_written)
        problems += [f"{frames_written} samples, wanted {expected}"] * (frames_written != expected)
        problems += [f"{out.samplerate} Hz, wanted {rate}"] * (out.samplerate != rate)
        problems += [f"{out.channels} channels, wanted {inputs.channels}"] * (out.channels != inputs.channels)
    if problems:
        print("; ".join(problems), file=sys.stderr)
    return int(bool(problems))


def _names(session: Session, assets: Assets, chosen: Sequence[str]) -> None:
    """Intact sound files with unusual names, and paths that are no regular files."""
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
                problems = violations(outcome, codes=(0,) if named and kind != "suffix of raw sound" else (0, 1))
                output = [p for p in (place.work / "out").rglob("*") if p.suffix.lower() == ".wav"]
                record(row, outcome, problems + [f"{len(output)} outputs"] * (outcome.code == 0 and len(output) != 1))

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
            record(row, outcome, violations(outcome))


@dataclass(frozen=True)
class DamagedFile:
    """A file, how it may be damaged, and the command that reads it, in which FILE is replaced by its name.

    ``beside`` are files and folders that the command needs beside it, by their names there.
    """

    kind: str
    file: Callable[[Assets], Path]
    mutations: Mapping[str, Mutation]
    arguments: Callable[[Assets], list[str]]
    count: int
    beside: Callable[[Assets], dict[str, Path]] = lambda assets: {}
    name: str = ""
    lines: int = 1
    memory: float = MEMORY


SOUND = "corpus/0.wav"


def _restore_arguments(assets: Assets) -> list[str]:
    return ["restore", SOUND, "-o", "out.wav", "--model", "FILE"]


def _one_step_training(command: str, *extra: str) -> Callable[[Assets], list[str]]:
    return lambda assets: training(Path("corpus"), command, "run", *extra, steps=1)


def _corpus(assets: Assets) -> dict[str, Path]:
    return {"corpus": assets.corpus}


def _run(assets: Assets) -> dict[str, Path]:
    """A training that has started, to which the damaged file belongs."""
    run = assets.folder / "run"
    if not run.exists():
        place = Place(assets.folder / "making" / "run")
        outcome = place.run(training(assets.corpus, "train-vocoder", "run", steps=2), Limits(300))
        if outcome.code:
            raise RuntimeError(outcome.err)
        shutil.copytree(place.work / "run", run, dirs_exist_ok=True)
    return {"run": run, "corpus": assets.corpus}


def _scores(assets: Assets) -> dict[str, Path]:
    """The folder of an evaluation."""
    scores = assets.folder / "scores"
    if not scores.exists():
        place = Place(assets.folder / "making" / "scores")
        arguments = [
            "evaluate",
            "--pairs",
            str(assets.corpus / "pairs.csv"),
            "--model",
            str(assets.tiny),
            "-o",
            "scores",
        ]
        outcome = place.run([*arguments, "--pictures", "0"], Limits(300))
        if outcome.code:
            raise RuntimeError(outcome.err)
        shutil.copytree(place.work / "scores", scores, dirs_exist_ok=True)
    return {"scores": scores}


def _resume_arguments(assets: Assets) -> list[str]:
    return [*training(assets.corpus, "train-vocoder", "run", steps=3), "--resume"]


LARGE_MODELS = 8192.0  # MB, since damaged settings may define a larger model, which is allowed
DAMAGED_FILES = (
    DamagedFile("weights, restore", lambda a: a.tiny, mutations.WEIGHTS, _restore_arguments, 56, _corpus),
    DamagedFile("restorer and vocoder, restore", lambda a: a.vocoder, mutations.WEIGHTS,
        lambda a: [*_restore_arguments(a), str(a.restorer)], 14, _corpus),
    DamagedFile("weights, export", lambda a: a.tiny, mutations.WEIGHTS, lambda a: ["export", "FILE", "out.onnx"], 8),
    DamagedFile("weights, stream", lambda a: a.causal, mutations.WEIGHTS,
        lambda a: ["stream", "--file", SOUND, "-o", "out.wav", "--model", "FILE"], 14, _corpus),
    DamagedFile("weights, init_from", lambda a: a.vocoder,
        mutations.WEIGHTS, _one_step_training("train-vocoder", "init_from=FILE"), 8, _corpus),
    DamagedFile("weights, evaluate", lambda a: a.tiny, mutations.WEIGHTS,
        lambda a: ["evaluate", "--pairs", "corpus/pairs.csv", "--model", "FILE", "-o", "out", "--pictures", "1"],
        8, _corpus, lines=4),
    DamagedFile("state, resume", lambda a: _run(a)["run"] / "state.pt", mutations.DAMAGE, _resume_arguments, 18, _run,
        "run/state.pt"),
    DamagedFile("state, adversary.init_from", lambda a: _run(a)["run"] / "state.pt", mutations.DAMAGE,
        _one_step_training("train-vocoder", "adversary.init_from=FILE"), 9, _corpus),
    DamagedFile("log of a run, resume", lambda a: _run(a)["run"] / "log.jsonl",
        {**mutations.JSONLS, **mutations.DAMAGE}, _resume_arguments, 12, _run, "run/log.jsonl"),
    DamagedFile("settings of a run, resume", lambda a: _run(a)["run"] / "config.yaml", mutations.YAMLS,
        lambda a: ["train-vocoder", "--run", "run", "--resume"], 12, _run, "run/config.yaml"),
    DamagedFile("generator, import-hifigan", lambda a: a.published / "generator", mutations.DAMAGE,
        lambda a: ["import-hifigan", "FILE", "published/config.json", "out.safetensors"], 18,
        lambda a: {"published": a.published}),
    DamagedFile("generator's JSON, import-hifigan", lambda a: a.published / "config.json", mutations.JSONS,
        lambda a: ["import-hifigan", "published/generator", "FILE", "out.safetensors"], 20,
        lambda a: {"published": a.published}),
    DamagedFile("settings, train-restorer", lambda a: _settings(a, "restorer"), mutations.YAMLS,
        lambda a: _with_settings(_one_step_training("train-restorer")(a)), 40, _corpus, "settings.yaml",
        memory=LARGE_MODELS),
    DamagedFile("settings, train-vocoder", lambda a: _settings(a, "vocoder"), mutations.YAMLS,
        lambda a: _with_settings(_one_step_training("train-vocoder")(a)), 24, _corpus, "settings.yaml",
        memory=LARGE_MODELS),
    DamagedFile("sensor, simulate", lambda a: a.sensor, mutations.YAMLS,
        lambda a: ["simulate", SOUND, "out", "--sensor", "FILE"], 40, _corpus),
    DamagedFile("sensor, train-restorer", lambda a: a.sensor, mutations.YAMLS,
        _one_step_training("train-restorer", "data.sensors=[FILE]", "data.sensor_weights=[]"), 16, _corpus),
    DamagedFile("JSONL, split", lambda a: a.corpus / "clean.jsonl", mutations.JSONLS,
        lambda a: ["manifest", "split", "FILE", "-o", "a.jsonl", "b.jsonl"], 24, _corpus, "corpus/x.jsonl"),
    DamagedFile("JSONL, align", lambda a: a.corpus / "pairs.jsonl", mutations.JSONLS,
        lambda a: ["manifest", "align", "FILE", "-o", "a.jsonl", "--report", "r.json"], 24, _corpus, "corpus/x.jsonl"),
    DamagedFile("JSONL, train", lambda a: a.corpus / "clean.jsonl", mutations.JSONLS,
        lambda a: [*_one_step_training("train-vocoder")(a)[:3], "data.train=[FILE]", "data.valid=[FILE]",
                   *_one_step_training("train-vocoder")(a)[5:]], 18, _corpus, "corpus/x.jsonl"),
    DamagedFile("JSONL, evaluate", lambda a: a.corpus / "pairs.jsonl", mutations.JSONLS,
        lambda a: ["evaluate", "--pairs", "FILE", "--model", "none", "-o", "out", "--pictures", "1"],
        12, _corpus, "corpus/x.jsonl", lines=4),
    DamagedFile("CSV, split", lambda a: a.corpus / "clean.csv", mutations.CSVS,
        lambda a: ["manifest", "split", "FILE", "-o", "a.jsonl", "b.jsonl"], 24, _corpus, "corpus/x.csv"),
    DamagedFile("CSV, fit-sensor", lambda a: a.corpus / "pairs.csv", mutations.CSVS,
        lambda a: ["fit-sensor", "FILE", "-o", "s.yaml"], 12, _corpus, "corpus/x.csv"),
    DamagedFile("scores, compare", lambda a: _scores(a)["scores"] / "utterances.csv",
        {**mutations.CSVS, **mutations.DAMAGE},
        lambda a: ["compare", "scores", "-o", "out"], 15, _scores, "scores/utterances.csv"),
    DamagedFile("summary, compare", lambda a: _scores(a)["scores"] / "summary.json", mutations.JSONS,
        lambda a: ["compare", "scores", "-o", "out"], 12, _scores, "scores/summary.json"),
    DamagedFile("ONNX, restore", lambda a: a.onnx, mutations.DAMAGE, _restore_arguments, 36, _corpus, "x.onnx"),
    DamagedFile("ONNX of a step, stream", lambda a: a.step, mutations.DAMAGE,
        lambda a: ["stream", "--file", SOUND, "-o", "out.wav", "--model", "FILE"], 18, _corpus, "x.onnx"),
)  # fmt: skip


def weights(session: Session, assets: Assets, share: float = 1.0, kinds: Sequence[str] = ()) -> None:
    """Damaged files other than sound: a ``share`` of the cases, of ``kinds`` (all)."""
    for index, damaged_file in enumerate(DAMAGED_FILES):
        if kinds and damaged_file.kind not in kinds:
            continue
        source = damaged_file.file(assets)
        for number in range(max(1, round(share * damaged_file.count))):
            rng = np.random.default_rng([session.seed, 2, index, number])
            kind, content = mutated(rng, damaged_file.mutations, source.read_bytes(), number + index)
            name = f"{index:02}-{number:02}"
            with session.case(name, f"{damaged_file.kind}: {kind}") as (place, row):
                for below, folder in damaged_file.beside(assets).items():
                    shutil.copytree(folder, place.work / below)
                file = damaged_file.name or f"x{source.suffix}"
                place.put(file, content)
                arguments = [argument.replace("FILE", file) for argument in damaged_file.arguments(assets)]
                outcome = place.run(arguments)
                problems = violations(outcome, lines=damaged_file.lines, memory=damaged_file.memory)
                if (place.work / "marker").exists():
                    problems.append("code in the file was run")
                if outcome.code == 0 and "out.wav" in arguments:
                    problems += _output_problems(place)
                record(row, outcome, problems)


def _settings(assets: Assets, stage: str) -> Path:
    """A YAML file with the settings of a small training."""
    path = assets.folder / f"{stage}.yaml"
    if not path.exists():
        from twostage.training.config import RestorerRun, VocoderRun, load_config, to_yaml

        arguments = training(assets.corpus, f"train-{stage}", "run", steps=1)
        schema = RestorerRun if stage == "restorer" else VocoderRun
        settings = load_config(schema, arguments[1:3], [*arguments[3:-2], "run_dir=run"])
        path.write_text(to_yaml(settings).replace(str(assets.corpus), "corpus"))
    return path


def _with_settings(arguments: list[str]) -> list[str]:
    """The same training with all settings from the damaged file, except those that limit its time."""
    return [arguments[0], "FILE", "steps=1", *arguments[-2:]]


def _output_problems(place: Place) -> list[str]:
    output, rate = soundfile.read(place.work / "out.wav", always_2d=True)
    inputs = soundfile.info(place.work / SOUND)
    expected = max(1, round(inputs.frames * rate / inputs.samplerate))
    problems = [f"{len(output)} samples, wanted {expected}"] * (len(output) != expected)
    return problems + ["samples that are not finite"] * (not np.isfinite(output).all())
