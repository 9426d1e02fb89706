"""The verdict in parts: which blocks earn their place, what collapses, what answers it, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from deepvit.collapse import findings, worth
from deepvit.collapse.lesions import lines
from deepvit.collapse.lesions.effects import Lesions
from deepvit.collapse.remedies import cures_for
from deepvit.collapse.results import BlockFacts, Cure, Finding, Series, Verdict
from deepvit.collapse.stretches import Stretch, block_states, find_stretch

# At the same first block the more special state, and what comes first within a block, explains the other.
_PRIORITY = ("uniform_maps", "sharp_maps", "maps_alike", "patches_alike")
# The states whose shares of images are kept, by the kind of finding that they show.
_STATE = {
    "maps_alike": "alike",
    "uniform_maps": "uniform",
    "sharp_maps": "sharp",
    "patches_alike": "patches",
}
FEW_IMAGES = 8
"""Below this many images "sure" would say more about the sample than about the model."""


def decide(
    blocks: Sequence[BlockFacts],
    series: Mapping[str, Series],
    shares: Mapping[str, Sequence[float | None]] | None = None,
    lesions: Lesions | None = None,
) -> Verdict:
    """The verdict on per-block means over images, and on lesions where there are any.

    Lesions say what matters: blocks that do harm or that are idle come first, and a likeness is a collapse only where
    the blocks work and yet need nothing of their own (``worth``). Without lesions likeness alone decides.

    ``shares``: for "alike", "uniform", "sharp", "patches" and "untrained" the share of images in which each
    block is in that state; without them the verdict is "unsure". Where several kinds of collapse are found,
    the one that sets in first names the verdict, because it brings the others about; all are told.
    Near-uniform maps in every block are called "untrained or uniform", never collapse. Thresholds:
    ``states``; stretches of blocks: ``stretches``.
    """
    shares = dict(shares or {})
    by_kind = {kind: shares[state] for kind, state in _STATE.items() if state in shares}
    if "untrained" in shares:
        by_kind["untrained"] = shares["untrained"]
    states = block_states(blocks, series)
    stretches = {}
    for kind in _PRIORITY:
        flags = states[kind]
        # With a class token nobody uses the last block's patches: one alike block at the end is no collapse.
        single = kind == "patches_alike" and not any(block.prefix for block in blocks)
        found = find_stretch(kind, flags, least=1 if single else 2)
        if found is not None:
            stretches[kind] = found
    fresh = [flag for flag in states["untrained"] if flag is not None]
    everywhere = bool(fresh) and all(fresh)
    collapses = {} if everywhere else {k: s for k, s in stretches.items() if _is_collapse(s, len(blocks))}
    ordered = sorted(collapses.values(), key=lambda s: (s.first, _PRIORITY.index(s.kind)))
    alike = [findings.of_stretch(stretch, blocks, series, by_kind) for stretch in ordered]
    notices = findings.notices(blocks, series, set(collapses), everywhere)
    for kind, stretch in stretches.items():
        if kind not in collapses and not (everywhere and kind == "uniform_maps"):
            notices.append(replace(findings.of_stretch(stretch, blocks, series, by_kind), kind="notice"))
    judged = lines.believed(lesions) and not everywhere
    if everywhere:
        main = [findings.of_untrained(blocks, series, by_kind)]
    elif judged and lesions is not None:
        main, more = _by_lesions(lesions, blocks, alike)
        notices = [*more, *notices]
    else:
        main = alike
    sureness, agreement, images = _sureness(main[0] if main else None, shares, series)
    doubt = None
    if judged and lesions is not None and (not main or main[0].kind in ("idle", "harm")):
        sureness, agreement, doubt, images = _sureness_of_lesions(main[0] if main else None, lesions)
    indices = [block.index for block in blocks]
    cures: dict[str, Cure] = {}
    for finding in main:
        for cure in cures_for(finding.kind, finding.blocks, indices):
            # What is cut must have the numbers that a cut takes; elsewhere it is a remark without a command.
            if cure.name != "cut" or _numbered(blocks):
                cures.setdefault(cure.name, cure)
    first = main[0] if main else None
    collapsed = [finding for finding in main if finding.kind in _PRIORITY]
    return Verdict(
        kind=first.kind if first else "healthy",
        collapsed=bool(collapsed),
        from_block=first.blocks[0] if first is not None and first.kind != "untrained_or_uniform" else None,
        findings=[*main, *notices],
        cures=list(cures.values()),
        sureness=sureness,
        agreement=agreement,
        images=images,
        counts=findings.counts_of(blocks, series),
        doubt=doubt,
        **_about_lesions(lesions, judged),
    )


def _by_lesions(
    found: Lesions, blocks: Sequence[BlockFacts], alike: Sequence[Finding]
) -> tuple[list[Finding], list[Finding]]:
    """Findings in the order of what matters, and remarks."""
    bad, gone = worth.harm(found), worth.idle(found, blocks)
    likenesses = [worth.tested(finding, found, gone.blocks if gone else []) for finding in alike]
    collapses = [finding for finding in likenesses if worth.is_collapse(finding, found.task)]
    main = [*([bad] if bad else []), *([gone] if gone else []), *collapses]
    harmless = [replace(finding, kind="notice") for finding in likenesses if finding not in collapses]
    return main, [*worth.remarks(found, blocks, main), *harmless]


def _about_lesions(found: Lesions | None, judged: bool) -> dict[str, Any]:
    """What of the lesions a verdict states besides its findings."""
    if found is None:
        return {"unjudged": "off"}
    why = "failed" if found.failed else "" if judged else "tells_nothing"
    return {
        "judged": sorted({effect.lesion for effect in found.effects}) if judged else [],
        "untested": list(found.left_out),
        "refused": len(found.refused),
        "unjudged": why,
        "task": found.task,
        "score_name": found.score_name,
        "measure": found.measure,
    }


def _numbered(blocks: Sequence[BlockFacts]) -> bool:
    """Whether blocks are called ``blocks.0``, ``blocks.1``, … by their numbers, as cures count them."""
    names = [block.name.rpartition("blocks.") for block in blocks]
    return all(mid and rest == str(b.index) for (_, mid, rest), b in zip(names, blocks, strict=True))


def _sureness_of_lesions(main: Finding | None, found: Lesions) -> tuple[str, float | None, float | None, int]:
    """How sure idle blocks, harm, or that every block works is; share of images, the most by chance, of how many."""
    if main is None:
        singles = found.single("block").values()
        line = lines.IDLE * lines.scale(found)
        clear = all(e.value - 2 * e.error(found.images) > line for e in singles)
        return ("sure" if clear and found.images >= FEW_IMAGES else "likely"), None, None, found.images
    if main.kind == "harm" or "changed" not in main.numbers:
        return ("sure" if found.images >= 8 * FEW_IMAGES else "likely"), None, None, found.images
    share = main.numbers["changed"]["here"]
    most = upper_share(share, found.images)
    level = "sure" if most <= 0.06 else "likely" if most <= 0.2 else "unsure"
    return level, 1 - share, most, found.images


def upper_share(share: float, count: int) -> float:
    """The upper end of Wilson's 95% interval of a share that was seen in ``count`` images (Wilson 1927)."""
    z = 1.96
    centre = share + z * z / (2 * count)
    width = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return min(1.0, (centre + width) / (1 + z * z / count))


def _is_collapse(stretch: Stretch, depth: int) -> bool:
    """Whether a stretch is a collapse rather than a remark."""
    if stretch.to_end:
        return True
    if stretch.kind == "patches_alike":
        # The patches come apart again further on.
        return False
    if stretch.kind == "uniform_maps":
        # First blocks often average over the image before they look at anything.
        return stretch.members[-1] >= depth // 2
    return True


def _sureness(
    main: Finding | None, shares: Mapping[str, Sequence[float | None]], series: Mapping[str, Series]
) -> tuple[str, float | None, int]:
    """How sure, the share of images that show the finding (or, when healthy, no state) by themselves, of how many."""
    patches = main is not None and main.kind == "patches_alike"
    counted = series.get("patch_similarity" if patches else "entropy") or next(iter(series.values()), None)
    images = 0 if counted is None else counted.images
    if not shares or images == 0:
        return "unsure", None, images
    if main is None:
        # The second highest: one block by itself is no collapse either.
        agree = 1 - max(_second(shares.get(state, ())) for state in _STATE.values())
    else:
        agree = main.images_share if main.images_share is not None else 0.0
    level = "sure" if agree >= 0.9 else "likely" if agree >= 0.7 else "unsure"
    if images < FEW_IMAGES and level == "sure":
        level = "likely"
    return level, agree, images


def _second(values: Sequence[float | None]) -> float:
    known = sorted((value for value in values if value is not None), reverse=True)
    return known[1] if len(known) > 1 else 0.0
