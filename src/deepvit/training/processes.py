"""The processes of a run: how the first decides for all, and what they tell one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from deepvit.errors import UserError
from deepvit.runs.place import Place

T = TypeVar("T")


@dataclass
class Team:
    """The processes of a run; with one, everything here does nothing.

    Attributes:
        place: which of them this is.
        device: "auto" (Lightning chooses one), "cpu" or "cuda:INDEX".
    """

    place: Place
    device: str
    _children: list[Any] = field(default_factory=list)

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.place.rank

    @property
    def world(self) -> int:
        """How many there are."""
        return self.place.world

    def decide(self, function: Callable[[], T]) -> T:
        """What the function gives in the first process, in all of them; so does a ``UserError`` of it."""
        if self.world == 1:
            return function()
        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = function()
            except UserError as error:
                answer[1] = error
        dist.broadcast_object_list(answer, 0)
        if answer[1] is not None:
            raise answer[1]
        value: T = answer[0]
        return value

    def first_then_others(self, function: Callable[[], T]) -> T:
        """The function's result in every process, the first of each machine before the others: it may download or unpack.

        A ``UserError`` of any of them is one of all.
        """
        if self.world == 1:
            return function()
        mine: tuple[T] | None = None
        for turn in (True, False):
            error: UserError | None = None
            if (self.place.local_rank == 0) == turn:
                try:
                    mine = (function(),)
                except UserError as raised:
                    error = raised
            errors: list[Any] = [None] * self.world
            dist.all_gather_object(errors, error)
            if found := [one for one in errors if one is not None]:
                raise found[0]
        assert mine is not None
        return mine[0]

    def total(self, count: int) -> int:
        """The sum of a number over all processes."""
        if self.world == 1:
            return count
        every = torch.tensor(count)
        dist.all_reduce(every)
        return int(every)


def largest(value: float, device: torch.device | str = "cpu") -> float:
    """The largest value of all processes; what it decides does then not differ between them."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    most = torch.tensor(float(value), dtype=torch.float64, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return float(most)


def every_process(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scalars by name → [processes] by name, in the order of their ranks; one exchange for all of them."""
    if not values:
        return {}
    mine = torch.stack(list(values.values()))
    parts = [mine]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine)
    return dict(zip(values, torch.stack(parts, 1).unbind(0), strict=True))
