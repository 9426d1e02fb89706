"""Notes on tensors by identity, for as long as they live."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class Marks(Generic[T]):
    """What is known of single tensors; a tensor that dies takes its note with it."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], T]] = {}

    def __bool__(self) -> bool:
        return bool(self._known)

    def of(self, value: object) -> T | None:
        """What is known of a tensor."""
        entry = self._known.get(id(value))
        return entry[1] if entry is not None and entry[0]() is value else None

    def put(self, tensor: Tensor, what: T) -> None:
        """Note it."""
        key = id(tensor)
        self._known[key] = (weakref.ref(tensor, lambda ref: self._forget(key, ref)), what)

    def drop(self, tensor: Tensor) -> None:
        """Know nothing of it any more."""
        self._known.pop(id(tensor), None)

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()

    def _forget(self, key: int, ref: weakref.ref[Tensor]) -> None:
        # The id may have gone to a new tensor before the old one's callback runs.
        if key in self._known and self._known[key][0] is ref:
            del self._known[key]
