"""The words of a verdict, joined from its parts: every sentence names its blocks and the numbers it rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deepvit.collapse.catalogue import KINDS
from deepvit.collapse.metrics.cross import SIMILAR_THRESHOLD
from deepvit.collapse.results import Counts, Finding, Verdict
from deepvit.collapse.states import PATCHES_ALIKE
from deepvit.collapse.verdict import FEW_IMAGES
from deepvit.report import lesion_words

_SURE = {"sure": "This is sure", "likely": "This is likely", "unsure": "This is not sure"}
# Maps or heads that are less alike than this are said to differ.
_DIFFERENT = 0.5


def headline(verdict: Verdict) -> str:
    """One line: which blocks are idle or do harm, or whether it collapses, towards what, from which block on."""
    main = verdict.main
    if verdict.kind == "untrained_or_uniform":
        return "Untrained or uniform: the maps of every block are near uniform"
    if main is None:
        every = any(found.about == "every_block" for found in verdict.findings)
        return "No collapse, and every block works" if every else "No collapse"
    if main.about in ("idle", "harm"):
        return lesion_words.headline(main)
    where = f"from block {verdict.from_block} on" if main.to_end else f"in {span(main.blocks)}"
    return f"Collapse: {KINDS[verdict.kind]} {where}"


def paragraph(verdict: Verdict) -> str:
    """What a page says under its headline: the finding that names the verdict, and what follows.

    The counts of similar blocks stand here only where likeness is what was judged by.
    """
    main = verdict.main
    least = next((found for found in verdict.findings if found.about == "every_block"), None)
    first = main if main is not None else least
    told = "" if verdict.judged else counts(verdict.counts)
    parts = [
        "" if first is None else sentence(first),
        told,
        aftermath(verdict),
        lesion_words.untested(verdict),
    ]
    return " ".join(part for part in parts if part)


def body(verdict: Verdict) -> str:
    """The whole verdict without its headline: findings, counts, remarks, cures, and how sure."""
    main = [sentence(found) for found in verdict.findings if found.kind != "notice"]
    notices = [sentence(found) for found in verdict.findings if found.kind == "notice"]
    parts = [*main, counts(verdict.counts), *notices, aftermath(verdict), lesion_words.untested(verdict)]
    if verdict.cures:
        names = [f"{cure.name} ({cure.blocks})" for cure in verdict.cures[:3]]
        parts.append(f"What answers it, with the blocks: {', '.join(names)}.")
    parts.append(f"{_SURE[verdict.sureness]}: {sureness(verdict)}.")
    return " ".join(part for part in parts if part)


def aftermath(verdict: Verdict) -> str:
    """What a verdict that is no collapse comes to; empty elsewhere."""
    if verdict.kind != "untrained_or_uniform":
        return ""
    return "A freshly initialised network looks like this, so it is not called collapse: train it first."


def sureness(verdict: Verdict) -> str:
    """How sure, and by what: a clause."""
    images, agree = verdict.images, verdict.agreement
    if verdict.judged and verdict.kind in ("idle", "harm", "healthy"):
        return lesion_words.sureness(verdict)
    if agree is None:
        return "how much it differs between images was not measured"
    if images == 1:
        return "one image was measured, which is too few to be sure"
    if verdict.main is None:
        who = f"all {images} images" if agree == 1 else f"at least {agree:.0%} of {images} images"
        words = f"{who} show no two blocks in a collapsed state"
    else:
        words = f"{agree:.0%} of {images} images show it by themselves (mean over these blocks)"
    return words + (f"; {images} images are too few to be sure" if images < FEW_IMAGES else "")


def counts(told: Counts) -> str:
    """How many blocks count as similar, and the patch similarity at both ends: said in every verdict."""
    parts = []
    if told.comparable:
        words = f"{told.similar} of {told.comparable} blocks are similar to the previous one "
        words += f"(at least {SIMILAR_THRESHOLD})"
        words += " in the maps that multiply V, so after heads are mixed" if told.mixed else ""
        parts.append(words + f"; similarities lie between {_n(told.lowest)} and {_n(told.highest)}.")
    if told.patches:
        (first, at_first), (last, at_last) = told.patches
        ends = [f"{_n(at_first)} after block {first:.0f}"]
        if last != first:  # of one block both ends are the same
            ends.append(f"{_n(at_last)} after block {last:.0f}")
        parts.append(f"Patch similarity: {', '.join(ends)}.")
    return " ".join(parts)


def sentence(finding: Finding) -> str:
    """A finding in a sentence."""
    return _SENTENCES[finding.about](finding) + lesion_words.whether_it_matters(finding) + "."


def evidence(finding: Finding, name: Callable[[str], str] = str) -> dict[str, float]:
    """What a finding's sentence rests on: "entropy, mean of these blocks" → number; ``name`` names a metric."""
    found = {}
    for metric, numbers in finding.numbers.items():
        for where, value in numbers.items():
            if where in ("line", "kept", "of", "intact", "block") and metric != "attended_keys":
                continue  # beside the number that they belong to
            if metric in lesion_words.TOLD:
                if told := lesion_words.TOLD[metric](finding):
                    found[told] = value
            elif metric == "attended_keys":
                if where == "here":
                    found[f"tokens that a query attends to, of {numbers['of']:.0f}"] = value
            else:
                here = where == "here" and len(finding.blocks) == 1
                found[f"{name(metric)}, {'this block' if here else _WHERE[where]}"] = value
    return found


_WHERE = {
    "here": "mean of these blocks",
    "before": "mean of the blocks before",
    "deeper_half": "mean of the deeper half",
}


def span(blocks: Sequence[int]) -> str:
    """ "block 3", "blocks 3 to 7", "blocks 3 to 7 (4 of them)"."""
    if len(blocks) == 1:
        return f"block {blocks[0]}"
    full = list(blocks) == list(range(blocks[0], blocks[-1] + 1))
    return f"blocks {blocks[0]} to {blocks[-1]}" + ("" if full else f" ({len(blocks)} of them)")


def _maps_alike(found: Finding) -> str:
    own, centred = found.number("attention_similarity"), found.number("attention_similarity_centred")
    heads = found.number("head_similarity")
    words = (
        f"The maps of {span(found.blocks)} are alike: attention similarity with the previous block {_n(own)}"
    )
    words += f" ({_n(centred)} on centred maps, so it is not mere uniformity)"
    words += _before(found, "attention_similarity")
    if heads is not None:
        words += f". The heads of one block are alike by {_n(heads)}"
        words += ", so mixing them can make new maps" if heads < _DIFFERENT else ""
    return words


def _uniform_maps(found: Finding) -> str:
    words = f"The maps of {span(found.blocks)} are near uniform: entropy {_n(found.number('entropy'), 3)} of at most 1"
    return words + _before(found, "entropy", 3) + "; their attention only averages over the image"


def _sharp_maps(found: Finding) -> str:
    seen, most = found.number("attended_keys") or 0.0, found.number("attended_keys", "of") or 0.0
    words = f"The maps of {span(found.blocks)} are too sharp: entropy {_n(found.number('entropy'), 3)}, so a query "
    return words + f"attends to about {seen:.1f} of {most:.0f} tokens" + _before(found, "entropy", 3)


def _patches_alike(found: Finding) -> str:
    words = f"The patches that leave {span(found.blocks)} are alike: patch similarity "
    words += f"{_n(found.number('patch_similarity'))}, distance from rank one {_n(found.number('rank_one_distance'))}"
    words += _before(found, "patch_similarity")
    if found.number("patch_similarity", "before") is None:
        words += (
            "; they are so from the first block on, so look at the images and the patch embedding as well"
        )
    return words


def _untrained(found: Finding) -> str:
    entropy, softmax = found.number("entropy"), found.number("softmax_similarity")
    own, centred = found.number("attention_similarity"), found.number("attention_similarity_centred")
    if softmax is not None:
        # Two kinds of maps are spoken of: each number says of which it is.
        words = "Before heads are mixed, every block attends to all tokens nearly alike: "
        words += f"entropy {_n(entropy, 3)} of at most 1. Softmax maps so uniform are alike whatever they do"
        words += f", by {_n(softmax)} with the previous block here"
        return words + ("" if own is None else f"; once mixed, the maps are alike by {_n(own)}")
    words = f"Every block attends to all tokens nearly alike: entropy {_n(entropy, 3)} of at most 1"
    if own is not None and own >= SIMILAR_THRESHOLD:
        words += f". Their similarity with the previous block, {_n(own)}, says nothing: any two uniform maps are alike"
        words += f"; on centred maps it is {_n(centred)}" if centred is not None else ""
    return words


def _close_maps(found: Finding) -> str:
    value = _n(found.number("attention_similarity"))
    return f"In the deeper half neighbouring maps are close to alike, {value} on the average"


def _mixed_maps(found: Finding) -> str:
    softmax, own = found.number("softmax_similarity"), found.number("attention_similarity")
    words = f"Where heads are mixed ({span(found.blocks)}) the softmax maps are alike by "
    return words + f"{_n(softmax)} with the previous block, the mixed maps by {_n(own)}"


def _patches_high(found: Finding) -> str:
    value, maps = found.number("patch_similarity") or 0.0, found.number("attention_similarity", "deeper_half")
    level = "nearly all alike" if value >= PATCHES_ALIKE else "high"
    words = f"Patch similarity after {span(found.blocks)} is {_n(value)}, {level}"
    if maps is not None and maps < _DIFFERENT:
        words += f", although neighbouring maps differ (similarity {_n(maps)} in the deeper half): "
        words += "different maps do not keep the patches apart here"
    return words


_SENTENCES: dict[str, Callable[[Finding], str]] = {
    "maps_alike": _maps_alike,
    "uniform_maps": _uniform_maps,
    "sharp_maps": _sharp_maps,
    "patches_alike": _patches_alike,
    "untrained_or_uniform": _untrained,
    "close_maps": _close_maps,
    "mixed_maps": _mixed_maps,
    "patches_high": _patches_high,
    **lesion_words.SENTENCES,
}


def _before(found: Finding, metric: str, digits: int = 2) -> str:
    value = found.number(metric, "before")
    return "" if value is None else f"; {_n(value, digits)} on the average before them"


def _n(value: float | None, digits: int = 2) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}".replace("-", "−")
