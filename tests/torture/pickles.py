"""Code in files of weights, which must not run, and paths that lead out of a folder, which must not be written."""

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from torture.assets import Assets, training
from torture.harness import Limits, Place, Session, record, violations
from torture.mutations import RATE, encoded, speech


class MakesMarker:
    """Creates a folder ``marker`` when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("marker",)


def hostile() -> dict[str, bytes]:
    """Files that run code when they are unpickled, by their format."""
    archive = io.BytesIO()
    torch.save({"step": 1, "generator": MakesMarker(), "settings": {}}, archive)
    numpy = io.BytesIO()
    np.save(numpy, np.array([MakesMarker()], dtype=object), allow_pickle=True)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(MakesMarker()))
        file.writestr("archive/version", "3\n")
    legacy = io.BytesIO()
    torch.save({"generator": MakesMarker()}, legacy, _use_new_zipfile_serialization=False)
    return {
        "pickle": pickle.dumps(MakesMarker()),
        "old pickle": pickle.dumps({"generator": MakesMarker(), "step": 1}, protocol=0),
        "torch": archive.getvalue(),
        "old torch": legacy.getvalue(),
        "zip": zipped.getvalue(),
        "numpy": numpy.getvalue(),
    }


def commands(assets: Assets, suffix: str) -> Iterator[tuple[str, str, list[str]]]:
    """(name, path of the file, arguments) of every command that reads weights or a state."""
    file = f"evil{suffix}"
    yield "restore --model", file, ["restore", "x.wav", "-o", "out.wav", "--model", file]
    yield "restore --model, two", file, ["restore", "x.wav", "-o", "o.wav", "--model", file, str(assets.vocoder)]
    yield "restore --model, folder", f"m/best{suffix}", ["restore", "x.wav", "-o", "out.wav", "--model", "m"]
    yield "stream --model", file, ["stream", "--file", "x.wav", "--model", file]
    yield "export", file, ["export", file, "out.onnx"]
    yield "evaluate --model", file, ["evaluate", "--pairs", str(assets.corpus / "pairs.csv"), "--model", file]
    yield "restore-corpus --model", file, ["restore-corpus", "m.csv", "-o", "out", "--model", file]
    yield "app --model", file, ["app", "--port", "0", "--model", file]
    yield "import-hifigan", file, ["import-hifigan", file, str(assets.published / "config.json"), "out.safetensors"]
    yield "init", file, training(assets.corpus, "train-vocoder", "run", f"init_from={file}", steps=1)
    yield (
        "adversary.init_from",
        file,
        training(assets.corpus, "train-vocoder", "run", f"adversary.init_from={file}", steps=1),
    )
    yield "valid.vocoder", file, training(assets.corpus, "train-restorer", "run", f"valid.vocoder={file}", steps=1)
    yield "resume", "run/state.pt", [*training(assets.corpus, "train-vocoder", "run", steps=1), "--resume"]
    manifests = [f"data.{side}=[{assets.corpus / 'pairs.csv'}]" for side in ("train", "valid")]
    yield "models", file, ["finetune", "finetune", "tiny", *manifests, f"models=[{file}]", "--run", "run"]


YAMLS = {
    "settings": ("evil.yaml", ["train-vocoder", "evil.yaml", "--run", "run"]),
    "settings of a run": ("run/config.yaml", ["train-vocoder", "--run", "run", "--resume"]),
    "sensor": ("evil.yaml", ["simulate", "x.wav", "out", "--sensor", "evil.yaml"]),
    "key=value": ("none", ["train-vocoder", "vocoder", "seed=!!python/object/apply:os.mkdir [marker]", "--run", "run"]),
}


def pickles(session: Session, assets: Assets, packings: Sequence[str] = (), names: Sequence[str] = ()) -> None:
    """Code in each format (``packings``, all by default) through each command, then a table and ``names`` (all)."""
    sound = encoded(speech(np.random.default_rng(0)), RATE, "WAV", "PCM_16")
    contents = hostile()
    for packing in packings or contents:
        for suffix in (".pt",) if packings else (".safetensors", ".pt", ".onnx"):
            for number, (command, name, arguments) in enumerate(commands(assets, suffix)):
                if (suffix == ".onnx" and "--model" not in command) or (packings and command == "app --model"):
                    continue
                case = f"{packing}-{suffix[1:]}-{number:02}".replace(" ", "-")
                with session.case(case, f"code: {command}") as (place, row):
                    place.put("x.wav", sound)
                    place.put("m.csv", b"path\nx.wav\n")
                    place.put(name, contents[packing])
                    outcome = place.run(arguments)
                    record(row, outcome, violations(outcome, codes=(1,)) + _executed_code(place))
    for kind, (name, arguments) in YAMLS.items():
        with session.case(f"yaml-{kind}".replace(" ", "-"), "code: YAML") as (place, row):
            place.put("x.wav", sound)
            place.put(name, b"seed: !!python/object/apply:os.mkdir [marker]\n")
            outcome = place.run(arguments)
            record(row, outcome, violations(outcome, codes=(1,)) + _executed_code(place))
    if not packings:
        table_of_code(session)
    escapes(session, assets, names)


def _executed_code(place: Place) -> list[str]:
    return [f"code was run: {path.name} exists" for path in place.folder.rglob("marker*")]


def table_of_code(session: Session) -> None:
    """The table of a corpus with a column of a type that Ray unpickles when it is read."""
    with session.case("table", "code: a corpus's table") as (place, row):
        outcome = place.run(_read_table, Limits(120, addresses=0))
        record(row, outcome, violations(outcome, codes=(1,)) + _executed_code(place))


def hostile_table() -> bytes:
    """A Parquet file whose column of paths has Ray's type for Python objects, and contains code."""
    import pyarrow
    import pyarrow.parquet

    from twostage.corpus.table import Result, to_arrow

    table = to_arrow([Result("/a.wav", "a.wav", "restored")])
    metadata = {"ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": b""}
    objects = pyarrow.array([pickle.dumps(MakesMarker())], pyarrow.large_binary())
    table = table.set_column(0, pyarrow.field("path", objects.type, metadata=metadata), objects)
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


def _read_table() -> int:
    import sys

    from twostage.corpus.table import decode
    from twostage.utils.errors import TwoStageError

    content = hostile_table()
    import ray.data
    from ray.data import extensions  # noqa: F401 - registers its types with pyarrow

    assert ray.data is not None
    try:
        decode(content, "results.parquet")
    except TwoStageError as error:
        print(f"twostage: error: {error}", file=sys.stderr)
        return 1
    return 0


def escapes(session: Session, assets: Assets, chosen: Sequence[str] = ()) -> None:
    """Paths that lead out of the output folder, to files that must not change."""
    sound = encoded(speech(np.random.default_rng(0)), RATE, "WAV", "PCM_16")
    model = ["--model", str(assets.tiny)]
    cases: dict[str, tuple[list[str], str | None]] = {
        "restore, pattern": (["restore", "in/*/../../secret*.wav", "-o", "deep/out", *model], None),
        "restore, pattern above": (["restore", "in/../secret*.wav", "-o", "deep/out", *model], None),
        "restore, folder above": (["restore", "in/a/../..", "-o", "below/out", *model], None),
        "restore, name": (["restore", "in/../secret.wav", "-o", "out", *model], None),
        "simulate, pattern": (["simulate", "in/*/../../secret*.wav", "deep/out"], None),
        "simulate, folder": (["simulate", "in/../in", "out"], None),
        "restore, link among the inputs": (["restore", "links", "-o", "out", *model], None),
        "evaluate": (
            ["evaluate", "--pairs", "MANIFEST", "--model", str(assets.tiny), "-o", "out/scores", "--pictures", "1"],
            "pairs",
        ),
        "evaluate, label": (
            ["evaluate", "--pairs", "MANIFEST", "--model", f"../../up={assets.tiny}", "-o", "out/scores"],
            "pairs",
        ),
        "manifest split": (["manifest", "split", "MANIFEST", "-o", "out/a.jsonl", "out/b.jsonl"], "pairs"),
        "manifest align": (["manifest", "align", "MANIFEST", "-o", "out/a.jsonl"], "pairs"),
        "restore-corpus": (["restore-corpus", "MANIFEST", "-o", "out", "--workers", "1", *model], "paths"),
    }
    for number, (kind, (arguments, manifest)) in enumerate(cases.items()):
        if chosen and kind not in chosen:
            continue
        with session.case(f"escape-{number:02}", f"names: {kind.partition(',')[0]}") as (place, row):
            for name in ("in/a/x.wav", "secret.wav", "victim.wav", "in/b/y.wav"):
                place.put(name, sound)
            (place.work / "links").mkdir()
            (place.work / "links" / "l.wav").symlink_to(place.work / "secret.wav")
            (place.work / "links" / "d").symlink_to(place.work)
            if manifest:
                place.put("in/m.jsonl", _manifest_leading_out(place, manifest).encode())
                arguments = [argument.replace("MANIFEST", "in/m.jsonl") for argument in arguments]
            before = {name: (place.work / name).read_bytes() for name in place.files()}
            outcome = place.run(arguments, Limits(120, addresses=0))
            after = {name: (place.work / name).read_bytes() for name in place.files()}
            allowed = ("out/", "deep/out/", "below/out/")
            strays = sorted(name for name in after if name not in before and not name.startswith(allowed))
            problems = [f"wrote {name}" for name in strays]
            problems += [f"changed {name}" for name in before if after.get(name) != before[name]]
            shutil.rmtree(place.temporary / "ray", ignore_errors=True)  # Ray's own logs
            record(row, outcome, violations(outcome, lines=20) + problems)


def _manifest_leading_out(place: Place, kind: str) -> str:
    """A manifest whose paths are absolute, lead upward, or go through links."""
    names = ["../in/a/x.wav", str(place.work / "secret.wav"), "a/../../secret.wav", "a/../../../work/victim.wav"]
    names += ["../links/l.wav", "../links/d/secret.wav", "..", "../../../../../../etc/passwd"]
    if kind == "paths":
        return "".join(json.dumps({"path": name}) + "\n" for name in names)
    lines = (
        {"clean": name, "degraded": name, "speaker": f"../s{i}", "seconds": 0.3} for i, name in enumerate(names[:6])
    )
    return "".join(json.dumps(line) + "\n" for line in lines)
