"""The verdict in parts: what collapses, from which block on, what answers it, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from deepvit.collapse import findings
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
) -> Verdict:
    """The verdict on per-block means over images.

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
    notices = findings.notices(blocks, series, set(collapses), everywhere)
    for kind, stretch in stretches.items():
        if kind not in collapses and not (everywhere and kind == "uniform_maps"):
            notices.append(replace(findings.of_stretch(stretch, blocks, series, by_kind), kind="notice"))
    if everywhere:
        main = [findings.of_untrained(blocks, series, by_kind)]
    else:
        main = [findings.of_stretch(stretch, blocks, series, by_kind) for stretch in ordered]
    sureness, agreement, images = _sureness(main[0] if main else None, shares, series)
    indices = [block.index for block in blocks]
    cures: dict[str, Cure] = {}
    for finding in main:
        for cure in cures_for(finding.kind, finding.blocks, indices):
            cures.setdefault(cure.name, cure)
    return Verdict(
        kind=main[0].kind if main else "healthy",
        collapsed=bool(ordered),
        from_block=blocks[ordered[0].start].index if ordered else None,
        findings=[*main, *notices],
        cures=list(cures.values()),
        sureness=sureness,
        agreement=agreement,
        images=images,
        counts=findings.counts_of(blocks, series),
    )


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
