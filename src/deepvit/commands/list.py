"""``deepvit list``: models, cures, tasks, recipes and data that there are."""

from __future__ import annotations

from dataclasses import dataclass

from deepvit import cures, models, recipes, tasks
from deepvit.commands.command import Command
from deepvit.errors import UserError
from deepvit.terminal import print_table, say

KINDS = ("models", "cures", "recipes", "data", "tasks")
OF_ONE = {"models": "model", "cures": "cure", "recipes": "recipe", "data": "data source", "tasks": "task"}


@dataclass
class Listing:
    """Headings and rows of a list, and a line to go below it."""

    headings: list[str]
    rows: list[list[str]]
    note: str = ""


def listing(what: str, pattern: str = "") -> Listing:
    """List what there is.

    Args:
        what: models, cures, recipes, data or tasks.
        pattern: only entries whose name contains this text; for models it searches timm's too.

    Raises:
        UserError: another word.
    """
    if what not in KINDS:
        raise UserError(f"nothing is listed as {what!r}: there are {', '.join(KINDS)}")
    if what == "models":
        found = list_models(pattern)
    elif what == "cures":
        found = of_dicts(cures.table())
    elif what == "tasks":
        found = of_dicts(tasks.table())
    elif what == "data":
        found = of_dicts(
            [
                {"data": row["data"], "task": task.name, **row}
                for task in tasks.TASKS.values()
                for row in task.sources()
            ]
        )
    else:
        names = [name for name in recipes.names() if pattern in name]
        found = Listing(
            ["recipe", "what", "result"],
            [
                [n, recipes.header(n).get("what", ""), recipes.header(n).get("result", "not run")]
                for n in names
            ],
            "a study: deepvit study RECIPE; a single run: deepvit train --config RECIPE",
        )
    if what in ("cures", "tasks", "data"):
        found.rows = [row for row in found.rows if pattern in row[0]]
    if not found.rows:
        found.note = f"no {OF_ONE[what]} contains {pattern!r}: deepvit list {what} shows all"
    return found


def list_models(pattern: str) -> Listing:
    """Our models; with a pattern, every model of timm whose name contains it."""
    import timm

    if not pattern:
        own = models.table()
        listed = of_dicts(own)
        listed.note = (
            f"and {len(timm.list_models()) - len(own)} models of timm: deepvit list models --pattern TEXT"
        )
        return listed
    names = [name for name in timm.list_models() if pattern in name]
    return Listing(["model"], [[name] for name in names], f"{len(names)} models contain {pattern!r}")


def of_dicts(rows: list[dict[str, str]]) -> Listing:
    """Rows as a listing under the names of the first; what one lacks is empty."""
    headings = list(rows[0])
    return Listing(headings, [[str(row.get(name, "")) for name in headings] for row in rows])


def show(found: Listing) -> None:
    """Print the list."""
    if found.rows:
        print_table(found.headings, found.rows)
    if found.note:
        say(found.note)


COMMAND = Command(
    listing,
    show,
    examples=(
        "deepvit list cures",
        "deepvit list models --pattern deepvit",
    ),
)
