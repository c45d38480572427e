"""What the site takes from elsewhere in the repository, so that it is written once: texts, pictures, sound.

A page may hold sections of README.md: each in the place of a link to it, which stands on a line of its own,

    [README: install](../README.md#install)

Links stay as they are right in the repository; those that lead to a file that is no page lose their target.
"""

import os
import re
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from twostage import __version__

ROOT = Path(__file__).resolve().parents[2]
# of the repository -> of the site
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "twostage/training/config.py": "configuration.md",
    **{f"checkpoints/{path.parent.name}/CARD.md": f"models/{path.parent.name}.md"
       for path in sorted(ROOT.glob("checkpoints/*/CARD.md"))},
}  # fmt: skip
ASSETS = ("samples/restored.png", "samples/throat.flac", "samples/restored.flac", "samples/clean.flac")
TEXTS = {page: source for source, page in PAGES.items() if source.endswith(".md") and page != "index.md"}

FENCE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(rf"{FENCE.pattern}|(!?)\[([^\]]*)\]\(([^)\s]+)\)", FENCE.flags)  # or code, whatever comes first
INCLUDE = re.compile(r"^\[README: .+?\]\([./]+/README\.md#(.+?)\)$", re.MULTILINE)
HEADING = re.compile(r"^#+ (.+)\n", re.MULTILINE)
SOUND = re.compile(r'<a href="([^"]+\.flac)">(.*?)</a>')
DRAWING = re.compile(r'<img alt="([^"]*)" src="([^"]+\.svg)" ?/?>')


def on_config(config: Any, **_: Any) -> Any:
    """The header shows the version, and the repository where pyproject.toml names one."""
    config.site_name = f"{config.site_name} {__version__}"
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    config.repo_url = urls.get("Repository", "")
    return config


def on_files(files: Files, config: Any, **_: Any) -> Files:
    for page, source in TEXTS.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for name in ASSETS:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    here = page.file.src_uri
    parts = INCLUDE.split(text)  # text and anchors in turn
    parts[::2] = [rebased(part, TEXTS.get(here, f"docs/{here}"), here) for part in parts[::2]]
    parts[1::2] = [rebased(section(anchor), "README.md", here) for anchor in parts[1::2]]
    return "".join(parts)


def on_page_content(text: str, page: Any, **_: Any) -> str:
    text = SOUND.sub(r'<span class="sound">\2 <audio controls preload="none" src="\1"></audio></span>', text)
    return DRAWING.sub(lambda match: _inline(match[1], page.file.src_uri, match[2]), text)


def section(anchor: str) -> str:
    """What stands below a heading of README.md, named as GitHub names its anchor, up to the next heading."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    headings = list(HEADING.finditer(FENCE.sub(_no_headings, text)))
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        if re.sub(r"[^\w -]", "", heading[1].lower()).replace(" ", "-") == anchor:
            return text[heading.end() : following.start() if following else None].strip()
    raise PluginError(f"README.md has no section #{anchor}")


def _no_headings(code: re.Match[str]) -> str:
    """Code of the same length in which no comment looks like a heading."""
    return re.sub(r"^#", " ", code[0], flags=re.MULTILINE)


def rebased(text: str, origin: str, page: str) -> str:
    """Links that are right in the file ``origin`` of the repository as they have to be on ``page`` of the site."""

    def one(match: re.Match[str]) -> str:
        code, image, words, target = match.groups()
        if code:
            return code
        path, hash_, anchor = target.partition("#")
        if not path or ":" in path:
            return match[0]
        place = os.path.normpath(PurePosixPath(origin).parent / path)
        on_site = PAGES.get(place) or (place if place in ASSETS else place.removeprefix("docs/"))
        if on_site == place and place not in ASSETS and (ROOT / place).exists():
            return words
        return f"{image}[{words}]({os.path.relpath(on_site, PurePosixPath(page).parent)}{hash_}{anchor})"

    return LINK.sub(one, text)


def _inline(words: str, page: str, target: str) -> str:
    """A drawing as part of the page, whose colors it takes."""
    path = ROOT / "docs" / os.path.normpath(PurePosixPath(page).parent / target)
    drawing = path.read_text(encoding="utf-8")
    return drawing[drawing.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{words}"', 1)
