"""All losses by name. A new one is a file beside this one and a line in ``FILES``."""

from __future__ import annotations

from importlib import import_module

from deepvit.errors import UserError
from deepvit.losses.loss import Loss

# In the order in which they are listed, computed and recommended.
FILES = (
    "cosine",
    "contrastive",
    "mixing",
    "attention",
    "gram",
    "kernel_alignment",
)

LOSSES: dict[str, Loss] = {}


def register(loss: Loss) -> Loss:
    """Add a loss to those that ``Diversity``, ``--losses``, lists and reports know; returns it.

    Raises UserError for a name that is taken.
    """
    if loss.name in LOSSES:
        raise UserError(f"there is a loss {loss.name!r} already; give yours another name")
    LOSSES[loss.name] = loss
    return loss


for _file in FILES:
    register(import_module(f"deepvit.losses.{_file}").LOSS)

PAPER_WEIGHTS = {name: loss.paper_weight for name, loss in LOSSES.items() if loss.paper_weight is not None}
"""Equal weights, α = 1 each. (The official code has 1 for the two of these losses that it contains.)"""


def find(name: str) -> Loss:
    """The loss of that name; raises UserError when there is none."""
    if name not in LOSSES:
        raise UserError(f"there is no diversity loss {name!r}; choose from {', '.join(LOSSES)}")
    return LOSSES[name]


def answering(finding: str) -> list[tuple[str, str]]:
    """Losses that answer a kind of finding of a collapse report, as (name, how), in the order to try them."""
    return [(loss.name, loss.answers[finding]) for loss in LOSSES.values() if finding in loss.answers]


def table() -> list[dict[str, str]]:
    """One row a loss: name, formula, what it helps with, forms, source."""
    return [
        {
            "name": loss.name,
            "formula": loss.formula,
            "helps with": loss.helps,
            "forms": ", ".join(loss.forms),
            "source": loss.source,
        }
        for loss in LOSSES.values()
    ]
