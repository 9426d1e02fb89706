"""The words for what each block is worth: joined from the parts of findings that rest on lesions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deepvit.collapse.lesions.catalogue import LESIONS
from deepvit.collapse.lesions.effects import Lesions
from deepvit.collapse.results import Finding, Verdict

# How the answer's distance is told: behind the number.
UNITS = {"kl": "nats", "kl_per_pixel": "nats a pixel", "cosine": "(1 − cosine)"}
MEASURES = {
    "kl": "KL divergence of the class probabilities from the intact network's, in nats",
    "kl_per_pixel": "KL divergence of the class probabilities from the intact network's, in nats, mean over pixels",
    "cosine": "1 − cosine of the pooled output and the intact network's (it has no classifier)",
}


def span(blocks: Sequence[int]) -> str:
    """ "block 3", "blocks 3 and 5", "blocks 3, 5 to 7 and 9"."""
    runs: list[list[int]] = []
    for block in sorted(blocks):
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    parts: list[str] = []
    for run in runs:
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(block) for block in run]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"block{'' if len(blocks) == 1 else 's'} {listed}"


def headline(main: Finding) -> str:
    """One line for a verdict whose first finding rests on lesions."""
    if main.about == "harm":
        subject = span(main.blocks)
        return f"{_capital(subject)} {'does' if len(main.blocks) == 1 else 'do'} harm{_figures(main, ': ')}"
    if main.to_end:
        return f"Idle from block {main.blocks[0]} on: {_kept(main)}"
    return f"{_capital(span(main.blocks))} {'is' if len(main.blocks) == 1 else 'are'} idle: {_kept(main)}"


def idle(found: Finding) -> str:
    """What can go."""
    number, of = found.number("blocks") or len(found.blocks), found.number("blocks", "of")
    share = f"{number:.0f} of {of:.0f} blocks" if of else span(found.blocks)
    gone = "with it taken away" if len(found.blocks) == 1 else "with all of them taken away at once"
    does = "does" if len(found.blocks) == 1 else "do"
    words = f"{_capital(span(found.blocks))} ({share}) {does} nothing that the answer needs: {gone}"
    return words + _list(found)


def harm(found: Finding) -> str:
    """What would be better gone."""
    worst = found.number("loss", "block")
    subject = f"block {worst:.0f}" if worst is not None else span(found.blocks)
    words = f"Without {subject} the network answers better: cross-entropy falls by {_n(found.number('loss'))} nats"
    score, intact = found.number("score"), found.number("score", "intact")
    if score is not None and intact is not None:
        words += f", and {found.figure} is {percent(score)} instead of {percent(intact)}"
    return words + (
        f" (so it does, one at a time, for {span(found.blocks)})" if len(found.blocks) > 1 else ""
    )


def idle_more(found: Finding) -> str:
    """A larger set that could go."""
    return (
        f"More could go, on these images: without {span(found.blocks)} ({len(found.blocks)} in all)"
        + _list(found)
    )


def idle_alone(found: Finding) -> str:
    """Idle one by one, but not all together."""
    alone = "itself" if len(found.blocks) == 1 else "themselves"
    return f"By {alone} {span(found.blocks)} could go as well, but not together with the rest"


def early_end(found: Finding) -> str:
    """Where the network could end."""
    return f"The network could end after block {found.blocks[0]}" + _list(found, ": then")


def every_block(found: Finding) -> str:
    """Which block is the least worth."""
    words = (
        f"Every block works: even without block {found.blocks[0]}, the least of them, the answer moves by "
    )
    return (
        words
        + f"{_moved(found, 'answers')}; a block counts as idle up to {_n(found.number('answers', 'line'))}"
    )


def patches_unneeded(found: Finding) -> str:
    """From where on nothing needs the patches apart."""
    return (
        f"From block {found.blocks[0]} on nothing needs what the patches say apart: made equal after any of these blocks, "
        "they give the same answer"
    )


def maps_unneeded(found: Finding) -> str:
    """From where on no block needs a map of its own."""
    return f"From block {found.blocks[0]} on every block works as well with the attention map of the block before"


def whether_it_matters(found: Finding) -> str:
    """What lesions say of a likeness, as a clause behind its sentence; empty without lesions."""
    if not found.outcome:
        return ""
    if found.outcome == "idle":
        return ". These blocks are idle, so nothing hangs on it"
    return _CLAUSES[found.about](found)


def _maps_alike(found: Finding) -> str:
    kept, of = found.number("map_reuse", "kept") or 0, found.number("map_reuse", "of") or 0
    if found.outcome == "needed":
        moved = _moved(found, "map_reuse")
        return (
            f". Alike, but each needs its own: with the map of the block before the answer moves by {moved}"
        )
    if found.outcome == "mixed":
        some = f"{kept:.0f} of {of:.0f} of these blocks"
        return f". {some} work as well with the map of the block before; the others need their own"
    words = ". It matters: these blocks work as well with the map of the block before"
    attention = found.numbers.get("attention")
    if attention is None:
        return words
    if attention["kept"] >= 0.75 * attention["of"]:
        return words + ", and as well without any attention"
    return words + f", though not without attention (the answer then moves by {_moved(found, 'attention')})"


def _attention(found: Finding) -> str:
    if found.outcome == "unneeded":
        return ". It matters: without that attention the answer stays"
    if found.outcome == "needed":
        return f". The network needs it as it is: without that attention the answer moves by {_moved(found, 'attention')}"
    kept, of = found.number("attention", "kept") or 0, found.number("attention", "of") or 0
    return f". In {kept:.0f} of {of:.0f} of these blocks the answer stays without that attention"


def _patches_alike(found: Finding) -> str:
    dense = {"kl_per_pixel": ". The answer is made of patches here, so this is what ails the network"}
    task = dense.get(
        found.measure, ". That is how a classifier finishes; for dense prediction it would be a loss"
    )
    if found.measure == "cosine":
        task = ". For one answer an image that is how a network finishes; for dense prediction it is what ails it"
    if found.outcome == "unneeded":
        return ", and nothing after them needs the patches apart" + task
    return (
        f". What still tells them apart is used: made equal, they move the answer by {_moved(found, 'patch_mean')}"
        + task
    )


_CLAUSES: dict[str, Callable[[Finding], str]] = {
    "maps_alike": _maps_alike,
    "uniform_maps": _attention,
    "sharp_maps": _attention,
    "patches_alike": _patches_alike,
}

SENTENCES: dict[str, Callable[[Finding], str]] = {
    "idle": idle,
    "harm": harm,
    "idle_alone": idle_alone,
    "idle_more": idle_more,
    "early_end": early_end,
    "every_block": every_block,
    "patches_unneeded": patches_unneeded,
    "maps_unneeded": maps_unneeded,
}


def _told_lesion(title: str, key: str) -> Callable[[Finding], str]:
    def told(found: Finding) -> str:
        kept, of = found.number(key, "kept"), found.number(key, "of")
        share = (
            f", without effect in {kept:.0f} of {of:.0f} blocks"
            if kept is not None and of is not None
            else ""
        )
        return f"{title}: the answer moves by, {UNITS.get(found.measure, '')}{share}"

    return told


# How the numbers of a finding are called in its list of evidence; "" leaves one out.
TOLD: dict[str, Callable[[Finding], str]] = {
    "answers": lambda found: f"the answer moves by, {UNITS.get(found.measure, '')}",
    "changed": lambda found: "share of answers that change",
    "score": lambda found: (
        f"{found.figure} without them, % (intact {found.number('score', 'intact') or 0:.1f})"
    ),
    "loss": lambda found: "cross-entropy that is saved, nats",
    "blocks": lambda found: "",
    **{key: _told_lesion(kind.title, key) for key, kind in LESIONS.items()},
}


def sureness(verdict: Verdict) -> str:
    """How sure a verdict by lesions is: a clause."""
    images = f"{verdict.images} image{'' if verdict.images == 1 else 's'}"
    if verdict.agreement is None or verdict.doubt is None:
        what = "every block's part in the answer" if verdict.kind == "healthy" else "this"
        return f"{what} was measured on {images}, one lesion at a time"
    changed = round((1 - verdict.agreement) * verdict.images)
    said = (
        f"no answer of {images} changes"
        if changed == 0
        else f"{changed} of {images} get another first answer"
    )
    return f"{said}; of all images at most {percent(100 * verdict.doubt)} would (95%)"


def untested(verdict: Verdict) -> str:
    """What was not tested, in a sentence or two; empty where everything was."""
    if verdict.unjudged == "off":
        return (
            ""
            if not verdict.findings and verdict.kind == "healthy"
            else "Whether this matters to the answer was not tested."
        )
    if verdict.unjudged == "failed":
        return "Whether this matters to the answer could not be tested on this network."
    if verdict.unjudged == "tells_nothing":
        return (
            "The network says nearly the same about every image, so what its blocks are worth cannot be told."
        )
    parts = []
    if verdict.untested:
        names = ", ".join(LESIONS[key].title.lower() for key in verdict.untested if key in LESIONS)
        parts.append(f"Not tested for lack of time (--lesions full does): {names}.")
    if verdict.refused:
        parts.append(
            f"{verdict.refused} lesion{'s' if verdict.refused > 1 else ''} this network does not allow."
        )
    return " ".join(parts)


def account(found: Lesions) -> list[str]:
    """How lesions were done, for the account of the measurement."""
    if found.failed:
        return [f"Lesions: refused. {found.failed}"]
    lines = [
        f"Lesions were done on {found.images} of {found.available} images, evenly spaced, in {found.seconds:.0f} s "
        f"({found.budget}). What they do to the answer is the {MEASURES[found.measure]}.",
        f"Control: every map and all patches replaced by themselves change the output by {found.control or 0.0:.1g} of its "
        "largest entry.",
        f"Between images the answers differ by {found.told_apart:.2f} {UNITS[found.measure]}; the lines are shares of that, "
        "up to 1.",
    ]
    if "labels" in found.notes:
        lines.append(
            "The labels are not those of the network's classes: it agrees with them no better than chance."
        )
    if not found.prefix_kept:
        lines.append(
            "Each lesion ran the whole network: its blocks need more of the ones before than their output."
        )
    if found.left_out:
        lines.append(
            "Left out for lack of time: " + ", ".join(LESIONS[k].title.lower() for k in found.left_out) + "."
        )
    reasons = list(dict.fromkeys(reason for _, reason in found.refused))
    lines += [f"Not done: {reason}." for reason in reasons[:3]]
    if len(reasons) > 3:
        lines.append(f"{len(reasons) - 3} more lesions were not done; collapse.json has the reasons.")
    return lines


def percent(value: float) -> str:
    """ "98.6%"."""
    return f"{value:.1f}%"


def _kept(main: Finding) -> str:
    """What stays without the blocks: "98.6% without them, as with them"."""
    them = "it" if len(main.blocks) == 1 else "them"
    score, intact = main.number("score"), main.number("score", "intact")
    if score is not None and intact is not None:
        same = percent(score) == percent(intact)
        return f"{percent(score)} without {them}, " + (
            f"as with {them}" if same else f"{percent(intact)} with {them}"
        )
    changed = main.number("changed")
    if changed is None:
        return f"the output is the same without {them}"
    return (
        f"no answer changes without {them}"
        if changed == 0
        else f"{percent(100 * changed)} of the answers change without {them}"
    )


def _figures(main: Finding, before: str) -> str:
    score, intact = main.number("score"), main.number("score", "intact")
    if score is None or intact is None:
        return ""
    return f"{before}{percent(score)} without, {percent(intact)} with"


def _list(found: Finding, before: str = "") -> str:
    """The numbers of an effect: " accuracy is 98.6% (98.6% with them) and 0.3% of the answers change"."""
    parts = []
    score, intact = found.number("score"), found.number("score", "intact")
    if score is not None and intact is not None:
        parts.append(f"{found.figure} is {percent(score)} (intact {percent(intact)})")
    changed = found.number("changed")
    if changed is not None:
        parts.append(
            "no answer changes" if changed == 0 else f"{percent(100 * changed)} of the answers change"
        )
    parts.append(f"the answer moves by {_moved(found, 'answers')}")
    return f"{before} " + (", ".join(parts[:-1]) + " and " if len(parts) > 1 else "") + parts[-1]


def _moved(found: Finding, key: str) -> str:
    return f"{_n(found.number(key))} {UNITS.get(found.measure, '')}".strip()


def _n(value: float | None) -> str:
    if value is None:
        return "unknown"
    digits = 3 if abs(value) < 0.1 else 2
    return "less than 0.001" if 0 <= value < 0.0005 else f"{value:.{digits}f}".replace("-", "−")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
