"""Putting cures into a model, the record of it, and doing it again from the record."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch._dynamo
from torch import nn

from deepvit.cures.cure import Cure
from deepvit.cures.registry import CURES
from deepvit.cures.syntax import Wanted, parse
from deepvit.cures.target import blocks_of
from deepvit.errors import UserError
from deepvit.files import read_json
from deepvit.layers import parse_blocks

Blocks = str | int | Sequence[int]


def apply(
    model: nn.Module,
    name: str | Iterable[str],
    blocks: Blocks = "all",
    *,
    report: Any = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    **common: Any,
) -> nn.Module:
    """Put cures into a timm ViT, in place, and return it; nothing is changed when anything is refused.

    ::

        cures.apply(model, "reattention", blocks="last:12", init="paper")
        cures.apply(model, "attnscale@last:6+layerscale", options={"layerscale": {"value": 0.1}})
        cures.apply(model, "reattention", blocks="auto", report="runs/a/collapse.json")

    By default every cure that can starts as the identity, so that trained weights keep their function; for
    training from scratch say ``init="paper"``, which each cure takes to be its source's own start.
    ``model.deepvit_cures`` then holds the record that ``reapply`` takes.

    Args:
        model: a timm ViT (blocks under ``blocks``, each with ``attn``).
        name: cure names, see ``parse``; blocks given with ``@`` go before ``blocks``.
        blocks: for the cures without blocks of their own: "all", "last:12", "first:3", "5-11", a list, or
            "auto": those that the collapse report names.
        report: a collapse.json, its content, or a Report; needed by "auto" and by nothing else.
        options: cure name → its options.
        common: options for the cure when there is one; with several only ``init``.

    Raises UserError for unknown cures or options, cures that exclude each other in a block, blocks that the
    model does not have, and a model that cannot take a cure.
    """
    wanted = parse(name)
    if not wanted:
        raise UserError("no cure is named; see deepvit list cures")
    if len(wanted) > 1 and set(common) - {"init"}:
        odd = sorted(set(common) - {"init"})[0]
        raise UserError(
            f"{odd}={common[odd]!r} is for which cure? with several write options={{'NAME': {{{odd!r}: …}}}}"
        )
    options = options or {}
    for key in options:
        if key not in {w.name for w in wanted}:
            raise UserError(
                f"options are given for {key}, which is not among the cures {', '.join(map(str, wanted))}"
            )
    if report is not None and blocks != "auto" and all(w.blocks != "auto" for w in wanted):
        raise UserError("a collapse report is given but no cure asks for blocks 'auto'")
    steps = []
    # Removing comes last, whatever was registered since: block numbers are those of the network as it stands.
    for want in sorted(wanted, key=lambda w: (CURES[w.name].removes, list(CURES).index(w.name))):
        cure = CURES[want.name]
        chosen = _choose_blocks(model, cure, want, blocks, report, alone=len(wanted) == 1)
        steps.append((cure, chosen, cure.make_options({**common, **options.get(cure.name, {})})))
    _check_exclusions(model, [(cure.name, chosen) for cure, chosen, _ in steps])
    _put(model, steps)
    return model


def reapply(model: nn.Module, record: Iterable[Mapping[str, Any]]) -> nn.Module:
    """Put the cures of a record (``model.deepvit_cures`` of another model) into a bare one, before its
    weights load.

    Raises UserError as ``apply`` does, and when the model has cures already.
    """
    if getattr(model, "deepvit_cures", None):
        raise UserError("the model has cures already; reapply takes a bare one")
    steps = []
    for entry in record:
        if entry["name"] not in CURES:
            raise UserError(f"the record names a cure {entry['name']!r} that this version does not have")
        cure = CURES[entry["name"]]
        chosen = (
            parse_blocks(list(entry["blocks"]), len(blocks_of(model, cure.name))) if cure.per_block else []
        )
        steps.append((cure, chosen, cure.make_options(dict(entry["options"]))))
    _put(model, steps)
    return model


def _put(model: nn.Module, steps: list[tuple[Cure, list[int], Any]]) -> None:
    # Otherwise blocks that are compiled one by one share a graph whether they have a cure's hooks or not.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    if len(steps) > 1:
        # Rehearse on a copy without weights: a refusal of the second cure must not leave the first one in.
        rehearsal = _without_weights(model)
        for cure, chosen, options in steps:
            cure.put(rehearsal, chosen, options)
    for cure, chosen, options in steps:
        cure.put(model, chosen, options)
        record = {"name": cure.name, "blocks": chosen, "options": dataclasses.asdict(options)}
        model.deepvit_cures = [*getattr(model, "deepvit_cures", []), record]  # type: ignore[assignment]


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy of the model whose tensors have shapes only."""
    tensors: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    shapes: dict[int, Any] = {}
    for tensor in tensors:
        empty = torch.empty_like(tensor, device="meta")
        parameter = isinstance(tensor, nn.Parameter)
        shapes[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if parameter else empty
    return copy.deepcopy(model, shapes)


def _choose_blocks(
    model: nn.Module, cure: Cure, want: Wanted, blocks: Blocks, report: Any, *, alone: bool
) -> list[int]:
    depth = len(blocks_of(model, cure.name))
    if not cure.per_block:
        if want.blocks is not None or (alone and blocks != "all"):
            raise UserError(f"{cure.name} changes the whole model and takes no blocks; leave them out")
        return []
    spec = blocks if want.blocks is None else want.blocks
    if spec == "auto":
        spec = blocks_from_report(report, cure.name, depth)
    chosen = parse_blocks(spec, depth)
    if not chosen:
        raise UserError(f"{cure.name}: blocks={spec!r} names no block")
    return chosen


def _check_exclusions(model: nn.Module, new: list[tuple[str, list[int]]]) -> None:
    present: list[dict[str, Any]] = list(getattr(model, "deepvit_cures", []))  # type: ignore[arg-type]
    old = _as_numbered_now(present)
    for place, (name, chosen) in enumerate(new):
        for other, theirs in old + new[:place]:
            shared = sorted(set(chosen) & set(theirs))
            if name == other and (shared or not CURES[name].per_block):
                raise UserError(
                    f"the model has {name} already" + (f" in block {shared[0]}" if shared else "")
                )
            if shared and CURES[name].excludes(CURES[other]):
                raise UserError(
                    f"{other} and {name} exclude each other and both ask for block {shared[0]}; "
                    "choose one, or give them different blocks"
                )


def _as_numbered_now(record: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[int]]]:
    """What a model has, with the numbers that its blocks have now: removed ones are gone, later ones moved up."""
    found: list[tuple[str, list[int]]] = []
    for entry in record:
        if not CURES[entry["name"]].removes:
            found.append((entry["name"], list(entry["blocks"])))
            continue
        gone = set(entry["blocks"])
        moved = [(name, [b for b in blocks if b not in gone]) for name, blocks in found]
        found = [(name, [b - sum(g < b for g in gone) for b in blocks]) for name, blocks in moved]
    return found


def blocks_from_report(report: Any, cure: str, depth: int) -> str:
    """The blocks that a collapse report gives a cure: its own recommendation, else from where collapse
    begins.

    ``report`` is a path to collapse.json, its content, or a ``Report``. Raises UserError without one, for a
    file that is none, and for a report that found nothing to cure.
    """
    if report is None:
        raise UserError(
            "blocks 'auto' takes them from a collapse report: give report= (--cure_report collapse.json)"
        )
    if isinstance(report, (str, os.PathLike)):
        report = read_json(report, "a collapse report")
    verdict = report.get("verdict") if isinstance(report, Mapping) else getattr(report, "verdict", None)
    if verdict is None:
        raise UserError(
            "that is no collapse report: it has no verdict; deepvit diagnose writes collapse.json"
        )
    told = verdict if isinstance(verdict, Mapping) else dataclasses.asdict(verdict)
    try:
        found = [str(entry["blocks"]) for entry in told.get("cures", []) if entry["name"] == cure]
    except (TypeError, KeyError, AttributeError):
        raise UserError("that is a damaged collapse report: its verdict has no list of cures") from None
    if found:
        return found[0]
    if CURES[cure].removes:
        raise UserError(
            f"the collapse report names no blocks for {cure} (verdict: {told.get('kind')}): no block in it is idle, "
            "or it was written without lesions (deepvit diagnose --lesions auto)"
        )
    first = told.get("from_block")
    if not told.get("collapsed") or first is None:
        kind = told.get("kind")
        raise UserError(
            f"the collapse report names no blocks for {cure} (verdict: {kind}); name them yourself"
        )
    if first >= depth:
        raise UserError(
            f"the report is of a deeper model: collapse from block {first}, but here are {depth} blocks"
        )
    return f"{first}-{depth - 1}"
