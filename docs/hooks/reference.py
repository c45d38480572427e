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
    for name, content in (configuration() | {"commands.md": commands()}).items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_content(text: str, page: Any, **_: Any) -> str:
    return f'<div class="settings">{text}</div>' if page.file.src_uri.startswith("configuration") else text


def configuration() -> dict[str, str]:
    """Every field of every run, as tables: pages by their names. ``places`` says where a section stands already."""
    places: dict[type, str] = {}
    pages = {"configuration.md": [_INTRODUCTION, "## Every training", _doc(RunConfig)]}
    pages["configuration.md"] += _section(RunConfig, places, "configuration.md")
    for command, run in TRAININGS.items():
        name = f"configuration/{command}.md"
        pages[name] = [f"# twostage {command}", _ALL_TRAININGS, _doc(run), *_section(run, places, name, own=True)]
    systems = pages["configuration/train-enhancer.md"]
    systems += ["## Systems", "The settings `model.…` of `twostage train-enhancer NAME`, by the name of the system."]
    for name, (config, module) in ENHANCERS.items():
        if name != "two-stage":
            systems += [f"### {name}", _doc(module), _doc(config), table(settings(config), "model.")]
    presets = ", ".join(f"`{name}`" for name in PRESETS)
    pages["configuration/sensors.md"] = [_SENSORS.format(presets), _doc(Sensor), table(settings(Sensor), "")]
    pages["configuration/files.md"] = [_FILES, *_shipped_files()]
    return {name: "\n\n".join(filter(None, parts)) + "\n" for name, parts in pages.items()}


def _shipped_files() -> Iterator[str]:
    """Each file of ``configs/``, folded."""
    for part in (".", BASELINES, CORPORA):
        for path in sorted(ROOT.joinpath("configs", part).glob("*.yaml")):
            name = path.relative_to(ROOT / "configs").with_suffix("")
            yield f'??? note "{name}"\n\n    ```yaml\n{_indented(path.read_text(encoding="utf-8"))}\n    ```'


_INTRODUCTION = """# Configuration

A training takes settings files and single settings. In a YAML file a setting is `section: {field: value}`, on the
command line `section.field=value`. Files and values are merged from left to right:

```
twostage train-restorer restorer mine.yaml data.batch_size=8 optimizer.learning_rate=5e-4
```

`restorer` is one of the [shipped files](configuration/files.md), and `mine.yaml` is a file of your own. A setting
that is unknown, of the wrong type or impossible is an error of one line before anything runs. `twostage config show`
prints the merged settings, and the folder of the training contains them as `config.yaml`.

This page lists the settings that all trainings have; the following pages list those of each command. They are
generated from the dataclasses in `twostage/training/config.py`, and the defaults are those of the dataclasses,
before any file. The settings of [sensors](configuration/sensors.md) have a page of their own."""

_ALL_TRAININGS = (
    "This command has the settings of [every training](../configuration.md#every-training), and the following:"
)

_SENSORS = """# Sensors

A sensor is a YAML file with these fields. `twostage fit-sensor` writes one, and `data.sensors` of a training and
`--sensor` of `twostage simulate` take its path. These presets need no file: {}. `any` draws another sensor for every
segment."""

_FILES = """# Shipped files

These are the settings files of `configs/`, by the names that the training commands take. `twostage train-restorer
restorer adapt` merges two of them, and `twostage config list` lists their names."""


def _section(cls: type, places: dict[type, str], page: str, prefix: str = "", *, own: bool = False) -> Iterator[str]:
    """The table of a dataclass, then those of its sections; of one that has a place already, a link to it."""
    fields = settings(cls, own=own)
    yield table([one for one in fields if not one.section], prefix)
    for one in fields:
        if one.section:
            name, place = f"{prefix}{one.name}", places.get(one.section)
            anchor = f"{cls.__name__}.{one.name}".lower()
            places.setdefault(one.section, f"{page}#{anchor}")
            yield f"{'###' if prefix else '##'} {name}" + ("" if place else f" {{#{anchor}}}")
            if place:
                link = os.path.relpath(place, Path(page).parent)
                yield f"{one.meaning[0].upper()}{one.meaning[1:]}. Its fields are [those of the same type]({link})."
            else:
                yield _doc(one.section)
                yield from _section(one.section, places, page, f"{name}.")


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
    """The help text of every command."""
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

This page contains the help text of every command, as `--help` prints it. The exit codes of all commands are:

| exit code | meaning |
| ---: | --- |
| 0 | the command succeeded |
| 1 | something failed, and a line on stderr names it |
| 2 | wrong usage |
| 130 | the command was stopped with Ctrl-C or SIGTERM |"""


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
