"""Tests of the documents: commands, options, files and names that they mention exist, and their code runs."""

import pkgutil
import re
import shlex
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from twostage import cli
from twostage.audio import sound_files
from twostage.commands.options import training_settings
from twostage.data.corpora import CORPORA
from twostage.models import checkpoint, model_files
from twostage.models.two_stage import TwoStage
from twostage.training.config import FinetuneRun, RestorerRun, VocoderRun

ROOT = Path(__file__).parents[2]
TRAININGS = {"train-restorer": RestorerRun, "train-vocoder": VocoderRun, "finetune": FinetuneRun}


# the documents except the changelog, whose older entries may mention what no longer exists
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
DOCUMENTS += sorted(ROOT.glob("checkpoints/*/CARD.md"))
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SHELL = ("", "bash", "sh", "shell", "console")

# scripts that run subcommands
SCRIPT_OF_COMMAND = re.compile(r"(?:torchrun .*?|python )scripts/(train|finetune)(?:_(\w+))?\.py")


def blocks(*languages: str) -> Iterator[tuple[str, str]]:
    """Names of documents and their blocks of code in one of these languages."""
    for name, text in TEXTS.items():
        for _, language, block in BLOCK.findall(text):
            if language in languages:
                yield name, block


def spans(without: str = "-") -> Iterator[str]:
    """Inline code of the documents, except those below a folder."""
    for text in (text for name, text in TEXTS.items() if not name.startswith(without)):
        yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", BLOCK.sub("", text)))


def lines(text: str) -> Iterator[list[str]]:
    """The arguments of every command in shell lines, its name included."""
    for line in text.replace("\\\n", " ").splitlines():
        line = SCRIPT_OF_COMMAND.sub(lambda match: "twostage " + "-".join(filter(None, match.groups())), line)
        for part in line.replace("|", "&&").split("&&"):
            yield shlex.split(part, comments=True)


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every ``twostage ...`` in shell lines."""
    yield from (arguments for program, *arguments in filter(None, lines(text)) if program == "twostage")


def documented() -> Iterator[list[str]]:
    for _, block in blocks(*SHELL):
        yield from commands(block)
    for module in cli.COMMANDS.values():
        yield from commands(module.EXAMPLE)
    for file in (ROOT / "configs").glob("*.yaml"):  # usage examples in comments
        yield from commands("\n".join(re.findall(r"^#   (.*)", file.read_text(encoding="utf-8"), re.MULTILINE)))


# without repetitions, since the site repeats parts of the README
DOCUMENTED = [shlex.split(line) for line in dict.fromkeys(shlex.join(arguments) for arguments in documented())]
SCRIPTS = [words[1:] for _, block in blocks(*SHELL) for words in lines(block) if words[:1] == ["python"]]
SCRIPTS = [words for words in SCRIPTS if words[0].startswith(("scripts/", "tests/"))]
MENTIONED = sorted(
    {span for span in spans() if re.match(r"(twostage$|twostage |(python )?(scripts/|tests/run_))", span)}
)
NAMES = sorted({span for span in spans() if re.fullmatch(r"twostage(\.\w+)+", span)})
# without guides, whose readers create some of the files
FILES = sorted(
    {f for f in spans("docs/guide/") if re.fullmatch(r"(twostage|configs|tests|samples|docs)/[a-z0-9_./-]*", f)}
)
PYTHON = [(name, number, block) for number, (name, block) in enumerate(blocks("python"))]


def test_every_subcommand_is_documented() -> None:
    assert {arguments[0] for arguments in DOCUMENTED} == cli.COMMANDS.keys()
    assert len(DOCUMENTED) > 25


@pytest.mark.parametrize("arguments", DOCUMENTED, ids=" ".join)
def test_a_documented_command_exists_with_its_options(arguments: list[str]) -> None:
    cli.parse(arguments)  # exits if not


@pytest.mark.parametrize(
    "arguments", [a for a in DOCUMENTED if a[0] in TRAININGS and "--resume" not in a], ids=" ".join
)
def test_documented_settings_of_a_training_are_valid(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in map(Path, re.findall(r"[\w./-]+\.(?:jsonl|csv)", " ".join(["x.csv", *arguments]))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for corpus in CORPORA:  # shipped settings name the manifests that an import writes
        Path("corpora", corpus).mkdir(parents=True, exist_ok=True)
        for split in ("train", "valid"):
            Path("corpora", corpus, f"{split}.jsonl").touch()
    for folder in re.findall(r"data\.noise=(\S+)", " ".join(arguments)):
        Path(folder).mkdir()
    Path("mine.yaml").write_text("run_dir: r\ndata: {train: [x.csv], valid: [x.csv]}\n")
    args = cli.parse(arguments)
    args.settings = ["mine.yaml" if "..." in text else text for text in args.settings]
    first = [text for text in args.settings if "=" not in text and text != "mine.yaml"]
    inputs = Namespace(directory=args.directory, resume=False, settings=[*first, "mine.yaml", *args.settings])
    assert training_settings(inputs, TRAININGS[arguments[0]]).run_dir  # an unknown or invalid setting raises


@pytest.mark.parametrize("options", [["--run", "r"], ["--run", "r", "--resume"], ["--run=r", "--resume"]])
def test_settings_may_precede_or_follow_options(options: list[str]) -> None:
    settings = ["restorer", "mine.yaml", "steps=3", "data.batch_size=2"]
    for index in range(len(settings) + 1):
        args = cli.parse(["train-restorer", *settings[:index], *options, *settings[index:]])
        assert (args.settings, args.directory) == (settings, "r")


@pytest.mark.parametrize("arguments", [["train-restorer", "a.yaml", "--runs", "r"], ["simulate", "a", "b", "c"]])
def test_unknown_arguments_are_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.parse(arguments)
    assert "unrecognized arguments" in capsys.readouterr().err


def test_the_commands_of_leave_one_out_exist(
    tmp_path: Path,
    paired_corpus: Path,
    tiny: TwoStage,
    load_script: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint.save(tmp_path / "checkpoints" / "default" / "both.safetensors", tiny, provenance={})
    monkeypatch.setattr(model_files, "SHIPPED", (tmp_path / "checkpoints",))
    script = load_script("leave_one_out")
    inputs: list[Namespace] = []

    def record(arguments: list[str]) -> int:
        inputs.append(cli.parse(arguments))
        return 0

    monkeypatch.setattr(cli, "main", record)
    options = ["--pairs", str(paired_corpus), "--clean", "clean.csv", "--init", "default", "--vocoder", "default"]
    monkeypatch.setattr("sys.argv", ["leave_one_out.py", *options, "-o", str(tmp_path / "loo"), "steps=3"])
    script.main()
    assert len(inputs) == 2 * 3 + 1
    assert [args.exclude_speaker for args in inputs if "exclude_speaker" in args] == [["s0"], ["s1"]]
    assert [args.only_speaker for args in inputs if getattr(args, "pairs", None) and "model" in args] == [
        ["s0"],
        ["s1"],
    ]
    assert checkpoint.read_header(tmp_path / "loo" / "vocoder.safetensors").kind == "vocoder"


def test_speakers_are_left_out_several_at_a_time(load_script: Callable[[str], ModuleType]) -> None:
    groups = load_script("leave_one_out").groups
    assert groups(["a", "b", "c"], 1) == [["a"], ["b"], ["c"]]
    assert groups(["a", "b", "c", "d", "e"], 2) == [["a", "d"], ["b", "e"], ["c"]]


class ParserBuilt(Exception):
    """Carries the parser of a script, when the script would use it."""


@pytest.fixture(scope="session")
def parser_of(load_script: Callable[[str], ModuleType]) -> Callable[[str], ArgumentParser]:
    def parser(script: str) -> ArgumentParser:
        """The parser of a script, given its path below the repository's root."""

        def stop(self: ArgumentParser, *_: object) -> None:
            raise ParserBuilt(self)

        main = load_script(script).main
        with pytest.MonkeyPatch.context() as patch:
            for name in ("parse_args", "parse_intermixed_args"):
                patch.setattr(ArgumentParser, name, stop)
            with pytest.raises(ParserBuilt) as raised:
                main()
        built: ArgumentParser = raised.value.args[0]
        return built

    return parser


def options_of(parser: ArgumentParser) -> set[str]:
    """The options of a parser and of its subparsers."""
    options = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            options |= set().union(*map(options_of, action.choices.values()))
    return options


def test_the_documents_contain_scripts_commands_and_python() -> None:
    assert len(SCRIPTS) >= 3
    assert len(MENTIONED) > 20
    assert {"README.md", "docs/restore.md", "docs/stream.md", "docs/EXPORT.md"} <= {name for name, _, _ in PYTHON}


@pytest.mark.parametrize("words", SCRIPTS, ids=" ".join)
def test_a_documented_script_accepts_its_arguments(
    words: list[str], parser_of: Callable[[str], ArgumentParser]
) -> None:
    parser_of(words[0]).parse_args(words[1:])  # exits if not


@pytest.mark.parametrize("span", MENTIONED)
def test_a_mentioned_command_or_script_exists_with_its_options(
    span: str, parser_of: Callable[[str], ArgumentParser]
) -> None:
    program, *arguments = span.removeprefix("python ").split()
    options = {argument.partition("=")[0] for argument in arguments if re.match(r"--?[a-z]", argument)}
    if program != "twostage":
        assert (ROOT / program).is_file()
        accepted = options_of(parser_of(program)) if options else set()
    elif not arguments or arguments[0].startswith("-"):
        accepted = options_of(cli.parser())
    else:
        top = next(action for action in cli.parser()._actions if isinstance(action, _SubParsersAction))
        assert arguments[0] in top.choices, f"no command {arguments[0]}"
        accepted = options_of(top.choices[arguments[0]])
    assert options <= accepted


@pytest.mark.parametrize("name", NAMES)
def test_a_mentioned_name_can_be_imported(name: str) -> None:
    actual = pkgutil.resolve_name(name)
    assert actual is not None


@pytest.mark.parametrize("name", FILES)
def test_a_mentioned_file_exists(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize(("name", "block"), [pytest.param(n, b, id=f"{n}-{i}") for n, i, b in PYTHON])
def test_documented_python_compiles(name: str, block: str) -> None:
    compile(block, name, "exec")


# their blocks run in order, with the names and files below; blocks of other documents need what only readers have
@pytest.mark.parametrize("name", ["README.md", "docs/start.md", "docs/restore.md", "docs/stream.md"])
def test_documented_python_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = sound_files.read(ROOT / "samples" / "throat.flac", frames=8000)[0]
    for name_of_file in ("samples/throat.flac", "recording.wav"):
        sound_files.write(tmp_path / name_of_file, sound, 16000)
    monkeypatch.chdir(tmp_path)
    played: list[np.ndarray] = []
    hops = np.split(sound[0], range(1000, 8000, 1000))
    namespace: dict[str, Any] = {"audio": sound, "sample_rate": 16000, "microphone": hops, "play": played.append}
    for _, _, block in (snippet for snippet in PYTHON if snippet[0] == name):
        exec(block, namespace)
    assert "restored" in namespace or sum(map(len, played)) == 8000
    assert "report" not in namespace or namespace["report"].seconds == 0.5
    assert ("report" in namespace) == (name == "docs/restore.md")
