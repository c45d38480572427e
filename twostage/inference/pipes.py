"""Standard input and output instead of files. They are buffered on disk, because sound is read twice."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from twostage.audio.sound_files import FORMATS
from twostage.utils.errors import ConfigError

STANDARD = "-"


@dataclass(frozen=True)
class Ends:
    """Inputs and outputs of a restoration, with temporary files in place of "-"."""

    inputs: tuple[str, ...]
    out: str
    names: Mapping[str, str] = field(default_factory=dict)  # names of the streams by the files that replace them
    to_stdout: bool = False

    def name(self, path: object) -> str:
        """The name of a file for messages: that of the stream if the file replaces one."""
        return self.names.get(str(path), str(path))

    def deliver(self) -> None:
        """Copy the output to standard output, if it goes there."""
        if self.to_stdout and Path(self.out).exists():
            with open(self.out, "rb") as output:
                shutil.copyfileobj(output, sys.stdout.buffer)
            sys.stdout.buffer.flush()


@contextmanager
def ends(inputs: Sequence[str], out: str, suffix: str | None) -> Iterator[Ends]:
    """Provide files that replace "-" among ``inputs`` and as ``out``, within the block.

    The format of standard output is ``suffix``, else that of the input's name, else WAV.
    """
    if STANDARD not in (*inputs, out):
        yield Ends(tuple(inputs), out)
        return
    if STANDARD in inputs and sys.stdin.isatty():
        raise ConfigError("standard input is a terminal: pipe a sound file in, or name one")
    if out == STANDARD and len(inputs) > 1:
        raise ConfigError(f"-o -: takes one input, there are {len(inputs)}")
    if out == STANDARD and inputs[0] != STANDARD and not Path(inputs[0]).is_file():
        raise ConfigError(f"-o -: takes one file, {inputs[0]} is not a file")
    with TemporaryDirectory(prefix="twostage-") as name:
        folder = Path(name)
        if STANDARD in inputs:
            with open(folder / "stdin", "wb") as stdin_copy:
                shutil.copyfileobj(sys.stdin.buffer, stdin_copy)
        ending = Path(inputs[0]).suffix.lower().lstrip(".")
        kind = suffix or (ending if ending in FORMATS else "wav")
        stdin, stdout = str(folder / "stdin"), str(folder / f"stdout.{kind}")
        sources = tuple(stdin if source == STANDARD else source for source in inputs)
        names = {stdin: "standard input", stdout: "standard output"}
        yield Ends(sources, stdout if out == STANDARD else out, names, out == STANDARD)
