"""What a cure is: the record that each cure's file fills in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from deepvit.errors import UserError

INITS = ("identity", "paper")


@dataclass(frozen=True)
class Cure:
    """One change to a Vision Transformer. Help, docs table, remedies and exclusions are read from it.

    Attributes:
        name: as in ``--cures``.
        mechanism: what it does, one line with the formula.
        source: paper, or whose form.
        options: dataclass of its options, all with defaults. A field ``init`` means that the cure has two
            starts: "identity" (the default: the network computes what it did) and "paper" (the source's own
            initial values, for training from scratch).
        put: puts it into the given blocks of a model; raises UserError when the model cannot take it.
        needs_maps: attention maps must be formed, so fused attention cannot be used.
        identity_at_start: with its default options the network's function is unchanged at first.
        slots: the places that it takes in a block, in words ("map", "first values"): two cures with a place
            in common exclude each other in a block. Any word serves; a new one is a place of its own.
        helps: what it helps with, a few words for lists and docs.
        answers: kind of finding in a collapse report → one clause that says how the cure answers it. A report
            recommends the cures that answer what it found, in the order of the registry.
        per_block: False for a change to the whole model, which takes no blocks.
        removes: it takes its blocks out of the model: it is put in last, the blocks count anew behind it, and "auto"
            takes only what a report recommends for it.
        needs_options: there is nothing to put in before its options are given; ``put`` says which.
    """

    name: str
    mechanism: str
    source: str
    options: type[Any]
    put: Callable[[nn.Module, list[int], Any], None]
    needs_maps: bool
    identity_at_start: bool
    slots: frozenset[str]
    helps: str
    answers: Mapping[str, str] = field(default_factory=dict)
    per_block: bool = True
    removes: bool = False
    needs_options: bool = False

    def make_options(self, given: dict[str, Any]) -> Any:
        """The options object; raises UserError for an option or a start that the cure does not have."""
        known = {option.name for option in dataclasses.fields(self.options)}
        given = dict(given)
        if given.get("init") in INITS and "init" not in known:
            # It has one start, its source's; what may be asked hangs on whether that is the identity too.
            init = given.pop("init")
            if init == "identity" and not self.identity_at_start:
                raise UserError(f"{self.name} cannot start as the identity: it changes the function at once")
        unknown = sorted(set(given) - known)
        if unknown:
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise UserError(f"{self.name} has no option {unknown[0]!r}; {has}")
        options = self.options(**given)
        init = getattr(options, "init", "identity")
        if init not in INITS:
            raise UserError(f"{self.name}: init={init!r}: choose {' or '.join(INITS)}")
        return options

    def excludes(self, other: Cure) -> bool:
        """Whether the two cannot be in one block, because they take the same place in it."""
        return bool(self.slots & other.slots)
