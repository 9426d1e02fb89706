"""The lesions by key: what is done, and the question that it answers. Reports and ``collapse.json`` read this table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from deepvit import capturing as cap
from deepvit.capturing import Anatomy
from deepvit.collapse.rows import Row

Make = Callable[[Anatomy, Sequence[Row], int], list[cap.Lesion]]


class NotHereError(Exception):
    """There is no such lesion of this block, and nothing to be told about that (the first block has no map before it)."""


@dataclass(frozen=True)
class LesionKind:
    """One kind of lesion of a block.

    Attributes:
        key: in ``collapse.json``.
        title: above a column of the report, and in its strip.
        question: what it answers.
        done: what is done to block b.
        make: from (anatomy, rows, number of the row) to what ``intervene`` takes; raises ``NotHereError``. What cannot be
            done to the network ``intervene`` says.
        cost: time of a pass in units of the blocks that run, 1 where nothing has to be watched.
        after: it acts on what leaves the block, so that the block's own intact output can be used.
        reads: how many blocks before it have to run, because something of them is needed.
    """

    key: str
    title: str
    question: str
    done: str
    make: Make
    cost: float = 1.0
    after: bool = False
    reads: bool = False


def _block(anatomy: Anatomy, rows: Sequence[Row], number: int) -> list[cap.Lesion]:
    _whole(rows[number])
    return [cap.SkipBlock(rows[number].block)]


def _attention(anatomy: Anatomy, rows: Sequence[Row], number: int) -> list[cap.Lesion]:
    return [cap.DropAttention(rows[number].key)]


def _map_reuse(anatomy: Anatomy, rows: Sequence[Row], number: int) -> list[cap.Lesion]:
    row = rows[number]
    if row.previous is None:
        raise NotHereError(f"{row.key}: no map of its shape comes before it")
    before = rows[row.previous].key

    def earlier(_own: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
        return maps[before]

    return [cap.ReplaceMap(row.key, earlier, reads=(before,))]


def _map_mean(anatomy: Anatomy, rows: Sequence[Row], number: int) -> list[cap.Lesion]:
    row = rows[number]
    if row.layout.queries < 2:
        raise NotHereError(f"{row.key}: one query asks, whose map is the mean")
    return [cap.ReplaceMap(row.key, lambda own, _: own.mean(-2, keepdim=True).expand_as(own))]


def _patch_mean(anatomy: Anatomy, rows: Sequence[Row], number: int) -> list[cap.Lesion]:
    _whole(rows[number])
    if rows[number].facts.kind == "class":
        raise NotHereError(f"{rows[number].block}: class attention, which no patch leaves")
    return [
        cap.ReplacePatches(
            rows[number].block, lambda patches: patches.mean(1, keepdim=True).expand_as(patches)
        )
    ]


def _exit(anatomy: Anatomy, rows: Sequence[Row], number: int) -> list[cap.Lesion]:
    _whole(rows[number])
    if not anatomy.after(rows[number].block):
        raise NotHereError(f"{rows[number].block}: nothing comes after it")
    return [cap.EndAfter(rows[number].block)]


def _whole(row: Row) -> None:
    """Of a block with several attentions the last one stands for the block."""
    if not row.carries_tokens:
        raise NotHereError(f"{row.key}: another attention of its block stands for it")


# The order is that in which they are measured: what the time does not allow is at the end.
LESIONS: dict[str, LesionKind] = {
    kind.key: kind
    for kind in (
        LesionKind(
            "exit", "Network ends after it", "Where does depth stop paying?",
            "all later blocks pass their input on; the final norm and the head are as they are", _exit, 0.2, after=True,
        ),
        LesionKind("block", "Block removed", "Does the block do anything?", "its input is passed on", _block),
        LesionKind(
            "patch_mean", "Patches made equal after it", "Does anything still need what the patches say apart?",
            "after it, every patch token is the mean of the image's patch tokens", _patch_mean, after=True,
        ),
        LesionKind(
            "map_reuse", "Map of the block before", "Does it need a map of its own?",
            "its attention map is that of the nearest block before it with maps of the same shape", _map_reuse, 1.3,
            reads=True,
        ),
        LesionKind(
            "attention", "Attention removed", "Does its attention do anything?",
            "its attention branch adds nothing; its MLP works on", _attention, 1.2,
        ),
        LesionKind(
            "map_mean", "Mean map for every query", "Does it matter who attends to what?",
            "every query gets the mean of the block's maps over queries", _map_mean, 1.2,
        ),
    )
}  # fmt: skip
"""``block`` and ``exit`` are measured first and always: the verdict rests on them."""

FEWEST = ("exit", "block")
