"""The browser in which pages are tested. Without a browser, a test is skipped or fails."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# a new profile without background requests; --no-sandbox, since root in a container has no sandbox
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
# in this order, after the Chromium that Playwright itself has installed, which fits its version
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def required(module: str) -> Any:
    """Import a module of the extras. Without it, the test is skipped, or fails with TWOSTAGE_REQUIRE_BROWSER=1."""
    if is_required():
        return __import__(module)
    return pytest.importorskip(module, reason=f"{module} is not installed: pip install -e '.[dev]'")


def is_required() -> bool:
    return os.environ.get("TWOSTAGE_REQUIRE_BROWSER") == "1"


def executable(bundled: str) -> str | None:
    """The path of a Chromium: ``bundled``, which Playwright names whether it is installed or not, or a system's."""
    if Path(bundled).is_file():
        return bundled
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium, started by Playwright. Nothing is downloaded."""
    required("playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = executable(playwright.chromium.executable_path)
        if not path and not is_required():
            pytest.skip("no Chromium is installed (apt-get install chromium)")
        assert path, "TWOSTAGE_REQUIRE_BROWSER=1, but no Chromium is installed"
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
