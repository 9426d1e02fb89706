"""The words of a page: what the verdict says, said once each, and how it was measured in readable rows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from deepvit.collapse.catalogue import KINDS, METRICS
from deepvit.collapse.results import Measurements
from deepvit.report import charts, sentences
from deepvit.report.run import run_facts

# Keys of the provenance that a table of facts is no place for; collapse.json has them.
_NOT_SHOWN = frozenset(
    {"plan", "shares_of_images", "train", "sampling", "skipped", "capture", "run", "weights_remark"}
)
_FACTS = {
    "images": "images",
    "attention_images": "images with attention measured",
    "rank_images": "images with ranks measured",
    "unreadable": "unreadable images",
    "torch": "PyTorch",
    "python": "Python",
    "largest_check_error": "largest difference between a map's output and the model's own",
    "skipped_attention": "attention that was not measured",
}


def lead(result: Measurements) -> str:
    """The paragraph under the headline; the other findings, cures and sureness have places of their own."""
    text = sentences.paragraph(result.verdict)
    return text[:1].upper() + text[1:]


def finding_rows(result: Measurements) -> list[dict[str, Any]]:
    """Every finding with its numbers; the sentence of the main one is left to the paragraph above."""
    main = result.verdict.main
    if main is None:  # of a healthy network the paragraph tells the block that is the least worth
        main = next((found for found in result.verdict.findings if found.about == "every_block"), None)
    return [
        {
            "sentence": None if finding is main else sentences.sentence(finding),
            "evidence": sentences.evidence(finding, metric_name),
            "images_share": finding.images_share,
        }
        for finding in result.verdict.findings
    ]


def margins(result: Measurements) -> list[dict[str, Any]]:
    """For a healthy network: the block that comes nearest to each kind of collapse, and where it would count."""
    if result.verdict.kind != "healthy":
        return []
    lines = charts.kind_lines(result)
    maps, line = "attention_similarity", result.similar.threshold
    if result.similar.blocks:  # alike by the plain cosine: whether by more than uniformity, centred maps say
        maps, line = "attention_similarity_centred", lines.get("maps_alike", 1.0)
    uniform = _margin(result, "uniform_maps", "entropy", lines.get("uniform_maps"))
    if any(block.mixed for block in result.blocks):  # there it is contrast that says how uniform a map is
        uniform = _margin(result, "uniform_maps", "map_contrast", lines.get("uniform_contrast"), high=False)
    rows = [
        _margin(result, "maps_alike", maps, line, set(result.similar.blocks)),
        uniform,
        _margin(result, "sharp_maps", "entropy", lines.get("sharp_maps"), high=False),
        _margin(result, "patches_alike", "patch_similarity", lines.get("patches_alike")),
    ]
    return [row for row in rows if row is not None]


def _margin(
    result: Measurements,
    kind: str,
    key: str,
    line: float | None,
    among: Collection[int] = (),
    high: bool = True,
) -> dict[str, Any] | None:
    values = result.series[key].values if key in result.series else []
    pairs = zip(values, (block.index for block in result.blocks), strict=False)
    known = [(v, index) for v, index in pairs if v is not None and (not among or index in among)]
    if line is None or not known:
        return None
    value, block = max(known) if high else min(known)
    title = charts.metric_title(key)
    return {
        "what": KINDS[kind],
        "metric": title[:1].lower() + title[1:],
        "block": block,
        "value": value,
        "rule": f"{'from' if high else 'below'} {line:.2f}",
    }


def metric_name(key: str) -> str:
    """A metric's title for its key, as it stands alone."""
    return charts.metric_title(key) if key in METRICS else key


def spoken_blocks(result: Measurements) -> list[int]:
    """The blocks that the verdict speaks of: those of its first finding; none when nothing has collapsed."""
    verdict = result.verdict
    if not verdict.collapsed and verdict.kind not in ("idle", "harm"):
        return []
    if verdict.main is not None and verdict.main.blocks:
        return sorted(set(verdict.main.blocks))
    start = verdict.from_block or 0
    return [block.index for block in result.blocks if block.index >= start]


def has_random_weights(result: Measurements) -> bool:
    """Whether the network was measured as it was initialised; whoever made it says so in ``provenance``."""
    return result.provenance.get("weights") == "random"


def weights_remark(result: Measurements) -> str:
    """What has to be said of the weights: where there are trained ones, or which were not loaded; mostly nothing."""
    return str(result.provenance.get("weights_remark") or "")


def subject(result: Measurements) -> str:
    """Blocks, parameters and images in half a sentence."""
    parts = [f"{len(result.blocks)} blocks"]
    parameters = result.model.get("parameters")
    if isinstance(parameters, int):
        parts.append(f"{parameters / 1e6:.1f} million parameters")
    images = result.provenance.get("images")
    if isinstance(images, int):
        parts.append(f"measured on {images:,} image{'' if images == 1 else 's'}")
    return ", ".join(parts)


def model_facts(result: Measurements) -> dict[str, Any]:
    """The model's own facts, and the shapes of its blocks, each shape once."""
    facts: dict[str, Any] = {"name": result.name, **result.model, "blocks": len(result.blocks)}
    shapes: dict[str, list[Any]] = {
        "attention": [block.kind for block in result.blocks],
        "heads": [block.heads for block in result.blocks],
        "patch grid": ["×".join(map(str, block.grid)) if block.grid else None for block in result.blocks],
        "prefix tokens": [block.prefix for block in result.blocks],
    }
    for title, values in shapes.items():
        kept = list(dict.fromkeys(value for value in values if value is not None))
        if kept:
            facts[title] = ", ".join(map(str, kept))
    return facts


def measurement_facts(result: Measurements) -> dict[str, Any]:
    """The provenance for reading: spelled names, sentences last."""
    shown = {key: value for key, value in result.provenance.items() if key not in _NOT_SHOWN}
    facts = {_FACTS.get(key, key): value for key, value in shown.items() if key != "notes"}
    if shown.get("notes"):
        facts["notes"] = shown["notes"]
    return facts


def trained_facts(result: Measurements) -> dict[str, str]:
    """What the network is and how it was trained, for the header: name → words."""
    return run_facts(result.provenance.get("run"))


def chart_words(found: list[charts.Profile]) -> list[dict[str, str]]:
    """Title, unit and reading line of every chart, for the template."""
    return [{"title": each.title, "unit": METRICS[each.keys[0]].unit, "read": each.read} for each in found]
