"""ADE20K's folders (the scene parsing benchmark): ``images/`` and ``annotations/`` with training and validation."""

from __future__ import annotations

from pathlib import Path

from deepvit.data.options import NoOptions
from deepvit.data.sources.source import Source
from deepvit.errors import UserError
from deepvit.masks.dataset import MaskData
from deepvit.masks.ids import TableIds
from deepvit.masks.pairs import pair
from deepvit.masks.palette import palette
from deepvit.masks.sets import PairedFiles

INSIDE = "ADEChallengeData2016"
IMAGES, MASKS = "images", "annotations"
PARTS = ("training", "validation")
# In the order of objectInfo150.txt, each by its first word there.
CLASSES = [
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet", "sidewalk",
    "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water", "painting", "sofa",
    "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp",
    "bathtub", "railing", "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand",
    "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case", "pool table",
    "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower",
    "book", "hill", "bench", "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar",
    "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight",
    "booth", "television receiver", "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator",
    "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer",
    "plaything", "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven",
    "ball", "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher",
    "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier",
    "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
]  # fmt: skip


def root_of(spec: str) -> Path | None:
    """The folder that holds the data set's two, or None."""
    given = Path(spec).expanduser()
    for root in (given, given / INSIDE):
        if all((root / kind / PARTS[0]).is_dir() for kind in (IMAGES, MASKS)):
            return root
    return None


def open_ade20k(spec: str, options: NoOptions) -> MaskData:
    """150 classes: ids 1 to 150 are classes 0 to 149, and 0 ("other objects") counts for nothing."""
    root = root_of(spec)
    assert root is not None
    parts = []
    for name in PARTS:
        places = root / IMAGES / name, root / MASKS / name
        for place in places:
            if not place.is_dir():
                raise UserError(f"{place} does not exist; unpack the whole of ADE20K")
        found = pair(*places)
        if not found.images:
            raise UserError(f"{places[0]} holds no image that has a mask of the same name in {places[1]}")
        parts.append(found)
    ids = TableIds.counted(len(CLASSES), first=1)
    ids.hint = "these are not the masks of the scene parsing benchmark (ADEChallengeData2016)"
    train, val = (PairedFiles(found.images, found.masks, ids) for found in parts)
    return MaskData(
        spec,
        train,
        val,
        list(CLASSES),
        palette(len(CLASSES)),
        "ADE20K's own parts training and validation",
        faults=[f"{spec}: {fault}" for found in parts for fault in found.faults()],
    )


ADE20K = Source(
    name="ade20k",
    forms=(
        (
            "FOLDER",
            "ADE20K: images/ and annotations/ with training/ and validation/; 150 classes, id 0 (other) void",
        ),
    ),
    needs="local files",
    options=NoOptions,
    open=open_ade20k,
    claims=lambda spec: root_of(spec) is not None,
)
