"""Images and attention maps as the page carries them: small JPEG data URIs, maps as the bytes they came in.

A report must stay small enough to mail. Maps beyond the budget are left out, heads first, then images, and
the page says what was left out.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from deepvit.collapse.metrics.tokens import HIGH_NORM_FACTOR
from deepvit.collapse.results import BlockFacts, BlockMap, ImageMaps, Measurements

MAX_SIDE = 320
"""Longest side of an embedded image, in pixels."""


def data_uri(image: ImageMaps) -> str:
    """The image as a JPEG data URI, its longest side at most ``MAX_SIDE``; tiny ones are not enlarged."""
    height, width = image.shape[:2]
    picture = Image.frombytes("RGB", (width, height), image.bytes())
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    # Chroma at full size: on images of 32 pixels the usual halving is visible.
    picture.save(stream, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def maps_payload(result: Measurements, budget: int) -> dict[str, Any] | None:
    """The maps of one model in at most about ``budget`` characters; ``notes`` say what was left out."""
    images = [image for image in result.maps if image.maps]
    if not images:
        return None
    notes = []
    average = _cost(images[0], False) > budget
    cost = [_cost(image, average) for image in images]
    kept, used = 0, 0
    while kept < len(images) and (kept == 0 or used + cost[kept] <= budget):
        used += cost[kept]
        kept += 1
    if average:
        notes.append("Single heads are left out to keep the file small: every map is the mean of the heads.")
    if kept < len(images):
        notes.append(f"{len(images) - kept} of {len(images)} images are left out to keep the file small.")
    facts = {block.index: block for block in result.blocks}
    seen = [
        index for index in sorted(facts) if all(any(m.block == index for m in i.maps) for i in images[:kept])
    ]
    return {
        "notes": notes,
        "blocks": [str(index) for index in seen],
        "images": [_image_payload(image) for image in images[:kept]],
        "layers": [[_layer(image, facts[index], average) for index in seen] for image in images[:kept]],
    }


def patches_payload(result: Measurements, budget: int) -> dict[str, Any] | None:
    """The patches of one model's images in at most about ``budget`` characters: pairs are left out first."""
    images = [image for image in result.maps if image.patches]
    if not images:
        return None
    notes = []
    full = [sum(len(each.norms) + len(each.similarity) for each in image.patches) for image in images]
    pairs = full[0] <= budget and all(each.similarity for image in images for each in image.patches)
    cost = full if pairs else [sum(len(each.norms) for each in image.patches) for image in images]
    kept, used = 0, 0
    while kept < len(images) and (kept == 0 or used + cost[kept] <= budget):
        used += cost[kept]
        kept += 1
    if not pairs:
        notes.append("How alike patches are is left out: there are too many pairs for a small file.")
    if kept < len(images):
        notes.append(f"{len(images) - kept} of {len(images)} images are left out to keep the file small.")
    blocks = [each.block for each in images[0].patches]
    return {
        "notes": notes,
        "high": result.provenance.get("thresholds", {}).get("high_norm_factor", HIGH_NORM_FACTOR),
        "blocks": [str(block) for block in blocks],
        "images": [{"name": image.label, "source": data_uri(image)} for image in images[:kept]],
        "layers": [
            [
                {
                    "grid": each.grid,
                    "highest": round(each.highest, 5),
                    "norms": each.norms,
                    "similarity": each.similarity if pairs else "",
                }
                for each in image.patches
            ]
            for image in images[:kept]
        ],
    }


def _cost(image: ImageMaps, average: bool) -> int:
    """Characters of base64 that an image's maps take (its own pixels are small beside them)."""
    return 40_000 + sum(len(entry.data) // (entry.shape[0] if average else 1) for entry in image.maps)


def queries(image: ImageMaps) -> list[str]:
    """The queries of an image in the order they were stored, each once."""
    return list(dict.fromkeys(entry.query for entry in image.maps))


def _image_payload(image: ImageMaps) -> dict[str, Any]:
    grid = next((entry.shape[1:] for entry in image.maps), [1, 1])
    asked = {entry.query: entry for entry in image.maps}
    found = []
    for query in queries(image):
        place = asked[query].patch
        at = [(place[0] + 0.5) / grid[0], (place[1] + 0.5) / grid[1]] if place else None
        found.append({"name": query, "at": at})
    return {
        "name": image.label,
        "source": data_uri(image),
        "queries": found,
    }


def _layer(image: ImageMaps, facts: BlockFacts, average: bool) -> dict[str, Any]:
    """All maps of one block over one image; values are multiples of an even spread (times the keys)."""
    by_query = {entry.query: entry for entry in image.maps if entry.block == facts.index}
    entries = [by_query[query] for query in queries(image) if query in by_query]
    if average:
        entries = [_averaged(entry) for entry in entries]
    rows, columns = entries[0].shape[1:]
    even = facts.keys or rows * columns
    return {
        "queries": [entry.query for entry in entries],
        "heads": entries[0].shape[0],
        "averaged": average,
        "grid": [rows, columns],
        "even": round(1 / even, 8),
        "mixed": facts.mixed,
        "ranges": [[round(entry.low * even, 5), round(entry.high * even, 5)] for entry in entries],
        "data": [entry.data for entry in entries],
    }


def _averaged(entry: BlockMap) -> BlockMap:
    """The mean over heads of a map, as bytes of its own range."""
    heads, rows, columns = entry.shape
    raw, cells = entry.bytes(), rows * columns
    sums = [sum(raw[head * cells + cell] for head in range(heads)) for cell in range(cells)]
    least, most = min(sums), max(sums)
    width = max(1, most - least)
    step = (entry.high - entry.low) / (255 * heads)
    data = bytes(round(255 * (value - least) / width) for value in sums)
    return BlockMap(
        entry.block, entry.query, [1, rows, columns],
        entry.low + step * least, entry.low + step * (least + width), base64.b64encode(data).decode(),
        entry.patch,
    )  # fmt: skip
