"""Tests of the documentation site: it builds strictly, has no broken links, and needs no network."""

import argparse
import doctest
import html
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from browser import chromium

from twostage import __version__, cli
from twostage.data.sensors import Sensor
from twostage.models.registry import ENHANCERS
from twostage.training.config import EnhancerRun, FinetuneRun, RestorerRun, VocoderRun

ROOT = Path(__file__).parents[2]
PACKAGES = ("mkdocs", "material", "mkdocstrings", "latex2mathml")
RUNS = (RestorerRun, VocoderRun, FinetuneRun, EnhancerRun)


def hook(name: str) -> ModuleType:
    """The module docs/hooks/NAME.py."""
    spec = importlib.util.spec_from_file_location(f"hook_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


SETTINGS = hook("settings")
CLASSES = dict.fromkeys(
    one for top in (*RUNS, Sensor, *(config for config, _ in ENHANCERS.values())) for one in SETTINGS.nested(top)
)
FIELDS = [
    pytest.param(cls, setting, id=f"{cls.__name__}.{setting.name}")
    for cls in CLASSES
    for setting in SETTINGS.settings(cls)
]


@pytest.mark.parametrize(("cls", "setting"), FIELDS)
def test_every_setting_is_documented_with_its_default(cls: type, setting: Any) -> None:
    assert setting.meaning, (
        f"{cls.__name__}.{setting.name}: put a comment behind it that says what it means, and its unit"
    )
    field = next(f for f in fields(cls) if f.name == setting.name)
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    if setting.section:
        assert isinstance(default, setting.section) or default is MISSING
    elif default is MISSING:
        assert setting.default == ""
    else:
        assert tuples(yaml.safe_load(setting.default)) == default


def tuples(value: Any) -> Any:
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


@dataclass
class Example:
    first: int  # Hz
    second: tuple[int, ...] = (
        1,  # not the comment of a field
        2,
    )  # two
    # neither is this one
    third: str = "# no comment"


def test_the_comment_behind_a_field_is_its_documentation() -> None:
    actual = {setting.name: (setting.kind, setting.default, setting.meaning) for setting in SETTINGS.settings(Example)}
    assert actual == {
        "first": ("int", "", "Hz"),
        "second": ("list of int", "[1, 2]", "two"),
        "third": ("str", "# no comment", ""),
    }


def test_doctests_of_the_hooks_pass() -> None:
    assert doctest.testmod(SETTINGS) == (0, 2)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing and os.environ.get("TWOSTAGE_REQUIRE_DOCS") != "1":
        pytest.skip(f"{', '.join(missing)} not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    # a proxy that does not exist, so that the build cannot download anything
    no_network = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    env = {**os.environ, **no_network, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    process = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return folder


class Page(HTMLParser):
    """The references of a page as (tag, attribute, target), and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: list[tuple[str, str, str]] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "srcset", "poster", "data") and value is not None:
                self.targets.append((tag, name, value))
            if name in ("id", "name") and value:
                self.anchors.add(value)


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    # without 404.html, whose links are relative to the root of a server
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


@pytest.mark.slow
def test_no_link_or_picture_is_broken(pages: dict[Path, Page], site: Path) -> None:
    broken = []
    for path, page in pages.items():
        for tag, _, target in page.targets:
            file, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", file):
                continue
            linked_file = (path.parent / unquote(file)).resolve() if file else path
            exists = linked_file.is_file() and (
                not anchor or linked_file not in pages or unquote(anchor) in pages[linked_file].anchors
            )
            if not exists or site.resolve() not in linked_file.parents:
                broken.append(f"{path.relative_to(site)}: {tag} {target}")
    assert broken == []
    assert len(pages) > 20


@pytest.mark.slow
def test_pages_load_nothing_from_other_servers(pages: dict[Path, Page], site: Path) -> None:
    for path, page in pages.items():
        loaded = [target for tag, name, target in page.targets if tag != "a" and (tag == "link" or name != "href")]
        assert [target for target in loaded if re.match(r"(https?:)?//", target)] == [], path
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()[\s\"'(]*(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_the_site_is_displayed_and_searched_without_a_server(site: Path) -> None:
    requests: list[str] = []
    with chromium() as browser:
        page = browser.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: requests.append(f"error: {error}"))
        for name in ("how-it-works", "configuration", "index"):
            page.goto((site / f"{name}.html").as_uri())
        page.locator("input[name=query]").press_sequentially("griffin")
        page.locator(".md-search-result__link").first.wait_for(timeout=20000)
        links = page.eval_on_selector_all(".md-search-result__link", "links => links.map(link => link.href)")
        assert any("how-it-works.html" in link for link in links)
        page.goto((site / "how-it-works.html").as_uri())
        assert page.locator("math").first.bounding_box()["width"] > 5
    assert [url for url in requests if not url.startswith(("file:", "data:", "about:", "blob:"))] == []


def text_of(path: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8")))


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from parsers(sub)


@pytest.mark.slow
def test_the_page_of_commands_lists_every_option(site: Path) -> None:
    text = text_of(site / "commands.html")
    for parser in parsers(cli.parser()):
        assert f"usage: {parser.prog} " in text
        assert [o for action in parser._actions for o in action.option_strings if o not in text] == []


@pytest.mark.slow
def test_the_pages_of_settings_list_every_field(site: Path) -> None:
    pages = [site / "configuration.html", *(site / "configuration").glob("*.html")]
    assert len(pages) == 7
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    names = set(re.findall(r"<td><code>(?:[\w.]+\.)?(\w+)</code></td>", text))
    assert {setting.name for cls in CLASSES for setting in SETTINGS.settings(cls) if not setting.section} <= names


@pytest.mark.slow
def test_the_header_shows_the_version(site: Path) -> None:
    header = re.search(r"<header.*?</header>", (site / "how-it-works.html").read_text(encoding="utf-8"), re.DOTALL)
    assert header
    assert f"twostage {__version__}" in header[0]


@pytest.mark.slow
def test_every_model_card_has_a_page(site: Path) -> None:
    cards = sorted(ROOT.glob("checkpoints/*/CARD.md"))
    assert len(cards) >= 4
    for card in cards:
        (title,) = re.findall(r"^# (.+)", card.read_text(encoding="utf-8"), re.MULTILINE)[:1]
        assert f">{title}<" in (site / "models" / f"{card.parent.name}.html").read_text(encoding="utf-8")
        assert f"models/{card.parent.name}.html" in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_formulas_are_converted_to_mathml(site: Path) -> None:
    text = (site / "how-it-works.html").read_text(encoding="utf-8")
    assert text.count("<math") > 40
    assert not re.search(r"arithmatex|\\frac|\$\$", text[text.index("<article") : text.index("</article>")])


@pytest.mark.parametrize(
    ("urls", "expected"), [('Repository = "https://code.example/x"', "https://code.example/x"), ("", "")]
)
def test_the_header_shows_the_version_and_the_repository(
    urls: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mkdocs")
    (tmp_path / "pyproject.toml").write_text(f"[project]\n[project.urls]\n{urls}\n")
    module = hook("repository")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    config = module.on_config(SimpleNamespace(site_name="twostage", repo_url="https://old.example/"))
    assert (config.site_name, config.repo_url) == (f"twostage {__version__}", expected)


@pytest.mark.parametrize(
    ("link", "origin", "page", "expected"),
    [
        ("[a](../samples/throat.flac)", "docs/start.md", "start.md", "[a](samples/throat.flac)"),
        ("[a](docs/SPEED.md)", "README.md", "index.md", "[a](SPEED.md)"),
        ("[a](../base/CARD.md#limits)", "checkpoints/default/CARD.md", "models/default.md", "[a](base.md#limits)"),
        ("[a](../../docs/SPEED.md)", "checkpoints/base/CARD.md", "models/base.md", "[a](../SPEED.md)"),
        ("[a](../../README.md)", "docs/guide/x.md", "guide/x.md", "[a](../index.md)"),
        ("[a](CITATION.cff), [b](nowhere.md)", "README.md", "index.md", "a, [b](nowhere.md)"),
        ("[a](https://x.org/y.md) [b](#c)", "README.md", "index.md", "[a](https://x.org/y.md) [b](#c)"),
        ("`[a](docs/SPEED.md)`", "README.md", "index.md", "`[a](docs/SPEED.md)`"),
        ("[the `a` of b](docs/SPEED.md), `c`", "README.md", "index.md", "[the `a` of b](SPEED.md), `c`"),
        ("```\n[a](docs/SPEED.md)\n```", "README.md", "index.md", "```\n[a](docs/SPEED.md)\n```"),
    ],
)
def test_links_of_the_repository_are_converted_for_the_site(link: str, origin: str, page: str, expected: str) -> None:
    pytest.importorskip("mkdocs")
    assert hook("repository").rebased(link, origin, page) == expected


def test_sections_of_the_readme_end_where_the_next_one_starts() -> None:
    errors = pytest.importorskip("mkdocs.exceptions")
    repository = hook("repository")
    text = repository.section("install")
    assert text.startswith("You need Python 3.11 or newer and pip")
    assert "python -m pytest" in text
    assert "## Restore recordings" not in text
    assert "twostage stream" in repository.section("streaming")  # after a comment in a shell block, which is no heading
    with pytest.raises(errors.PluginError, match="no section #two-commands"):
        repository.section("two-commands")
