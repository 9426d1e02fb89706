"""The verdict in words, with the numbers it rests on.

Does it collapse, from which block on, towards what, what answers that and in which blocks, and how sure is
that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deepvit.collapse import sentences
from deepvit.collapse.findings import Stretch, block_states, find_stretch, number_at
from deepvit.collapse.remedies import cures_for
from deepvit.collapse.results import BlockFacts, Cure, Finding, Series, Verdict

# At the same first block the more special state, and what comes first within a block, explains the other.
_PRIORITY = ("uniform_maps", "sharp_maps", "maps_alike", "patches_alike")
_STATE = {
    "maps_alike": "alike",
    "uniform_maps": "uniform",
    "sharp_maps": "sharp",
    "patches_alike": "patches",
}
# Below this many images "sure" would say more about the sample than about the model.
_FEW_IMAGES = 8


def decide(
    blocks: Sequence[BlockFacts],
    series: Mapping[str, Series],
    shares: Mapping[str, Sequence[float | None]] | None = None,
) -> Verdict:
    """The verdict on per-block means over images.

    ``shares``: for "alike", "uniform", "sharp" and "patches" the share of images in which each block is in
    that state; without them the verdict is "unsure". Where several kinds of collapse are found, the one
    that sets in first names the verdict, because it brings the others about; all are told. Near-uniform
    maps in every block are called "untrained or uniform", never collapse. Thresholds: ``states``; stretches
    of blocks: ``findings``.
    """
    shares = shares or {}
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
    findings = [_finding(stretch, blocks, series, shares) for stretch in ordered]
    notices = sentences.notices(blocks, series, set(collapses), everywhere)
    for kind, stretch in stretches.items():
        if kind not in collapses and not (everywhere and kind == "uniform_maps"):
            partial = _finding(stretch, blocks, series, shares)
            notices.append(
                Finding("notice", partial.blocks, partial.sentence, partial.evidence, partial.images_share)
            )
    indices = [block.index for block in blocks]
    if everywhere:
        kind, main = "untrained_or_uniform", [_everywhere_finding(blocks, series, shares)]
    elif ordered:
        kind, main = ordered[0].kind, findings
    else:
        kind, main = "healthy", []
    from_block = blocks[ordered[0].start].index if ordered else None
    headline = sentences.headline(kind, blocks, ordered[0] if ordered else None)
    sureness, why = _sureness(main[0] if main else None, shares, series, blocks)
    cures: list[Cure] = []
    for finding in main:
        for cure in cures_for(finding.kind, finding.blocks, indices):
            if cure.name not in {known.name for known in cures}:
                cures.append(cure)
    text = sentences.whole_text(kind, headline, main, notices, cures, sureness, why, blocks, series)
    return Verdict(kind, bool(ordered), from_block, headline, text, [*main, *notices], cures, sureness, why)


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


def _finding(
    stretch: Stretch,
    blocks: Sequence[BlockFacts],
    series: Mapping[str, Series],
    shares: Mapping[str, Sequence[float | None]],
) -> Finding:
    members = sorted({stretch.start, *stretch.members})
    sentence, evidence = sentences.describe(stretch, blocks, series)
    return Finding(
        stretch.kind,
        [blocks[position].index for position in members],
        sentence,
        evidence,
        _share(shares.get(_STATE[stretch.kind]), stretch.members),
    )


def _everywhere_finding(
    blocks: Sequence[BlockFacts],
    series: Mapping[str, Series],
    shares: Mapping[str, Sequence[float | None]],
) -> Finding:
    positions = [p for p in range(len(blocks)) if number_at(series, "entropy", p) is not None]
    sentence, evidence = sentences.describe_everywhere(positions, series)
    indices = [blocks[position].index for position in positions]
    return Finding(
        "untrained_or_uniform", indices, sentence, evidence, _share(shares.get("untrained"), positions)
    )


def _share(values: Sequence[float | None] | None, positions: Sequence[int]) -> float | None:
    known = [value for p in positions if values is not None and (value := values[p]) is not None]
    return sum(known) / len(known) if known else None


def _sureness(
    main: Finding | None,
    shares: Mapping[str, Sequence[float | None]],
    series: Mapping[str, Series],
    blocks: Sequence[BlockFacts],
) -> tuple[str, str]:
    """How sure: by the share of images that show the finding (or, when healthy, any state) by themselves."""
    patches = main is not None and main.kind == "patches_alike"
    counted = series.get("patch_similarity" if patches else "entropy") or next(iter(series.values()), None)
    images = 0 if counted is None else counted.images
    if not shares or images == 0:
        return "unsure", "how much it differs between images was not measured"
    if main is None:
        # The second highest: one block by itself is no collapse either.
        worst = max(_second(values) for values in (shares.get(state, ()) for state in _STATE.values()))
        agree, what = 1 - worst, "show no two blocks in a collapsed state"
        words = (
            f"all {images} images {what}" if agree == 1 else f"at least {agree:.0%} of {images} images {what}"
        )
    else:
        agree = main.images_share if main.images_share is not None else 0.0
        words = f"{agree:.0%} of {images} images show it by themselves (mean over these blocks)"
    level = "sure" if agree >= 0.9 else "likely" if agree >= 0.7 else "unsure"
    if images < _FEW_IMAGES:
        words += f"; {images} images are few"
        level = "likely" if level == "sure" else level
    return level, words


def _second(values: Sequence[float | None]) -> float:
    known = sorted((value for value in values if value is not None), reverse=True)
    return known[1] if len(known) > 1 else 0.0
