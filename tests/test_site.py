"""The site builds with warnings as errors, every link in it leads somewhere, and no page loads anything from elsewhere."""

from __future__ import annotations

import html.parser
import os
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LOADS = {("img", "src"), ("script", "src"), ("link", "href"), ("source", "srcset"), ("iframe", "src")}


class Page(html.parser.HTMLParser):
    """Where a page's links lead, what it loads, and the places in it that a link can name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if value is None:
                continue
            if name in ("id", "name"):
                self.places.add(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)
            elif (tag, name) in LOADS and ("rel", "canonical") not in attributes:
                self.loads.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip(
        "mkdocs", reason="needs deepvit[docs]; `make docs` builds in an environment of its own"
    )
    pytest.importorskip("mkdocstrings", reason="needs deepvit[docs]")
    pytest.importorskip("nbconvert", reason="needs deepvit[docs]")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr  # --quiet would count none of them
    return out


def test_every_link_leads_somewhere(site: Path) -> None:
    pages = {path: Page(path.read_text("utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 30
    wrong = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or link.startswith("//") or path.name == "404.html":
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            place = urllib.parse.unquote(parts.fragment)
            if not target.exists() or (place and target in pages and place not in pages[target].places):
                wrong.append(f"{path.relative_to(site)}: {link}")
    assert wrong == []


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loads = {load for path in site.rglob("*.html") for load in Page(path.read_text("utf-8")).loads}
    assert [load for load in loads if "//" in load and not load.startswith("data:")] == []


def test_every_guide_is_in_the_navigation() -> None:
    """Without mkdocs too: a page that nobody finds is no page."""

    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        entries = entry.values() if isinstance(entry, dict) else entry
        return [page for one in entries for page in pages(one)]  # type: ignore[attr-defined]

    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    named = set(pages(yaml.safe_load(text)["nav"]))
    docs = ROOT / "docs"
    assert {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} <= named
    assert {f"notebooks/{path.stem}.md" for path in (docs / "notebooks").glob("*.ipynb")} <= named


def test_the_workflow_builds_it() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert any("make docs" in step.get("run", "") for job in jobs.values() for step in job["steps"])
    assert "make docs" in (next((ROOT / ".ci").iterdir())).read_text()
