"""What README and guides show works: Python examples run, command lines are understood, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from deepvit import commands, cures, losses, recipes, tasks
from deepvit.cli import values_of
from deepvit.collapse import METRICS
from deepvit.data import SOURCES
from deepvit.ops import BACKENDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUNNABLE = [
    "README.md",
    "quickstart.md",
    "extending.md",
]  # the others show pieces that need files of the reader's


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if p.name in RUNNABLE], ids=lambda p: p.name)
def test_python_examples_run(page: Path) -> None:
    found = blocks(page, "python")
    assert found
    registries = (cures.CURES, losses.LOSSES, METRICS, tasks.TASKS, commands.NAMES, commands._ADDED, BACKENDS)
    before, sources = [dict(registry) for registry in registries], list(SOURCES)
    try:
        for code in found:
            exec(compile(code, str(page), "exec"), {})
    finally:  # what an example adds is not there for the tests after it
        for registry, entries in zip(registries, before, strict=True):
            registry.clear()
            registry.update(entries)
        SOURCES._sources[:] = sources


def command_lines() -> list[tuple[str, str]]:
    lines = []
    for page in PAGES:
        for code in [*blocks(page, ""), *blocks(page, "bash")]:
            for line in code.replace("\\\n", " ").splitlines():
                if line.startswith("deepvit "):
                    lines.append((page.name, line.split("  #")[0].strip()))
    return lines


@pytest.mark.parametrize(("page", "line"), command_lines(), ids=lambda x: x[:60])
def test_command_lines_are_understood(page: str, line: str) -> None:
    _, name, *words = shlex.split(line)
    assert name in commands.NAMES
    if name == "study":
        assert words[0] in recipes.names() or words[0].endswith(".yaml")
        words[0] = words[0] if words[0] in recipes.names() else "quickstart"
    words = [word for word in words if "..." not in word]
    assert values_of(name, commands.find(name), words) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_recipes_name_the_command_that_runs_them() -> None:
    for name in recipes.names():
        words = shlex.split(recipes.header(name)["command"])
        assert words[0] == "deepvit"
        assert name in words, name


def test_the_makefile_runs_what_the_readme_says() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", readme, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
