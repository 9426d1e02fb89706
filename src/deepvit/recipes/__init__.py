"""The recipes that ship with the package: YAML files found by name, each with a line that states its evidence."""

from __future__ import annotations

import difflib
from pathlib import Path

from deepvit.errors import UserError

FOLDER = Path(__file__).parent
FACTS = ("what", "command", "hardware", "time", "paper", "unknown", "result")
"""What the head of a recipe may state, each as ``# fact: text``."""


def names() -> list[str]:
    """Names of the recipes, folders included (``imagenet/deepvit_s``)."""
    return sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))


def find(name: str) -> Path:
    """The file of a recipe, by its name or by a path.

    Raises:
        UserError: there is neither such a recipe nor such a file; the nearest names are offered.
    """
    path = FOLDER / f"{name}.yaml"
    if name in names():
        return path
    if Path(name).is_file():
        return Path(name)
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4) or names()
    raise UserError(f"no recipe or file is called {name!r}; did you mean {', '.join(near)}?")


def header(name: str) -> dict[str, str]:
    """The facts in the comment at the head of a recipe: what it is, command, hardware, time, result."""
    facts: dict[str, str] = {}
    last = ""
    for line in find(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("# ").strip()
        key, colon, value = text.partition(":")
        if colon and key.strip().lower() in FACTS:
            last = key.strip().lower()
            facts[last] = value.strip()
        elif last:  # a fact over several lines
            facts[last] += f" {text}"
    return facts
