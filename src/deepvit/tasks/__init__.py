"""Tasks: the kinds of problem that are trained, each one class in one file and one line here."""

from __future__ import annotations

import difflib

from deepvit.errors import UserError
from deepvit.tasks.classification import Classification
from deepvit.tasks.segmentation import Segmentation
from deepvit.tasks.task import Column, Fitting, Meter, Mixed, NoOptions, Settings, Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classification, Segmentation)}
DEFAULT = Classification.name

__all__ = [
    "DEFAULT",
    "TASKS",
    "Classification",
    "Column",
    "Fitting",
    "Meter",
    "Mixed",
    "NoOptions",
    "Segmentation",
    "Settings",
    "Task",
    "find",
    "for_data",
    "register",
    "table",
]


def register(task: type[Task]) -> type[Task]:
    """Add a task: training, studies and all commands then serve it. Raises ValueError when there is one of this name."""
    if TASKS.get(task.name, task) is not task:
        raise ValueError(f"there is a task {task.name!r} already")
    TASKS[task.name] = task
    return task


def find(name: str) -> type[Task]:
    """The task of that name; ``UserError`` with the nearest where there is none."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        raise UserError(
            f"no task is called {name!r}; "
            + (f"did you mean {near[0]}?" if near else f"there are {', '.join(TASKS)}")
        )
    return TASKS[name]


def for_data(spec: str) -> type[Task]:
    """The task that claims a data string, or the usual one."""
    return next((task for task in TASKS.values() if task.claims(spec)), TASKS[DEFAULT])


def table() -> list[dict[str, str]]:
    """Rows for ``deepvit list tasks``."""
    return [{"task": t.name, "what": t.help, "watches": t.column().heading} for t in TASKS.values()]
