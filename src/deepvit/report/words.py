"""The words of a page: what the verdict says, said once each, and how it was measured in readable rows."""

from __future__ import annotations

from typing import Any

from deepvit.collapse.catalogue import METRICS
from deepvit.collapse.results import Measurements
from deepvit.report import charts, sentences

# Keys of the provenance that a table of facts is no place for; collapse.json has them.
_NOT_SHOWN = frozenset({"plan", "shares_of_images", "train", "sampling", "skipped", "capture"})
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
    return [
        {
            "sentence": None if finding is main else sentences.sentence(finding),
            "evidence": sentences.evidence(finding, metric_name),
            "images_share": finding.images_share,
        }
        for finding in result.verdict.findings
    ]


def metric_name(key: str) -> str:
    """A metric's title for its key, as it stands alone."""
    return charts.metric_title(key) if key in METRICS else key


def spoken_blocks(result: Measurements) -> list[int]:
    """The blocks that the verdict speaks of: those of its first finding; none when nothing has collapsed."""
    verdict = result.verdict
    if not verdict.collapsed:
        return []
    if verdict.main is not None and verdict.main.blocks:
        return sorted(verdict.main.blocks)
    start = verdict.from_block or 0
    return [block.index for block in result.blocks if block.index >= start]


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


def chart_words(found: list[charts.Profile]) -> list[dict[str, str]]:
    """Title, unit and reading line of every chart, for the template."""
    return [{"title": each.title, "unit": METRICS[each.keys[0]].unit, "read": each.read} for each in found]
