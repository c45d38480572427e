"""Claims about what we tell people to type: every command in the README, --help and scripts exists."""

import re
import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from twostage import checkpoint, cli
from twostage.commands import training
from twostage.config import FinetuneRun, RestorerRun, VocoderRun
from twostage.pipeline import TwoStage

ROOT = Path(__file__).parent.parent
TRAININGS = {"train-restorer": RestorerRun, "train-vocoder": VocoderRun, "finetune": FinetuneRun}


TORCHRUN = re.compile(r"torchrun .*?scripts/(\w+)_(\w+)\.py")  # scripts stand for their subcommands


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every ``twostage ...`` in lines of a shell."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in TORCHRUN.sub(r"twostage \1-\2", line).replace("|", "&&").split("&&"):
            program, *arguments = shlex.split(part, comments=True) or [""]
            if program == "twostage":
                yield arguments


def told() -> Iterator[list[str]]:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/CLUSTER.md"))
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from () if language else commands(block)
    for module in cli.COMMANDS.values():
        yield from commands(module.EXAMPLE)
    for file in (ROOT / "configs").glob("*.yaml"):  # their comments, where they say how to use them
        yield from commands("\n".join(re.findall(r"^#   (.*)", file.read_text(encoding="utf-8"), re.MULTILINE)))


TOLD = list(told())


def test_there_are_commands_for_every_subcommand() -> None:
    assert {arguments[0] for arguments in TOLD} == cli.COMMANDS.keys()
    assert len(TOLD) > 25


@pytest.mark.parametrize("arguments", TOLD, ids=" ".join)
def test_a_command_that_is_told_exists_with_these_options(arguments: list[str]) -> None:
    cli.parse(arguments)  # exits if not


@pytest.mark.parametrize("arguments", [a for a in TOLD if a[0] in TRAININGS and "--resume" not in a], ids=" ".join)
def test_the_settings_that_are_told_are_ones_that_a_training_takes(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in re.findall(r"[\w.]+\.(?:jsonl|csv)", " ".join(["x.csv", *arguments])):
        Path(path).touch()
    for folder in re.findall(r"data\.noise=(\S+)", " ".join(arguments)):
        Path(folder).mkdir()
    Path("mine.yaml").write_text("run: r\ndata: {train: [x.csv], valid: [x.csv]}\n")
    args = cli.parse(arguments)
    args.settings = ["mine.yaml" if "..." in text else text for text in args.settings]
    first = [text for text in args.settings if "=" not in text and text != "mine.yaml"]
    given = Namespace(directory=args.directory, resume=False, settings=[*first, "mine.yaml", *args.settings])
    assert training.settings(given, TRAININGS[arguments[0]]).run  # an unknown or impossible setting raises


@pytest.mark.parametrize("options", [["--run", "r"], ["--run", "r", "--resume"], ["--run=r", "--resume"]])
def test_settings_may_stand_before_and_behind_options(options: list[str]) -> None:
    settings = ["restorer", "mine.yaml", "steps=3", "data.batch=2"]
    for place in range(len(settings) + 1):
        args = cli.parse(["train-restorer", *settings[:place], *options, *settings[place:]])
        assert (args.settings, args.directory) == (settings, "r")


@pytest.mark.parametrize("arguments", [["train-restorer", "a.yaml", "--runs", "r"], ["simulate", "a", "b", "c"]])
def test_what_no_command_takes_is_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.parse(arguments)
    assert "unrecognized arguments" in capsys.readouterr().err


def test_leaving_speakers_out_gives_commands_that_exist(
    tmp_path: Path,
    paired_corpus: Path,
    tiny: TwoStage,
    load_script: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint.save(tmp_path / "checkpoints" / "default" / "both.safetensors", tiny, provenance={})
    monkeypatch.setattr(checkpoint, "SHIPPED", (tmp_path / "checkpoints",))
    script = load_script("leave_one_out")
    given: list[Namespace] = []

    def record(arguments: list[str]) -> int:
        given.append(cli.parse(arguments))
        return 0

    monkeypatch.setattr(script, "twostage", record)
    options = ["--pairs", str(paired_corpus), "--clean", "clean.csv", "--init", "default", "--vocoder", "default"]
    monkeypatch.setattr("sys.argv", ["leave_one_out.py", *options, "-o", str(tmp_path / "loo"), "steps=3"])
    script.main()
    assert len(given) == 2 * 3 + 1
    assert [args.exclude_speaker for args in given if "exclude_speaker" in args] == [["s0"], ["s1"]]
    assert [args.only_speaker for args in given if getattr(args, "pairs", None) and "model" in args] == [["s0"], ["s1"]]
    assert checkpoint.read_header(tmp_path / "loo" / "vocoder.safetensors").kind == "vocoder"
