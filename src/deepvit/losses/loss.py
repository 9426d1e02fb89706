"""What a loss is: the record that each loss's file fills in, and what a loss may ask of a forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from deepvit.errors import UserError
from deepvit.losses.attention_inputs import AttentionInputs
from deepvit.losses.patch_mix import PatchLabels

NEEDS = {
    "first": "patch tokens of the first block",
    "embed": "output of the patch embedding, before positions and class token",
    "last": "patch tokens of the last block",
    "normed": "patch tokens after the model's final norm, or of the last block where it has none",
    "attention": "queries and keys of some blocks",
    "labels": "a label for each image or patch",
    "teacher": "patch tokens of a frozen teacher, from the same place as the network's",
}
"""What a form of a loss can need of a watched forward pass."""


class Seen(Protocol):
    """One watched forward pass, as a loss sees it. Patch tokens are [B, N, C], without class token and registers."""

    def first(self) -> Tensor:
        """Patch tokens of the first block, or the patch embedding's output, whichever the form needs."""

    def last(self) -> Tensor:
        """Patch tokens of the last block, or after the final norm, as the form needs and ``tokens=`` says."""

    def teacher(self) -> Tensor:
        """The teacher's patch tokens for the same images, without gradient."""

    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patch tokens, or None where the model does not say."""

    def attention(self, share: float) -> tuple[list[AttentionInputs], int]:
        """What the maps of the blocks that ``check`` named are made from, for a share of the images, and how many
        tokens of class and registers come first."""

    def labels(self, classes: int) -> PatchLabels:
        """Every patch's label."""

    def part(self) -> Any:
        """The trained part that the loss's ``make_part`` made."""


@dataclass(frozen=True)
class NoOptions:
    """A loss without options."""


@dataclass(frozen=True)
class Loss:
    """One term that can be added to training's objective. Help, docs table and remedies are read from it.

    Attributes:
        name: as in ``--losses.NAME 1``.
        formula: what it is, one line.
        source: paper, or whose form.
        forms: form → what it needs of a forward pass (names of ``NEEDS``); the first is the default.
        compute: (what was seen, form, options) to a scalar; the loss is not weighted yet.
        helps: what it helps with, a few words.
        answers: kind of finding in a collapse report → one clause that says how the loss answers it.
        options: dataclass of its options, all with defaults.
        check: (form, options, number of blocks) to the blocks whose attention it needs; raises UserError for options
            that do not fit. Only for losses that need "attention".
        make_part: (classes, width, form) to a module that is trained beside the network, or None.
        part_name: the name that this module has in the state of ``Diversity``.
        paper_weight: its weight where nobody says which losses are wanted; None: it is off then.
    """

    name: str
    formula: str
    source: str
    forms: Mapping[str, frozenset[str]]
    compute: Callable[[Seen, str, Any], Tensor]
    helps: str
    answers: Mapping[str, str] = field(default_factory=dict)
    options: type[Any] = NoOptions
    check: Callable[[str, Any, int], list[int]] | None = None
    make_part: Callable[[int, int, str], nn.Module] | None = None
    part_name: str = ""
    paper_weight: float | None = None

    def __post_init__(self) -> None:
        unknown = {need for needs in self.forms.values() for need in needs} - set(NEEDS)
        if unknown or not self.forms:
            raise UserError(
                f"loss {self.name!r} needs {', '.join(sorted(unknown))}: there are {', '.join(NEEDS)}"
                if unknown
                else f"loss {self.name!r} has no form"
            )

    def check_form(self, form: str) -> None:
        """Raise UserError unless the loss has this form."""
        if form not in self.forms:
            raise UserError(f"{self.name} has no form {form!r}; choose from {', '.join(self.forms)}")

    def make_options(self, given: Mapping[str, Any]) -> Any:
        """The options object; raises UserError for an option that the loss does not have."""
        known = {option.name for option in dataclasses.fields(self.options)}
        for name in given:
            if name not in known:
                has = f"it has {', '.join(sorted(known))}" if known else "it has none"
                raise UserError(f"{self.name} has no option {name!r}; {has}")
        return self.options(**given)
