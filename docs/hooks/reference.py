"""Pages that are made from the code: every setting, every command."""

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from settings import Setting, settings

from twostage import cli
from twostage.data.sensors import PRESETS, Sensor
from twostage.models.registry import ENHANCERS
from twostage.training.config import BASELINES, CORPORA, EnhancerRun, FinetuneRun, RestorerRun, RunConfig, VocoderRun

ROOT = Path(__file__).resolve().parents[2]
TRAININGS = {
    "train-restorer": RestorerRun, "train-vocoder": VocoderRun, "finetune": FinetuneRun, "train-enhancer": EnhancerRun
}  # fmt: skip
WIDTH = "82"  # characters of a command's help


def on_files(files: Files, config: Any, **_: Any) -> Files:
    files.append(File.generated(config, "configuration.md", content=configuration()))
    files.append(File.generated(config, "commands.md", content=commands()))
    return files


def on_page_content(text: str, page: Any, **_: Any) -> str:
    return f'<div class="settings">{text}</div>' if page.file.src_uri == "configuration.md" else text


def configuration() -> str:
    """Every field of every run, as tables."""
    anchors: dict[type, str] = {}
    parts = [_INTRODUCTION, "## Every training", _doc(RunConfig), *_section(RunConfig, anchors)]
    for command, run in TRAININGS.items():
        parts += [f"## twostage {command}", _doc(run), *_section(run, anchors, own=True)]
    parts += ["## Models of one stage", "Settings `model.…` of `twostage train-enhancer NAME`."]
    for name, (config, module) in ENHANCERS.items():
        if name != "two-stage":
            parts += [f"### {name}", _doc(module), _doc(config), table(settings(config), "model.")]
    parts += [
        "## Sensors",
        _SENSORS.format(", ".join(f"`{name}`" for name in PRESETS)),
        _doc(Sensor),
        table(settings(Sensor), ""),
    ]
    parts += ["## Shipped files", "As `configs/` has them; `twostage train-restorer restorer adapt` takes two of them."]
    for path in [
        path for part in (".", BASELINES, CORPORA) for path in sorted(ROOT.joinpath("configs", part).glob("*.yaml"))
    ]:
        name = path.relative_to(ROOT / "configs").with_suffix("")
        parts += [f'??? note "{name}"\n\n    ```yaml\n{_indented(path.read_text(encoding="utf-8"))}\n    ```']
    return "\n\n".join(filter(None, parts)) + "\n"


_INTRODUCTION = """# Configuration

A setting is a field of a dataclass: in YAML `section: {field: value}`, on the command line `section.field=value`.
Files and values are merged from left to right, and what is unknown, of the wrong type or impossible is an error of one
line before anything runs:

```
twostage train-restorer restorer mine.yaml data.batch_size=8 optimizer.learning_rate=5e-4
```

The merged settings lie in the training's directory as `config.yaml`. This page is made from the source
(`twostage/training/config.py` and what it names); the defaults are those of the dataclasses, which the
[shipped files](#shipped-files) change."""

_SENSORS = """What a YAML file of `data.sensors` may say, and `twostage fit-sensor` writes. These presets need no file:
{}. `any` draws another sensor for every segment."""


def _section(cls: type, anchors: dict[type, str], prefix: str = "", *, own: bool = False) -> Iterator[str]:
    """The table of a dataclass, then those of its sections; of one that is ``anchors`` already, where."""
    fields = settings(cls, own=own)
    yield table([one for one in fields if not one.section], prefix)
    for one in fields:
        if one.section:
            name = f"{prefix}{one.name}"
            anchor = anchors.get(one.section)
            here = anchors.setdefault(one.section, f"{cls.__name__}.{one.name}".lower())
            yield f"{'####' if prefix else '###'} {name}" + ("" if anchor else f" {{#{here}}}")
            if anchor:
                yield f"{one.meaning[0].upper()}{one.meaning[1:]}. Fields as [above](#{anchor})."
            else:
                yield _doc(one.section)
                yield from _section(one.section, anchors, f"{name}.")


def _doc(cls: type) -> str:
    """The docstring, ``x`` as `x`, and paragraphs."""
    text = re.sub(r"``(.+?)``", r"`\1`", (cls.__doc__ or "").replace("\n    ", "\n").strip())
    return "" if text.startswith(f"{cls.__name__}(") else text


def table(rows: list[Setting], prefix: str) -> str:
    if not rows:
        return ""
    lines = ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
    for row in rows:
        default = f"`{row.default}`" if row.default else "must be given"
        cells = (f"`{prefix}{row.name}`", row.kind, default, row.meaning)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


def commands() -> str:
    """What ``--help`` says of every command."""
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), WIDTH
    try:
        parts = [_COMMANDS, *_helps("twostage", cli.parser(), "##")]
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return "\n\n".join(parts) + "\n"


_COMMANDS = """# Commands

What `--help` says. Exit codes: 0, all is well; 1, something failed, and a line on stderr says what; 2, wrong usage;
130, Ctrl-C."""


def _helps(name: str, parser: argparse.ArgumentParser, level: str) -> Iterator[str]:
    if level != "##":
        yield f"{level[1:]} {name}"
    yield f"```text\n{parser.format_help().rstrip()}\n```"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                yield from _helps(f"{name} {word}", sub, level + "#")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.strip().splitlines())
