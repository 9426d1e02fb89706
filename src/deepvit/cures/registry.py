"""What a cure is: the record that each cure's file fills in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from deepvit.errors import UserError

INITS = ("identity", "paper")


@dataclass(frozen=True)
class Cure:
    """One change to a Vision Transformer.

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
        excludes: names of cures that cannot be in the same block.
        per_block: False for a change to the whole model, which takes no blocks.
    """

    name: str
    mechanism: str
    source: str
    options: type[Any]
    put: Callable[[nn.Module, list[int], Any], None]
    needs_maps: bool
    identity_at_start: bool
    excludes: frozenset[str] = frozenset()
    per_block: bool = True

    def make_options(self, given: dict[str, Any]) -> Any:
        """The options object; raises UserError for an option or a start that the cure does not have."""
        known = {field.name for field in dataclasses.fields(self.options)}
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
