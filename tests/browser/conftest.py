"""A headless Chromium for the tests that open a page; nothing in it may reach any network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def _missing(reason: str) -> None:
    """Skip where a browser is a matter of taste, fail where it was promised (continuous integration)."""
    if os.environ.get("DEEPVIT_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("the browser tests drive Chromium by playwright: pip install 'deepvit[dev]'")
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        _missing("no Chromium found: apt install chromium (Debian), or put it on the PATH as `chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page and everything that should not have happened while it was open."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Opened]]:
    """Open a file at a width and in a colour scheme; no page may complain or ask any host for anything."""
    contexts, pages = [], []

    def open_it(path: Path, width: int = 1280, scheme: str = "light") -> Opened:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        opened = Opened(context.new_page())
        pages.append(opened)
        opened.page.set_default_timeout(10_000)
        opened.page.on("console", lambda message: opened.complaints.append(f"{message.type}: {message.text}"))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.goto(path.absolute().as_uri())
        opened.page.wait_for_selector("html[data-ready]", timeout=10_000)
        return opened

    yield open_it
    for opened in pages:
        asked = [url for url in opened.requests if not url.startswith(("file:", "data:"))]
        assert opened.complaints == []
        assert asked == []
        assert len([url for url in opened.requests if url.startswith("file:")]) == 1
    for context in contexts:
        context.close()
