"""What README and guides show works: Python examples run, command lines are understood, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from deepvit import recipes
from deepvit.cli import COMMANDS, build_parser, normalise
from deepvit.collapse import METRICS

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
    known = dict(METRICS)
    try:
        for code in found:
            exec(compile(code, str(page), "exec"), {})
    finally:
        for key in METRICS.keys() - known.keys():  # an example registers one
            del METRICS[key]


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
    assert name in COMMANDS
    command = COMMANDS[name]
    parser, kinds = build_parser(name, command)
    if command.config and command.positional:
        assert words[0] in recipes.names() or words[0].endswith(".yaml")
        words = words[1:]
    words = [word for word in words if "..." not in word]
    parsed = parser.parse_args(normalise(words, kinds))
    assert parsed is not None


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
