"""The structure of a diagnosis: what was measured, of which blocks, how, and the verdict.

Everything converts to plain JSON values by ``to_dict`` and back by ``from_dict``. Numbers that do not exist
(the first block has no previous block; blocks of other shapes are not compared) are ``None``, never NaN.
Blocks are counted from 0, as in their names.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from deepvit.collapse.lesions.effects import Lesions

SCHEMA = "deepvit.collapse"
VERSION = 2
READS = (1, 2)
"""Versions of the file that are read: 1 had no lesions."""

Matrix = list[list[float | None]]


@dataclass
class BlockFacts:
    """One block: its place in the model and the shapes that its numbers refer to.

    ``group``: blocks with the same number have maps of one shape and are compared with each other; ``None``
    when the block's attention cannot be compared or was not seen. ``kind``: "global", "windowed", "pooled"
    (fewer keys than queries), "class" (only the class token asks) or "none". ``grid``: rows and columns of
    the patch tokens, ``None`` when there is no grid. ``mixed``: the map that multiplies V is not the
    softmax map (Re-attention, talking heads), so it may have negative entries. ``patch_pixels``: input
    pixels from one patch of the grid to the next.
    """

    index: int
    name: str
    kind: str = "global"
    group: int | None = 0
    heads: int | None = None
    queries: int | None = None
    keys: int | None = None
    prefix: int = 0
    grid: list[int] | None = None
    channels: int | None = None
    patch_pixels: float | None = None
    mixed: bool = False


@dataclass
class Series:
    """One metric (a key of ``catalogue.METRICS``) per block: mean and standard deviation over images.

    ``images`` is how many images the numbers rest on.
    """

    values: list[float | None]
    spread: list[float | None]
    images: int


@dataclass
class SimilarBlocks:
    """The count of similar blocks and its rule, which every report states.

    ``blocks`` are those whose attention similarity with the previous block is at least ``threshold``;
    ``comparable`` is how many blocks have a previous block of the same map shape; ``images_share[i]`` is the
    share of images in which block i meets the rule by itself.
    """

    threshold: float
    rule: str
    blocks: list[int]
    comparable: int
    images_share: list[float | None]


@dataclass
class BlockMap:
    """What one query attends to in one block, per head, over the grid of patches, as bytes.

    The value at (head, row, column) is ``low + (high - low) * byte / 255``. ``low`` is negative where mixed
    maps are. ``query`` names who looks, "class token", "mean of all queries" or a patch, whose place
    [row, column] is ``patch``. ``data`` is base64 of heads*rows*columns bytes.
    """

    block: int
    query: str
    shape: list[int]
    low: float
    high: float
    data: str
    patch: list[int] | None = None

    def bytes(self) -> bytes:
        """The bytes themselves, in the order head, row, column."""
        return base64.b64decode(self.data)


@dataclass
class BlockPatches:
    """The patch tokens of one image after one block: how long each is, and how alike every two are, as bytes.

    ``grid``: rows and columns. ``norms``: base64 of rows*columns bytes, the norm over the median norm of the image's
    patches is ``highest * byte / 255``. ``similarity``: base64 of the cosines of patches i < j, row by row, a byte
    each: ``-1 + 2 * byte / 255``; empty where there would be too many.
    """

    block: int
    grid: list[int]
    highest: float
    norms: str
    similarity: str = ""


@dataclass
class ImageMaps:
    """A chosen image (uint8 RGB [height, width, 3] in base64, mean and deviation undone), its maps and patches."""

    label: str
    shape: list[int]
    pixels: str
    maps: list[BlockMap] = field(default_factory=list)
    patches: list[BlockPatches] = field(default_factory=list)

    def bytes(self) -> bytes:
        """The pixels, row by row, RGB."""
        return base64.b64decode(self.pixels)


@dataclass
class Finding:
    """One thing that the numbers say, in parts; ``deepvit.report`` makes the sentence.

    ``kind``: see ``Verdict.kind``; "notice" for what is worth saying but is no collapse. ``about`` is what it
    says: a kind, also where it is only a notice, or "close_maps", "mixed_maps", "patches_high"; of lesions "idle_alone",
    "idle_more",
    "early_end", "every_block", "patches_unneeded", "maps_unneeded". ``numbers``: what was compared (a metric,
    "attended_keys", a lesion, or of lesions "answers", "changed", "score", "loss") → over which blocks → mean; "here"
    are the finding's own ``blocks``, "before" all blocks before them, "deeper_half" says itself, "of" is the most there
    can be, "line" where it would count, "kept" in how many blocks a lesion does nothing, "intact" without a lesion.
    ``images_share`` is the share of images that show it by themselves. ``to_end``: it holds to the last block.
    ``outcome``: what lesions say of a likeness: "idle", "unneeded", "needed", "mixed", or nothing (``worth.tested``).
    ``measure``: how lesions measured answers (``Lesions.measure``); ``figure``: what their score is called.
    """

    kind: str
    about: str
    blocks: list[int]
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    images_share: float | None = None
    to_end: bool = False
    outcome: str = ""
    measure: str = ""
    figure: str = ""

    def number(self, metric: str, where: str = "here") -> float | None:
        """One of the numbers; ``None`` where it was not measured."""
        return self.numbers.get(metric, {}).get(where)


@dataclass
class Cure:
    """What answers the verdict: a name of ``deepvit list cures`` or a loss, blocks as in ``--blocks``."""

    name: str
    blocks: str
    why: str
    loss: bool = False


@dataclass
class Counts:
    """What every verdict states, whatever it says.

    ``similar`` of ``comparable`` blocks meet the rule of similar blocks; ``lowest`` and ``highest`` are the
    ends of their attention similarity. ``patches``: patch similarity after the first and the last block,
    as [block, value]. ``mixed``: in how many blocks heads are mixed, so that these maps are the mixed ones.
    """

    similar: int = 0
    comparable: int = 0
    lowest: float | None = None
    highest: float | None = None
    patches: list[list[float]] = field(default_factory=list)
    mixed: int = 0


@dataclass
class Verdict:
    """Which blocks earn their place, does it collapse, from where on, what answers that, and how sure that is.

    ``kind`` is "harm" (blocks without which it answers better), "idle" (blocks without which it answers the same),
    "maps_alike", "uniform_maps", "sharp_maps", "patches_alike" (collapse), "healthy", or "untrained_or_uniform" (all
    maps near uniform: an untrained network looks like that, so it is not called collapse). ``collapsed``: whether a
    collapse is among the findings. ``from_block`` counts from 0. The finding that names the verdict comes first in
    ``findings``, notices last. ``sureness`` is "sure", "likely" or "unsure": by ``agreement``, the share of ``images``
    that show it by themselves (``None``: not measured); of idle blocks the share whose answer stays, and
    ``doubt`` the most that may change by chance (95%).

    ``judged``: by lesions, of which kinds (keys of ``lesions.catalogue.LESIONS``; empty: by likeness alone).
    ``untested``: kinds for which there was no time. ``refused``: lesions that this network does not allow.
    ``unjudged``: why lesions were not used, in a word: "off", "failed", "tells_nothing", or nothing. ``task``:
    "classification", "dense", "features". ``score_name``: what its figure of quality is called.

    These are the parts; the words that they make are joined by ``deepvit.report``.
    """

    kind: str
    collapsed: bool
    from_block: int | None
    findings: list[Finding] = field(default_factory=list)
    cures: list[Cure] = field(default_factory=list)
    sureness: str = "sure"
    agreement: float | None = None
    images: int = 0
    counts: Counts = field(default_factory=Counts)
    doubt: float | None = None
    judged: list[str] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)
    refused: int = 0
    unjudged: str = "off"
    task: str = ""
    score_name: str = ""
    measure: str = ""

    @property
    def main(self) -> Finding | None:
        """The finding that names the verdict; ``None`` when it is healthy."""
        return next((found for found in self.findings if found.kind == self.kind), None)


@dataclass(repr=False)
class Measurements:
    """All results of one diagnosis.

    ``series`` per block; ``per_head`` [block][head] for "entropy" and "attention_distance"; ``matrices``
    [block][block] (keys of ``catalogue.MATRICES``); ``maps`` a few chosen images; ``lesions`` what each block is worth
    (``None``: not asked for); ``model`` class, parameters
    and input size; ``provenance`` how it was measured: images, sampling, thresholds, versions, seconds,
    unreadable images.
    """

    name: str
    model: dict[str, Any]
    blocks: list[BlockFacts]
    series: dict[str, Series]
    per_head: dict[str, list[list[float | None] | None]]
    matrices: dict[str, Matrix]
    similar: SimilarBlocks
    verdict: Verdict
    provenance: dict[str, Any]
    maps: list[ImageMaps] = field(default_factory=list)
    lesions: Lesions | None = None

    def __repr__(self) -> str:
        """Three lines: of what, the verdict's parts, and what was measured (all of it would be many pages)."""
        verdict = self.verdict
        start = "" if verdict.from_block is None else f" from block {verdict.from_block}"
        return (
            f"{type(self).__name__} of {self.name}: {len(self.blocks)} blocks, {self.provenance.get('images', '?')} images\n"
            f"  verdict: {verdict.kind}{start} ({verdict.sureness})\n"
            f"  series: {', '.join(self.series)}"
        )

    def to_dict(self, maps: bool = True) -> dict[str, Any]:
        """Plain JSON values, headed by schema and version; ``maps=False`` leaves images and maps out."""
        plain = asdict(self)
        if not maps:
            plain["maps"] = []
        return {"schema": SCHEMA, "version": VERSION, **plain}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], judge: Callable[..., Verdict] | None = None) -> Measurements:
        """The inverse of ``to_dict``. Raises ValueError for another schema or a newer version.

        ``judge`` (``verdict.decide``) makes the verdict of a file in which it is words only, as in the first files; without
        it such a file raises ValueError.
        """
        if plain.get("schema") != SCHEMA:
            raise ValueError(f"not a collapse report: schema is {plain.get('schema')!r}, expected {SCHEMA!r}")
        if plain.get("version") not in READS:
            raise ValueError(
                f"collapse report of version {plain.get('version')!r}, this package reads versions "
                f"{' and '.join(map(str, READS))}"
            )
        blocks = [BlockFacts(**entry) for entry in plain["blocks"]]
        series = {key: Series(**entry) for key, entry in plain["series"].items()}
        return cls(
            name=plain["name"],
            model=plain["model"],
            blocks=blocks,
            series=series,
            per_head=plain["per_head"],
            matrices=plain["matrices"],
            similar=SimilarBlocks(**plain["similar"]),
            verdict=_verdict(plain, blocks, series, judge),
            provenance=plain["provenance"],
            lesions=None if plain.get("lesions") is None else Lesions.from_dict(plain["lesions"]),
            maps=[
                ImageMaps(
                    **{
                        **entry,
                        "maps": [BlockMap(**block) for block in entry["maps"]],
                        "patches": [BlockPatches(**block) for block in entry.get("patches", ())],
                    }
                )
                for entry in plain["maps"]
            ],
        )


def _verdict(
    plain: dict[str, Any],
    blocks: list[BlockFacts],
    series: dict[str, Series],
    judge: Callable[..., Verdict] | None,
) -> Verdict:
    """The verdict in parts; words that a file has besides are left out.

    A file whose verdict is words only (the first files were) is judged again from its own numbers.
    """
    told = plain["verdict"]
    if "counts" not in told:
        if judge is None:
            raise ValueError(
                "its verdict is in words only; deepvit.report.load judges it again from its numbers"
            )
        return judge(blocks, series, plain["provenance"].get("shares_of_images"))
    return Verdict(
        **{
            **_known(Verdict, told),
            "findings": [Finding(**_known(Finding, entry)) for entry in told["findings"]],
            "cures": [Cure(**_known(Cure, entry)) for entry in told["cures"]],
            "counts": Counts(**_known(Counts, told["counts"])),
        }
    )


def _known(kind: type[Any], plain: dict[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {key: value for key, value in plain.items() if key in names}
