"""A headless Chromium, driven by Playwright: the system's own, never one that a test tool would download."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

_ARGUMENTS = (
    "--no-sandbox",  # as root, in a container, it has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",  # it must ask nobody but the page's own server
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 30_000
"""The machine is slow, and busy with other tests."""


def chromium_path() -> str | None:
    """Where the system's Chromium lies; `AIAAS_CHROMIUM` names another."""
    names = (os.environ.get("AIAAS_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; skips the test where there is none."""
    path = chromium_path()
    if path is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium; or name one in AIAAS_CHROMIUM)")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only who has a browser pays for it

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
