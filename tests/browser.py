"""Where the browser is that pages are tested in, and why there is none."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# a fresh profile that talks to nobody; --no-sandbox, since a container's root has none
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
NAMES = ("chromium", "chromium-browser", "google-chrome")


def required(module: str) -> Any:
    """A module of the extras; without it the test is skipped, or fails where TWOSTAGE_REQUIRE_BROWSER=1 demands it."""
    if demanded():
        return __import__(module)
    return pytest.importorskip(module, reason=f"{module} is not installed: pip install -e '.[dev]'")


def demanded() -> bool:
    return os.environ.get("TWOSTAGE_REQUIRE_BROWSER") == "1"


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium, the one that the system has: playwright's own is a download."""
    required("playwright")
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, NAMES)), None)
    if not path and not demanded():
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    assert path, "TWOSTAGE_REQUIRE_BROWSER=1, but no Chromium is installed"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
