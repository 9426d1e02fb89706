"""The checks of data sets by the task that they are for; a new kind of data is a line of ``CHECKS``."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deepvit.data.checking import DataCheck, check_classification
from deepvit.data.options import DataOptions
from deepvit.data.sources import open_data
from deepvit.errors import UserError
from deepvit.masks import check_masks, open_unchecked
from deepvit.masks.registry import has_masks


@dataclass(frozen=True)
class Check:
    """How data for one task is looked over.

    Attributes:
        task: the task's name.
        claims: whether a data string looks like data for it.
        open: (data string, options) → data that has ``train`` and ``val``, faults and all.
        check: (data, ``progress``, called with the number of images read so far) → what was found.
    """

    task: str
    claims: Callable[[str], bool]
    open: Callable[[str, DataOptions | None], Any]
    check: Callable[..., DataCheck]


CHECKS: tuple[Check, ...] = (
    Check("segmentation", has_masks, open_unchecked, check_masks),
    Check("classification", lambda spec: True, open_data, check_classification),
)
"""Asked in this order which the data is for."""


def check_of(spec: str, task: str | None = None) -> Check:
    """The check of a task by its name; of None, of the task that the data looks to be for.

    Raises:
        UserError: a task whose data is not checked here.
    """
    if task is None:
        return next(check for check in CHECKS if check.claims(spec))
    names = [check.task for check in CHECKS]
    if task not in names:
        near = difflib.get_close_matches(task, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise UserError(f"data for {task!r} is not checked here; {hint}")
    return next(check for check in CHECKS if check.task == task)
