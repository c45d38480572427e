"""Tests of the project files: one version, one list of packages, and pins that satisfy the requirements."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import twostage

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
LIVE = {"sounddevice"}  # the requirement of the extra that development does not need
PINS = [
    line.split("==")
    for line in (ROOT / "constraints-dev.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def requirements() -> list[Requirement]:
    extras = (Requirement(text) for name in EXTRAS for text in EXTRAS[name] if not text.startswith("twostage["))
    return [*map(Requirement, PROJECT["project"]["dependencies"]), *extras]


def test_there_is_one_version() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"] == {"version": {"attr": "twostage.__version__"}}
    tree = ast.parse((ROOT / "twostage" / "__init__.py").read_text(encoding="utf-8"))
    (value,) = (node.value for node in tree.body if isinstance(node, ast.Assign) and "__version__" in ast.unparse(node))
    assert ast.literal_eval(value) == twostage.__version__  # setuptools reads a literal without importing the package


def test_citation_and_changelog_have_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == twostage.__version__
    latest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert latest
    assert latest[1] == twostage.__version__


def test_every_folder_of_code_is_installed() -> None:
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "twostage").rglob("__init__.py")}
    elsewhere = PROJECT["tool"]["setuptools"]["package-dir"]
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert {name.replace(".", "/") for name in listed if name not in elsewhere} == folders
    assert len(listed) == len(set(listed))


def test_pins_are_exact_versions_without_an_index() -> None:
    assert all(len(pin) == 2 and re.fullmatch(r"[a-z0-9-]+", pin[0]) for pin in PINS)
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for _, version in PINS)
    names = [name for name, _ in PINS]
    assert names == sorted(set(names))


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_requirement_is_pinned_to_a_version_that_satisfies_it(requirement: Requirement) -> None:
    if requirement.name in LIVE:
        return
    assert requirement.specifier.contains(dict(PINS)[canonicalize_name(requirement.name)])


def test_the_documents_state_the_bounds_of_torch() -> None:
    (torch,) = (requirement for requirement in requirements() if requirement.name == "torch")
    text = (ROOT / "docs" / "start.md").read_text(encoding="utf-8").replace("\n", " ")
    versions_run = r"the tests were run with (\S+), the lowest, and with (\S+)\."
    bounds = re.search(rf"PyTorch from (2\.\d+) to (2\.\d+); {versions_run}", text)
    assert bounds
    first, last, *versions = bounds.groups()
    major, minor = map(int, last.split("."))
    assert torch.specifier == SpecifierSet(f">={first},<{major}.{minor + 1}")
    assert all(torch.specifier.contains(version) for version in versions)
    assert f"torch ({first} to {last})" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_workflow_runs_the_ci_script_on_every_supported_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step][-1] == ".ci/run"
    installed = " ".join(step.get("run", "") for step in job["steps"]).split()
    assert {"chromium-browser", "pulseaudio", "pulseaudio-utils"} <= set(
        installed
    )  # .ci/run cannot install them without root
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    python_versions = [text.rpartition(" ")[2] for text in PROJECT["project"]["classifiers"] if "Python :: 3." in text]
    assert job["strategy"]["matrix"]["python"] == python_versions
    assert PROJECT["project"]["requires-python"] == f">={python_versions[0]}"


def test_all_documents_name_the_same_command_for_the_tests() -> None:
    command = "python -m pytest -n auto --dist loadfile"
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run", ".github/pull_request_template.md"):
        assert command in (ROOT / name).read_text(encoding="utf-8"), name
    assert command.replace("python", "$(PYTHON)") in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "-n" not in PROJECT["tool"]["pytest"]["ini_options"]["addopts"].split()  # a debugger needs one process


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_issue_templates_are_forms(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
    assert form.keys() >= {"name", "description", "body"}
    assert all(part["attributes"]["label"] for part in form["body"])
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len(set(ids))
