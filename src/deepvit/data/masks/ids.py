"""What the pixels of mask files mean: ids as they stand, ids by a table, or colours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from deepvit.data.dataset import some
from deepvit.data.masks.palette import Colour
from deepvit.errors import UserError
from deepvit.parsing import read_yaml

VOID = 255
VOID_NAME = "void"
LARGEST = 65535
UNKNOWN = -1
Array = np.ndarray[Any, Any]


def void_of(classes: int) -> int:
    """The value of pixels that do not count: 255, as everywhere in the field, unless there are more classes."""
    return VOID if classes <= VOID else LARGEST


class Ids(ABC):
    """From the pixels of a mask file to classes 0 .. ``count`` - 1 and ``ignore_index``."""

    count: int

    @property
    def ignore_index(self) -> int:
        """The value of pixels that do not count."""
        return void_of(self.count)

    def classes(self, mask: Image.Image, name: str) -> Array:
        """Classes uint8 (int32 above 255 classes) [H, W] of a mask; ``UserError`` that names it and what is unknown."""
        found = self.known(mask, name)
        if bool((found == UNKNOWN).any()):
            raise UserError(self.complaint(mask, name, found == UNKNOWN))
        return found.astype(np.uint8 if self.ignore_index == VOID else np.int32)

    @abstractmethod
    def known(self, mask: Image.Image, name: str) -> Array:
        """Classes int32 [H, W], -1 for pixels that mean none."""

    @abstractmethod
    def strangers(self, mask: Image.Image, name: str, unknown: Array) -> dict[str, int]:
        """Ids or colours of the pixels [H, W] that mean no class → how many pixels each has."""

    @abstractmethod
    def complaint(self, mask: Image.Image, name: str, unknown: Array) -> str:
        """One line on the pixels that mean no class."""


class TableIds(Ids):
    """Masks of one channel: grey, or a palette whose indices are the ids.

    Args:
        count: classes.
        table: id → class or ``void_of(count)``; ids that are not in it are unknown.
        hint: what to do about an unknown id.
    """

    def __init__(self, count: int, table: Mapping[int, int], hint: str) -> None:
        self.count, self.hint = count, hint
        self.table = np.full(LARGEST + 1, UNKNOWN, dtype=np.int32)
        for number, value in table.items():
            self.table[number] = value

    @classmethod
    def counted(cls, count: int, void: Sequence[int] = (), first: int = 0) -> TableIds:
        """Ids that count from ``first`` on; what is below it, ``void`` and 255 (of at most 255 classes) do not count."""
        nothing = void_of(count)
        table = {first + label: label for label in range(count)}
        table |= dict.fromkeys(range(first), nothing)
        if nothing == VOID:
            table.setdefault(VOID, nothing)
        table |= dict.fromkeys(void, nothing)
        hint = (
            "mend it, or give --data.num_classes, --data.void (ids that count for nothing) or --data.first_id"
        )
        return cls(count, table, hint)

    def known(self, mask: Image.Image, name: str) -> Array:
        """By the table."""
        found: Array = self.table[ids_of(mask, name)]
        return found

    def strangers(self, mask: Image.Image, name: str, unknown: Array) -> dict[str, int]:
        """By id."""
        values, numbers = np.unique(ids_of(mask, name)[unknown], return_counts=True)
        return {str(value): int(number) for value, number in zip(values, numbers, strict=True)}

    def complaint(self, mask: Image.Image, name: str, unknown: Array) -> str:
        """Names the ids."""
        values = list(self.strangers(mask, name, unknown))
        word = "the id" if len(values) == 1 else "the ids"
        return f"mask {name} holds {word} {some(values)}, beyond the {self.count} classes ({self.expected()}); {self.hint}"

    def expected(self) -> str:
        """``ids 0 to 10, void 11, 255``."""
        nothing = self.ignore_index
        valid = np.flatnonzero((self.table != UNKNOWN) & (self.table != nothing))
        ids = f"ids {valid.min()} to {valid.max()}"
        if len(valid) != valid.max() - valid.min() + 1:
            ids = f"ids {some([str(value) for value in valid], 40)}"
        void = [str(value) for value in np.flatnonzero(self.table == nothing)]
        return ids + (f", void {some(void, 12)}" if void else "")


class ColourIds(Ids):
    """Masks that show each class by its colour: RGB, or a palette's or grey's colours.

    Args:
        colours: class → its colours.
        void: colours that count for nothing.
    """

    def __init__(self, colours: Sequence[Sequence[Colour]], void: Sequence[Colour] = ()) -> None:
        self.count = len(colours)
        self.table: dict[int, int] = {}
        for label, shades in enumerate(colours):
            self.table |= {packed(shade): label for shade in shades}
        self.table |= {packed(shade): self.ignore_index for shade in void}
        self._keys = np.array(sorted(self.table), dtype=np.int32)
        self._labels = np.array([self.table[key] for key in self._keys.tolist()], dtype=np.int32)

    def known(self, mask: Image.Image, name: str) -> Array:
        """By colour."""
        values = self._values(mask)
        place = np.minimum(np.searchsorted(self._keys, values), len(self._keys) - 1)
        return np.where(self._keys[place] == values, self._labels[place], UNKNOWN)

    def strangers(self, mask: Image.Image, name: str, unknown: Array) -> dict[str, int]:
        """By colour."""
        values, numbers = np.unique(self._values(mask)[unknown], return_counts=True)
        return {
            str([value >> 16, value >> 8 & 255, value & 255]): int(number)
            for value, number in zip(values.tolist(), numbers, strict=True)
        }

    def complaint(self, mask: Image.Image, name: str, unknown: Array) -> str:
        """Names the colours, the most frequent first."""
        found = self.strangers(mask, name, unknown)
        shown = sorted(found, key=lambda colour: -found[colour])
        share = unknown.mean()
        return (
            f"mask {name} holds colours that are no class's: {some(shown, 3)} ({share:.1%} of its pixels); add them to the "
            f"colours (as {VOID_NAME} if they count for nothing), and keep masks lossless (no JPEG)"
        )

    def _values(self, mask: Image.Image) -> Array:
        rgb = np.asarray(mask.convert("RGB")).astype(np.int32)
        values: Array = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
        return values


def packed(colour: Colour) -> int:
    """A colour as one number."""
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def ids_of(mask: Image.Image, name: str) -> Array:
    """The ids [H, W] of a mask of one channel; ``UserError`` for one of several."""
    if mask.mode in ("L", "P", "1") or mask.mode.startswith("I"):
        values = np.asarray(mask).astype(np.int64)
        if values.min() < 0 or values.max() > LARGEST:
            raise UserError(
                f"mask {name} holds ids from {values.min()} to {values.max()}, not 0 to {LARGEST}"
            )
        return values
    raise UserError(
        f"mask {name} is in colour ({mask.mode}), which does not say its classes; give --data.colours, a YAML file of "
        "NAME: [R, G, B], or save masks with one channel"
    )


def read_colours(value: Mapping[str, Any] | str) -> dict[str, list[Colour]]:
    """Name → colours, from a mapping or a YAML file; ``UserError`` for what is no colour, or two classes' colour."""
    what = "--data.colours" if isinstance(value, Mapping) else str(value)
    if not isinstance(value, Mapping):
        value = read_yaml(Path(value), "colours")
    read = {str(name): _colours(one, f"{what}: {name}") for name, one in value.items()}
    owner: dict[Colour, str] = {}
    for name, colours in read.items():
        for colour in colours:
            if owner.setdefault(colour, name) != name:
                raise UserError(f"{what}: {owner[colour]} and {name} have one colour, {list(colour)}")
    if not [name for name in read if name.casefold() != VOID_NAME]:
        raise UserError(f"{what} names no class; give NAME: [R, G, B], one a class")
    return read


def _colours(value: Any, what: str) -> list[Colour]:
    several = isinstance(value, Sequence) and not isinstance(value, str) and value
    if several and all(not isinstance(part, int) for part in value):
        return [_colour(part, what) for part in value]
    return [_colour(value, what)]


def _colour(value: Any, what: str) -> Colour:
    if isinstance(value, str):
        try:
            rgb = ImageColor.getrgb(value)
        except ValueError:
            raise UserError(f'{what} is no colour: {value!r}; give [R, G, B] or "#rrggbb"') from None
        return (rgb[0], rgb[1], rgb[2])
    parts = list(value) if isinstance(value, Sequence) else []
    if len(parts) != 3 or not all(type(part) is int and 0 <= part <= 255 for part in parts):
        raise UserError(f"{what} is no colour: {value!r}; give three numbers from 0 to 255")
    return (parts[0], parts[1], parts[2])
