"""Tests of the list of code mistakes that tests must notice; tests/mutation/run.py checks whether they do."""

import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runner(load_script) -> ModuleType:
    return load_script("tests/mutation/run.py")


def test_every_change_still_applies(runner: ModuleType) -> None:
    changes = runner.read_changes()
    assert len(changes) >= 150
    assert len({change.key for change in changes}) == len(changes)
    for change in changes:
        changed = change.applied((ROOT / change.file).read_text())
        compile(changed, change.file, "exec")
        assert change.old != change.new
        assert change.why
        assert change.tests
        assert all((ROOT / test).is_file() for test in change.tests)
    subpackages = {change.subpackage for change in changes}
    assert {"training", "data", "models", "inference", "evaluation", "nn", "utils"} <= subpackages
    assert sum(bool(change.survives) for change in changes) <= 0.05 * len(changes)


def test_a_text_that_does_not_occur_exactly_once_is_an_error(runner: ModuleType) -> None:
    change = runner.Change("twostage/a.py", "x", "y", "why", ("tests/t.py",))
    assert change.applied("a = x") == "a = y"
    for text, times in ("a", 0), ("x = x", 2):
        with pytest.raises(ValueError, match=f"twostage/a.py: found {times} times"):
            change.applied(text)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_a_mistake_is_either_killed_or_survives(runner: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("def double(x):\n    return 2 * x + 0\n")
    (tmp_path / "test_code.py").write_text(
        "from code_of import double\ndef test_double():\n    assert double(3) == 6\n"
    )
    (tmp_path / "code.py").rename(tmp_path / "code_of.py")
    outcomes = {}
    for old, new in ("2 * x", "3 * x"), ("+ 0", "- 0"), ("def double", "def twice"):
        change = runner.Change("code_of.py", old, new, "why", ("test_code.py",))
        trial = runner.Trial(change, tmp_path, 60)
        while not (outcome := trial.verdict()):
            time.sleep(0.05)
        outcomes[old] = outcome
    assert outcomes == {"2 * x": "killed", "+ 0": "survived", "def double": "killed"}
    assert "2 * x + 0" in (tmp_path / "code_of.py").read_text()


def test_the_table_counts_changes_by_subpackage_and_lists_survivors(runner: ModuleType, tmp_path: Path) -> None:
    killed, survivor = (
        runner.Change(f"twostage/{subpackage}/a.py", "x", "y", subpackage, ("t",)) for subpackage in ("data", "nn")
    )
    text = runner.table([killed, survivor], {killed.key: "killed", survivor.key: "survived"})
    assert text.splitlines()[2:] == [
        "| `data/` | 1 | 0 |",
        "| `nn/` | 1 | 1 |",
        "| all | 2 | 1 |",
        "",
        "What survived:",
        "",
        "- `twostage/nn/a.py`, nn: no test yet",
    ]
    document = tmp_path / "page.md"
    document.write_text(f"before\n{runner.BEGIN}old\n{runner.END}after\n")
    runner.write_report(document, text)
    assert document.read_text() == f"before\n{runner.BEGIN}\n{text}\n{runner.END}after\n"
