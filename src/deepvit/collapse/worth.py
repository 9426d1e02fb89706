"""From lesions to findings: idle blocks, blocks that do harm, and whether each likeness matters. No words here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deepvit.collapse.lesions.effects import Effect, Lesions
from deepvit.collapse.lesions.lines import IDLE, does_harm, is_idle, scale
from deepvit.collapse.lesions.together import earliest_exit, idle_by_itself, largest, removable
from deepvit.collapse.results import BlockFacts, Finding

# Of the blocks that a likeness speaks of, so many must say the same for it to be said of all.
_MOST = 0.75
# Patches that nothing needs in the last two blocks are no news: with a class token nobody looks at them there.
_LAST = 2
# Which lesion says whether a likeness matters: without effect, the blocks do not need what is alike in them.
ASKED = {
    "maps_alike": "map_reuse",
    "uniform_maps": "attention",
    "sharp_maps": "attention",
    "patches_alike": "patch_mean",
}


def harm(found: Lesions) -> Finding | None:
    """Blocks without which the network answers better."""
    bad = [effect for effect in found.single("block").values() if does_harm(effect)]
    if not bad:
        return None
    worst = min(bad, key=lambda effect: effect.loss or 0.0)
    blocks = [b for effect in sorted(bad, key=lambda e: e.blocks[0]) for b in effect.blocks]
    finding = _of_effect("harm", blocks, found, worst)
    finding.numbers["loss"] = {"here": -(worst.loss or 0.0), "block": float(worst.blocks[0])}
    return finding


def idle(found: Lesions, blocks: Sequence[BlockFacts]) -> Finding | None:
    """The largest set of blocks without which the answers are kept."""
    order = sorted(found.single("block"))
    best = removable(found, order)
    if best is None:
        return None
    finding = _of_effect("idle", best.blocks, found, best)
    finding.to_end = best.blocks == order[-len(best.blocks) :]
    finding.numbers["blocks"] = {"here": float(len(best.blocks)), "of": float(len(blocks))}
    return finding


def remarks(found: Lesions, blocks: Sequence[BlockFacts], main: Sequence[Finding]) -> list[Finding]:
    """What else the lesions say: other idle blocks, the earliest end, what nothing needs, or that every block works."""
    said = {block for finding in main if finding.about == "idle" for block in finding.blocks}
    notes: list[Finding] = []
    more = largest(found)
    if more is not None and said and len(more.blocks) > len(said):
        notes.append(replace(_of_effect("idle_more", more.blocks, found, more), kind="notice"))
        said = said | set(more.blocks)
    alone = sorted(set(idle_by_itself(found)) - said)
    if alone:
        values = [found.single("block")[block].value for block in alone]
        notes.append(
            _notice(found, "idle_alone", alone, {"answers": {"here": max(values), "line": _line(found)}})
        )
    end = earliest_exit(found)
    last = blocks[-1].index
    if end is not None and not any(
        f.to_end and f.blocks[0] <= end.blocks[0] + 1 for f in main if f.about == "idle"
    ):
        notes.append(replace(_of_effect("early_end", end.blocks, found, end), kind="notice"))
    singles = found.single("block")
    if singles and not idle_by_itself(found) and not any(f.about in ("idle", "harm") for f in main):
        least = min(singles.values(), key=lambda effect: effect.value)
        numbers = {"answers": {"here": least.value, "line": _line(found)}}
        notes.append(_notice(found, "every_block", least.blocks, numbers))
    for about, lesion in (("patches_unneeded", "patch_mean"), ("maps_unneeded", "map_reuse")):
        stretch = _unneeded_to_end(found, lesion)
        enough = len(stretch) > _LAST if lesion == "patch_mean" else len(stretch) > 1
        if enough and not set(stretch) <= said and last >= stretch[0]:
            notes.append(_notice(found, about, stretch, {lesion: _summary(found, lesion, stretch)}))
    return notes


def tested(finding: Finding, found: Lesions, idle_blocks: Sequence[int]) -> Finding:
    """A likeness with what the lesions of its blocks say: ``outcome`` and the numbers that this rests on.

    "idle": these blocks can go, so what is alike in them is a sign of that. "unneeded": what is alike in them is not
    needed: the maps of the block before do as well (and the attention, by ``numbers``, may be needed or not); uniform
    or sharp attention can go; nothing needs the patches' differences. "needed": each needs its own. "mixed": some do.
    """
    lesion = ASKED.get(finding.about)
    if lesion is None:
        return finding
    inside = [b for b in finding.blocks if b in found.single("block")] or finding.blocks
    numbers = dict(finding.numbers)
    asked = {lesion: finding.blocks}
    if finding.about == "maps_alike":
        asked = {"map_reuse": finding.blocks[1:], "attention": finding.blocks}
    for key, blocks in asked.items():
        known = [b for b in blocks if b in found.single(key)]
        if known:
            numbers[key] = _summary(found, key, known)
    outcome = ""
    if inside and len(set(inside) & set(idle_blocks)) >= _MOST * len(inside):
        outcome = "idle"
    elif lesion in numbers:
        share = numbers[lesion]["kept"] / numbers[lesion]["of"]
        outcome = "unneeded" if share >= _MOST else "needed" if share <= 1 - _MOST else "mixed"
    return replace(finding, numbers=numbers, outcome=outcome, measure=found.measure)


def is_collapse(finding: Finding, task: str) -> bool:
    """Whether a likeness that the rules call a collapse is one, as the lesions have it.

    Blocks that are idle, or that need their own maps although these are alike, are none. Patches that are alike are
    how a classifier finishes, and a collapse where patches are the answer (dense prediction), or may be (features).
    """
    if finding.about == "patches_alike":
        return task != "classification"
    return finding.outcome not in ("idle", "needed")


def _of_effect(about: str, blocks: Sequence[int], found: Lesions, effect: Effect) -> Finding:
    """A finding that rests on one effect: ``answers``, ``changed`` and ``score`` with and without the lesion."""
    numbers = {"answers": {"here": effect.value, "line": _line(found)}}
    if effect.changed is not None:
        numbers["changed"] = {"here": effect.changed}
    if effect.score is not None and found.score is not None:
        numbers["score"] = {"here": effect.score, "intact": found.score}
    return Finding(about, about, list(blocks), numbers, measure=found.measure, figure=found.score_name)


def _notice(
    found: Lesions, about: str, blocks: Sequence[int], numbers: dict[str, dict[str, float]]
) -> Finding:
    return Finding("notice", about, list(blocks), numbers, measure=found.measure, figure=found.score_name)


def _line(found: Lesions) -> float:
    return IDLE * scale(found)


def _summary(found: Lesions, lesion: str, blocks: Sequence[int]) -> dict[str, float]:
    """Mean effect over blocks, in how many of them it is none, of how many, and the line."""
    effects = [found.single(lesion)[block] for block in blocks]
    return {
        "here": sum(effect.value for effect in effects) / len(effects),
        "kept": float(sum(is_idle(found, effect) for effect in effects)),
        "of": float(len(effects)),
        "line": _line(found),
    }


def _unneeded_to_end(found: Lesions, lesion: str) -> list[int]:
    """The blocks from the first one on after which this lesion never does anything."""
    effects = sorted(found.single(lesion).values(), key=lambda effect: effect.blocks[0])
    stretch: list[int] = []
    for effect in reversed(effects):
        if not is_idle(found, effect):
            break
        stretch.insert(0, effect.blocks[0])
    return stretch
