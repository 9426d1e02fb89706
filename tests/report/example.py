"""A made-up diagnosis with every field filled, to test reports on and to document; nothing is measured."""

from __future__ import annotations

import base64
import random

from deepvit.collapse.catalogue import METRICS
from deepvit.collapse.results import (
    BlockFacts,
    BlockMap,
    BlockPatches,
    Counts,
    Cure,
    Finding,
    ImageMaps,
    Measurements,
    Series,
    SimilarBlocks,
    Verdict,
)

_RULE = "similar: mean attention similarity with the previous block of at least 0.9"


def example_measurements(
    name: str = "example",
    *,
    depth: int = 12,
    heads: int = 6,
    grid: int = 14,
    images: int = 2,
    collapse_from: int | None = 8,
    mixed: bool = False,
    two_shapes: bool = False,
    labels: list[str] | None = None,
    seed: int = 0,
) -> Measurements:
    """Made-up measurements of a network of ``depth`` blocks whose maps are alike from ``collapse_from`` on.

    ``collapse_from=None`` makes a healthy one; ``mixed`` one with signed maps; ``two_shapes`` gives the last
    third of the blocks maps of another shape, so that comparisons across it are ``None``. ``labels`` name the
    images.
    """
    rng = random.Random(seed)
    border = depth - max(1, depth // 3) if two_shapes else depth
    blocks = [
        _block(index, heads, grid if index < border else max(1, grid // 2), index >= border, mixed)
        for index in range(depth)
    ]
    alike = [
        collapse_from is not None and index > collapse_from and index != border for index in range(depth)
    ]
    series = {}
    for key, info in METRICS.items():
        low = info.low if info.low is not None else 0.0
        high = info.high if info.high is not None else low + 12.0
        values: list[float | None] = [low + (high - low) * (0.35 + 0.2 * rng.random()) for _ in range(depth)]
        if key.startswith(("attention_similarity", "softmax_similarity")):
            values = [0.95 + 0.04 * rng.random() if flag else 0.3 + 0.3 * rng.random() for flag in alike]
            values[0] = None
            if border < depth:
                values[border] = None
        series[key] = Series(values, [None if v is None else 0.02 + 0.02 * rng.random() for v in values], 64)
    similar = [
        index
        for index in range(depth)
        if alike[index] and series["attention_similarity"].values[index] is not None
    ]
    matrices = {
        key: _matrix(blocks, alike, rng)
        for key in ("attention_similarity", "attention_similarity_centred", "cka")
    }
    return Measurements(
        name=name,
        model={"class": "VisionTransformer", "parameters": 22_050_664, "input": [3, 16 * grid, 16 * grid]},
        blocks=blocks,
        series=series,
        per_head={
            key: [[rng.random() for _ in range(heads)] for _ in range(depth)]
            for key in ("entropy", "attention_distance")
        },
        matrices=matrices,
        similar=SimilarBlocks(
            0.9, _RULE, similar, depth - 1 - (border < depth), [None, *[float(f) for f in alike[1:]]]
        ),
        verdict=_verdict(collapse_from, depth, similar),
        provenance={
            "images": 256,
            "attention_images": 64,
            "unreadable": [],
            "seconds": 12.5,
            "notes": ["made up: nothing was measured"],
        },
        maps=[
            _image(labels[number] if labels else f"image {number}", blocks, rng, mixed)
            for number in range(len(labels) if labels else images)
        ],
    )


def _block(index: int, heads: int, grid: int, later: bool, mixed: bool) -> BlockFacts:
    tokens = grid * grid + 1
    return BlockFacts(
        index=index,
        name=f"blocks.{index}",
        group=int(later),
        heads=heads,
        queries=tokens,
        keys=tokens,
        prefix=1,
        grid=[grid, grid],
        channels=64 * heads,
        patch_pixels=32.0 if later else 16.0,
        mixed=mixed,
    )


def _matrix(blocks: list[BlockFacts], alike: list[bool], rng: random.Random) -> list[list[float | None]]:
    depth = len(blocks)
    rows: list[list[float | None]] = [[None] * depth for _ in range(depth)]
    for p in range(depth):
        for q in range(p + 1):
            if blocks[p].group == blocks[q].group:
                value = 1.0 if p == q else (0.97 if alike[p] and alike[q] else 0.2 + 0.4 * rng.random())
                rows[p][q] = rows[q][p] = value
    return rows


def _image(label: str, blocks: list[BlockFacts], rng: random.Random, mixed: bool) -> ImageMaps:
    side = 64
    pixels = bytes(
        int(255 * channel / 3 + 0.6 * (row + column)) % 256
        for row in range(side)
        for column in range(side)
        for channel in range(3)
    )
    maps = []
    for block in blocks:
        assert block.grid is not None
        assert block.heads is not None
        shape = [block.heads, *block.grid]
        data = base64.b64encode(rng.randbytes(shape[0] * shape[1] * shape[2])).decode()
        maps.append(BlockMap(block.index, "class token", shape, -0.02 if mixed else 0.0, 0.08, data))
    patches = [_patches(block, rng) for block in blocks]
    return ImageMaps(label, [side, side, 3], base64.b64encode(pixels).decode(), maps, patches)


def _patches(block: BlockFacts, rng: random.Random) -> BlockPatches:
    """Patches of which the second is four times as long as the others; pairs only where they are few."""
    assert block.grid is not None
    cells = block.grid[0] * block.grid[1]
    norms = bytes([64, 255, *[64] * (cells - 2)][:cells])
    pairs = rng.randbytes(cells * (cells - 1) // 2) if cells <= 256 else b""
    encoded = [base64.b64encode(each).decode() for each in (norms, pairs)]
    return BlockPatches(block.index, list(block.grid), 4.0, *encoded)


def _verdict(collapse_from: int | None, depth: int, similar: list[int]) -> Verdict:
    counts = Counts(len(similar), depth - 1, 0.31, 0.97, [[0.0, 0.31], [depth - 1.0, 0.81]])
    if collapse_from is None:
        return Verdict("healthy", False, None, sureness="sure", agreement=1.0, images=64, counts=counts)
    return Verdict(
        kind="maps_alike",
        collapsed=True,
        from_block=collapse_from,
        findings=[
            Finding(
                "maps_alike",
                "maps_alike",
                list(range(min(collapse_from, depth - 1), depth)),
                {
                    "attention_similarity": {"here": 0.97, "before": 0.4},
                    "attention_similarity_centred": {"here": 0.9},
                    "head_similarity": {"here": 0.2},
                },
                0.98,
                to_end=True,
            ),
            Finding("notice", "patches_high", [depth - 1], {"patch_similarity": {"here": 0.81}}),
        ],
        cures=[
            Cure(
                "reattention",
                f"{collapse_from}-{depth - 1}",
                "mixes the heads, which still differ, into new maps",
            )
        ],
        sureness="sure",
        agreement=0.98,
        images=64,
        counts=counts,
    )
