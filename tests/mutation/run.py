"""Makes one small mistake at a time in a copy of the code, and reports whether the tests notice it.

    python tests/mutation/run.py -o results/mutation               # all of changes.yaml; continues where it stopped
    python tests/mutation/run.py -o results/mutation --only losses
    python tests/mutation/run.py -o results/mutation --report docs/RELIABILITY.md   # the table there

Exit code 1 if a change survives that changes.yaml does not expect to survive.
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
CHANGES = Path(__file__).with_name("changes.yaml")
# except libraries that start threads
PRELOADED = (
    *("torch", "torch.utils.tensorboard", "librosa", "scipy.signal", "scipy.optimize", "soundfile", "omegaconf"),
    *("pystoi", "pesq", "onnx", "safetensors.torch", "PIL.Image", "matplotlib"),
)
NOTHING_RAN = 5  # pytest's exit code
BEGIN, END = "<!-- mutation: begin -->\n", "<!-- mutation: end -->\n"


@dataclass(frozen=True)
class Change:
    """A mistake: in ``file``, ``old`` is replaced by ``new``, which ``tests`` must notice."""

    file: str
    old: str
    new: str
    why: str
    tests: Sequence[str]
    survives: str = ""  # the reason why no test can notice; empty if one must

    @property
    def subpackage(self) -> str:
        """The folder of the package that the file is in."""
        return Path(self.file).parts[1]

    @property
    def key(self) -> str:
        """The key under which its result is stored."""
        return json.dumps([self.file, self.old, self.new])

    def applied(self, text: str) -> str:
        """The text of the file with the mistake. Raises ValueError if ``old`` does not occur exactly once."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file}: found {text.count(self.old)} times, must be once: {self.old!r}")
        return text.replace(self.old, self.new)


def read_changes(path: Path = CHANGES) -> list[Change]:
    """The changes of a YAML file, which lists the tests and changes of each file; a change may have its own tests."""
    return [
        Change(file, **({"tests": group["tests"]} | change))
        for file, group in yaml.safe_load(path.read_text()).items()
        for change in group["changes"]
    ]


class Trial:
    """The tests of a change in ``tree``, a copy of the repository, in a separate process.

    It is forked from this one, which has already imported slow packages.
    """

    def __init__(self, change: Change, tree: Path, seconds: float) -> None:
        self.change, self.tree, self._deadline = change, tree, time.monotonic() + seconds
        self._original = (tree / change.file).read_text()
        (tree / change.file).write_text(change.applied(self._original))
        self._process = get_context("fork").Process(target=_run_tests, args=(tree, change.tests))
        self._process.start()

    def verdict(self) -> str:
        """`killed`, `survived` or `timed out`; empty while the tests run."""
        timed_out = time.monotonic() > self._deadline
        if self._process.is_alive() and not timed_out:
            return ""
        if timed_out:
            self._process.kill()
        self._process.join()
        (self.tree / self.change.file).write_text(self._original)
        if timed_out:
            return "timed out"
        code = self._process.exitcode
        if code == NOTHING_RAN:
            raise SystemExit(f"{self.change.file}: {', '.join(self.change.tests)}: there is no such test")
        return "killed" if code else "survived"  # also if a signal ended it


def _run_tests(tree: Path, tests: Sequence[str]) -> None:
    """Run tests without output, and end the process with pytest's exit code."""
    os.chdir(tree)
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(tree)]
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os._exit(pytest.main(["-p", "no:cacheprovider", "-n", "0", "-x", "-q", *tests]))


def preload() -> None:
    """Import the packages that the tests need."""
    for name in PRELOADED:
        with suppress(ImportError):
            importlib.import_module(name)


def copy_repository(folder: Path) -> Path:
    """Copy the files that git tracks into a folder."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def verdicts(changes: Iterable[Change], jobs: int, seconds: float) -> Iterator[tuple[Change, str]]:
    """Yield the verdict of each change when it is known; ``jobs`` changes run at a time, each in its own copy."""
    preload()
    todo, running = iter(changes), list[Trial]()
    with tempfile.TemporaryDirectory() as folder:
        trees = [copy_repository(Path(folder, str(number))) for number in range(jobs)]
        while True:
            running += [Trial(change, trees.pop(), seconds) for change in islice(todo, len(trees))]
            if not running:
                return
            time.sleep(0.05)
            for trial in list(running):
                if outcome := trial.verdict():
                    running.remove(trial)
                    trees.append(trial.tree)
                    yield trial.change, outcome


def table(changes: Sequence[Change], results: dict[str, str]) -> str:
    """A Markdown table of the changes of each subpackage and how many survived, and a list of those that did."""
    total = Counter(change.subpackage for change in changes if change.key in results)
    survivors = [change for change in changes if results.get(change.key) == "survived"]
    survived = Counter(change.subpackage for change in survivors)
    lines = ["| subpackage | changes | survived |", "| --- | ---: | ---: |"]
    lines += [f"| `{subpackage}/` | {total[subpackage]} | {survived[subpackage]} |" for subpackage in sorted(total)]
    lines += [f"| all | {total.total()} | {len(survivors)} |"]
    if survivors:
        lines += ["", "What survived:", ""]
        lines += [f"- `{change.file}`, {change.why}: {change.survives or 'no test yet'}" for change in survivors]
    return "\n".join(lines) + "\n"


def write_report(path: Path, text: str) -> None:
    """Put ``text`` between the markers of a document."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", default="", help="part of a file's name")
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel processes")
    parser.add_argument("--timeout", type=float, default=600, help="seconds per change")
    parser.add_argument("--again", action="store_true", help="try again what survived")
    parser.add_argument("--report", type=Path, help="a document to put the table of all results into")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    results_path = arguments.output / "results.json"
    results: dict[str, str] = json.loads(results_path.read_text()) if results_path.exists() else {}
    changes = read_changes()
    chosen = [change for change in changes if arguments.only in change.file]
    todo = [c for c in chosen if c.key not in results or (arguments.again and results[c.key] == "survived")]
    for number, (change, outcome) in enumerate(verdicts(todo, arguments.jobs, arguments.timeout), 1):
        results[change.key] = outcome
        temporary = results_path.with_suffix(".part")
        temporary.write_text(json.dumps(results, indent=1))
        temporary.replace(results_path)
        print(f"{number}/{len(todo)} {outcome}: {change.file}: {change.why}", flush=True)
    print(table(changes, results))
    if arguments.report:
        write_report(arguments.report, table(changes, results))
    return int(any(results[change.key] == "survived" and not change.survives for change in chosen))


if __name__ == "__main__":
    sys.exit(main())
