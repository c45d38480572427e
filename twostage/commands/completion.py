"""``twostage completion``: the script that lets a shell complete commands, options, values and names."""

from argparse import Action, ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HELP = "print a completion script for bash, zsh or fish"
EXAMPLE = """
twostage completion bash
"""
PACKAGE = Path(__file__).parent.parent
HOMES = (PACKAGE, PACKAGE.parent)  # installed, or in the repository
NAMED = {"model": ("checkpoints", "*/*.safetensors"), "settings": ("configs", "**/*.yaml")}


@dataclass(frozen=True)
class Level:
    """A command: its words after ``twostage``, its help, and its possible arguments."""

    path: tuple[str, ...]
    help: str
    commands: tuple[str, ...]
    actions: tuple[Action, ...]

    @property
    def options(self) -> list[str]:
        return [option for action in self.actions for option in action.option_strings]

    @property
    def names(self) -> list[str]:
        """Possible positional arguments other than files."""
        positionals = [action for action in self.actions if not action.option_strings]
        return [*self.commands, *(value for action in positionals for value in values_of(action))]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(args: Namespace) -> int:
    levels = list(walk(args.parser))
    print({"bash": bash, "zsh": zsh, "fish": fish}[args.shell](levels))
    return 0


def walk(parser: ArgumentParser, path: tuple[str, ...] = (), help: str = "") -> Iterator[Level]:
    """A parser and all of its subparsers."""
    below: dict[str, tuple[ArgumentParser, str]] = {}
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            help_of = {choice.dest: choice.help or "" for choice in action._choices_actions}
            below |= {name: (sub, help_of.get(name, "")) for name, sub in action.choices.items()}
    actions = tuple(action for action in parser._actions if not isinstance(action, _SubParsersAction))
    yield Level(path, help, tuple(below), actions)
    for name, (sub, sub_help) in below.items():
        yield from walk(sub, (*path, name), sub_help)


def values_of(action: Action) -> list[str]:
    """Known values of an option or positional argument: its choices, or the names of shipped models or settings."""
    if action.choices:
        return [str(choice) for choice in action.choices]
    folder, pattern = NAMED.get(action.dest, ("", ""))
    files = {file for folder_root in HOMES if folder for file in (folder_root / folder).glob(pattern)}
    return sorted({file.parent.name if folder == "checkpoints" else file.stem for file in files})


def bash(levels: list[Level]) -> str:
    known = " ".join(f'"{" ".join(level.path)}"' for level in levels if level.path)
    lines = [
        "# completion of twostage for bash",
        "_twostage() {",
        '    local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}" path="" word known options names',
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        f"        for known in {known}; do",
        '            if [ "${path:+$path }$word" = "$known" ]; then path="$known"; break; fi',
        "        done",
        "    done",
        '    case "$path $prev" in',
    ]
    for level in levels:
        for action in level.actions:
            if action.option_strings and (values := values_of(action)):
                cases = "|".join(f'"{" ".join(level.path)} {option}"' for option in action.option_strings)
                lines.append(f'        {cases}) COMPREPLY=($(compgen -W "{" ".join(values)}" -- "$cur")); return ;;')
    lines += ["    esac", '    case "$path" in']
    for level in levels:
        words = f'options="{" ".join(level.options)}"; names="{" ".join(level.names)}"'
        lines.append(f'        "{" ".join(level.path)}") {words} ;;')
    lines += [
        "    esac",
        '    case "$cur" in',
        '        -*) COMPREPLY=($(compgen -W "$options" -- "$cur")) ;;',
        '        *) COMPREPLY=($(compgen -W "$names" -- "$cur")) ;;',
        "    esac",
        "}",
        "complete -o default -F _twostage twostage",
    ]
    return "\n".join(lines)


def zsh(levels: list[Level]) -> str:
    """The completion of bash, which zsh can run."""
    head = "# completion of twostage for zsh: source it from ~/.zshrc\nautoload -Uz compinit bashcompinit"
    return f"{head}\n(( $+functions[compdef] )) || compinit\nbashcompinit\n{bash(levels)}"


def fish(levels: list[Level]) -> str:
    lines = ["# completion of twostage for fish"]
    by_path = {level.path: level for level in levels}
    for level in levels:
        seen = [f"__fish_seen_subcommand_from {word}" for word in level.path]
        missing = [f"not __fish_seen_subcommand_from {' '.join(level.commands)}"] if level.commands else []
        when = f"complete -c twostage -n {_quoted('; and '.join([*seen, *missing]) or 'true')}"
        lines += [f"{when} -a {name} -d {_quoted(by_path[(*level.path, name)].help)}" for name in level.commands]
        lines += [when + words for words in map(_fish_words, level.actions) if words]
    return "\n".join(lines)


def _fish_words(action: Action) -> str:
    values = values_of(action)
    offered = f" -a {_quoted(' '.join(values))}" if values else ""
    if not action.option_strings:
        return offered
    names = [f"-l {o[2:]}" if o.startswith("--") else f"-s {o[1:]}" for o in action.option_strings]
    takes = "" if action.nargs == 0 else " -x" if action.choices else " -r"
    return f" {' '.join(names)}{takes}{offered} -d {_quoted((action.help or '').replace('%%', '%'))}"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
