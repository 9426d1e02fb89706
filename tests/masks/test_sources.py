"""Every form of data with masks on small made folders, and every mistake in them as one line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from masks.made import COLOURS, blobs, pairs, save
from PIL import Image

from deepvit.errors import UserError
from deepvit.masks import MaskData, open_masks, palette
from deepvit.masks.cityscapes import CLASSES as CITY_CLASSES


def total(data: MaskData) -> torch.Tensor:
    masks = [part.target(i) for part in (data.train, data.val) for i in range(len(part))]
    return torch.bincount(torch.cat([mask.flatten().long() for mask in masks]), minlength=256)


def same(data: MaskData, truth: list[np.ndarray]) -> None:
    for i, mask in enumerate(truth):
        got = data.train.target(i)
        assert got.dtype == torch.uint8
        assert torch.equal(got, torch.from_numpy(mask))
        assert data.train.image(i).mode == "RGB"
        assert data.train.size(i) == mask.shape


# -- a folder ----------------------------------------------------------------------------------------------------------


def test_a_folder_with_parts(tmp_path: Path) -> None:
    data = open_masks(str(pairs(tmp_path, {"train": 3, "val": 2, "test": 1})))
    assert (len(data.train), len(data.val)) == (3, 2)
    assert data.class_names == ["class 0", "class 1", "class 2", "class 3"]
    assert data.palette == palette(4)
    assert (data.num_classes, data.ignore_index, data.mirror, data.fresh) == (4, 255, True, False)
    assert data.split == "folders train/ and val/"
    assert data.account() == ["not used beside train/ and val/: test"]
    assert "4 classes, 3 training and 2 validation images" in str(data)
    same(data, [blobs(500 + i) for i in range(3)])
    picture = np.asarray(data.train.image(1))
    assert np.array_equal(picture, COLOURS[blobs(501)])


def test_parts_may_stand_above_and_test_validates(tmp_path: Path) -> None:
    for part in ("Train", "test"):
        for i in range(2):
            save(tmp_path / part / "images" / "deep" / f"{i}.png", COLOURS[blobs(i)])
            save(tmp_path / part / "masks" / "deep" / f"{i}.png", blobs(i))
    data = open_masks(str(tmp_path))
    assert data.split == "folders Train/ and test/"
    assert (len(data.train), len(data.val)) == (2, 2)


@pytest.mark.parametrize("part", ["", "train"])
def test_without_validation_a_part_is_held_out(tmp_path: Path, part: str) -> None:
    root = str(pairs(tmp_path, {part: 10}))
    data = open_masks(root)
    assert (len(data.train), len(data.val)) == (8, 2)
    names = {data.train.where(i) for i in range(8)} | {data.val.where(i) for i in range(2)}
    assert len(names) == 10
    assert "20% for validation" in data.split
    other = open_masks(root, val_fraction=0.5, split_seed=1)
    assert len(other.val) == 5


def test_jpeg_images_with_png_masks(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / "images" / "train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLOURS[blobs(i)]).save(tmp_path / "images" / "train" / f"{i}.jpg")
        save(tmp_path / "masks" / "train" / f"{i}.png", blobs(i))
    assert len(open_masks(str(tmp_path)).train) == 1


def test_palette_masks_are_their_indices_and_give_the_colours(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "images" / "train" / f"{i}.png", COLOURS[blobs(i)])
        save(tmp_path / "masks" / "train" / f"{i}.png", blobs(i), "P")
    data = open_masks(str(tmp_path), val_fraction=0.3)
    assert data.palette == [tuple(colour) for colour in COLOURS[:4].tolist()]
    assert int(total(data)[:4].sum()) == 3 * 24 * 32


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_colours_by_a_yaml_file(tmp_path: Path, mode: str) -> None:
    root = tmp_path / "set"
    masks = [blobs(i) for i in range(3)]
    for i, mask in enumerate(masks):
        save(root / "images" / "train" / f"{i}.png", COLOURS[mask])
        save(root / "masks" / "train" / f"{i}.png", COLOURS[mask] if mode == "RGB" else mask, mode)
        save(root / "images" / "val" / f"{i}.png", COLOURS[mask])
        save(root / "masks" / "val" / f"{i}.png", COLOURS[mask])
    table = tmp_path / "colours.yaml"
    table.write_text("sea: [20, 240, 30]\nland: [[250, 10, 20], '#000000']\nvoid: [30, 40, 230]\n")
    data = open_masks(str(root), colours=str(table))
    assert data.class_names == ["sea", "land"]
    assert data.palette == [(20, 240, 30), (250, 10, 20)]
    meaning = np.array([1, 1, 0, 255], dtype=np.uint8)
    same(data, [meaning[mask] for mask in masks])


def test_names_void_and_first_id(tmp_path: Path) -> None:
    root = pairs(tmp_path / "set", {"train": 3, "val": 1})
    table = tmp_path / "names.yaml"
    table.write_text("- sky\n- road\n- car\n")
    data = open_masks(str(root), class_map=str(table), void=3)
    assert data.class_names == ["sky", "road", "car"]
    truth = [np.where(blobs(500 + i) == 3, 255, blobs(500 + i)).astype(np.uint8) for i in range(3)]
    same(data, truth)
    (tmp_path / "names.txt").write_text("sky\nroad\ncar\n")
    assert (
        open_masks(str(root), class_map=str(tmp_path / "names.txt"), void=[3]).class_names == data.class_names
    )
    assert open_masks(str(root), void=3).class_names == ["class 0", "class 1", "class 2"]

    data = open_masks(str(root), first_id=1)
    assert data.num_classes == 3
    shifted = [np.where(blobs(500 + i) == 0, 255, blobs(500 + i) - 1).astype(np.uint8) for i in range(3)]
    same(data, shifted)
    # a void id between the others: what comes after it moves up
    data = open_masks(str(root), void=1)
    assert data.class_names == ["class 0", "class 2", "class 3"]
    same(data, [np.array([0, 255, 1, 2], dtype=np.uint8)[blobs(500 + i)] for i in range(3)])
    assert open_masks(str(root), num_classes=9).num_classes == 9


def test_more_than_255_classes(tmp_path: Path) -> None:
    for i in range(2):
        mask = np.full((8, 8), 299, dtype=np.uint16)
        mask[:4], mask[0, 0] = 255, 65535
        save(tmp_path / "images" / "train" / f"{i}.png", np.zeros((8, 8, 3), dtype=np.uint8))
        save(tmp_path / "masks" / "train" / f"{i}.png", mask)
    data = open_masks(str(tmp_path), num_classes=300, void=65535)
    assert data.ignore_index == 65535
    got = data.train.target(0)
    assert got.unique().tolist() == [255, 299, 65535]


def test_masks_turn_with_their_photographs(tmp_path: Path) -> None:
    mask = blobs(0, (24, 32))
    for name, orientation in (("stored", 6), ("shown", 6), ("plain", 1)):
        image = Image.fromarray(COLOURS[mask])
        exif = image.getexif()
        exif[0x0112] = orientation
        (tmp_path / "images" / "train").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "images" / "train" / f"{name}.png", exif=exif)
        upright = np.rot90(mask, -1) if name == "shown" else mask
        save(tmp_path / "masks" / "train" / f"{name}.png", np.ascontiguousarray(upright))
    data = open_masks(str(tmp_path), val_fraction=0.34)
    for part in (data.train, data.val):
        for i in range(len(part)):
            picture, classes = np.asarray(part.image(i)), part.target(i).numpy()
            assert part.size(i) == classes.shape
            assert np.array_equal(picture, COLOURS[classes])


# -- mistakes ----------------------------------------------------------------------------------------------------------


def good(tmp_path: Path) -> Path:
    return pairs(tmp_path / "set", {"train": 4, "val": 2})


def test_ids_beyond_the_classes_name_file_and_id(tmp_path: Path) -> None:
    root = good(tmp_path)
    bad = blobs(0)
    bad[0, :2] = 7, 9
    save(root / "masks" / "val" / "01.png", bad)
    with pytest.raises(
        UserError,
        match=r"mask .*val/01\.png holds the ids 7, 9, beyond the 4 classes \(ids 0 to 3, void 255\)",
    ):
        open_masks(str(root))
    with pytest.raises(UserError, match=r"holds the id 3, beyond the 3 classes"):
        open_masks(str(root), num_classes=3)


def test_sizes_that_differ_name_both(tmp_path: Path) -> None:
    root = good(tmp_path)
    save(root / "masks" / "train" / "02.png", blobs(0, (24, 30)))
    with pytest.raises(
        UserError, match=r"02\.png has 30×24 pixels and its image .*02\.png 32×24; they must be of one size"
    ):
        open_masks(str(root))


def test_masks_in_colour_need_a_map(tmp_path: Path) -> None:
    root = good(tmp_path)
    save(root / "masks" / "train" / "03.png", COLOURS[blobs(0)])
    with pytest.raises(UserError, match=r"03\.png is in colour \(RGB\), .*give --data\.colours"):
        open_masks(str(root))
    with pytest.raises(UserError, match=r"03\.png is in colour"):
        open_masks(str(root), num_classes=4)


def test_missing_pairs(tmp_path: Path) -> None:
    root = good(tmp_path)
    (root / "masks" / "train" / "01.png").unlink()
    with pytest.raises(
        UserError, match=r"1 image has no mask of the same name \(e\.g\. .*images/train/01\.png\)"
    ):
        open_masks(str(root))
    (root / "images" / "train" / "01.png").unlink()
    (root / "images" / "val" / "00.png").unlink()
    with pytest.raises(
        UserError, match=r"1 mask has no image of the same name \(e\.g\. .*masks/val/00\.png\)"
    ):
        open_masks(str(root))


def test_two_files_of_one_name(tmp_path: Path) -> None:
    root = good(tmp_path)
    Image.fromarray(COLOURS[blobs(0)]).save(root / "images" / "train" / "00.jpg")
    with pytest.raises(UserError, match=r"00\.(png|jpg) and .*00\.(png|jpg) have one name"):
        open_masks(str(root))


def test_a_mask_of_void_alone(tmp_path: Path) -> None:
    root = good(tmp_path)
    save(root / "masks" / "train" / "02.png", np.full((24, 32), 255, dtype=np.uint8))
    with pytest.raises(UserError, match=r"02\.png holds nothing but void"):
        open_masks(str(root))


def test_empty_parts(tmp_path: Path) -> None:
    root = good(tmp_path)
    for path in (root / "images" / "val").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"its part val/ holds no image that has a mask"):
        open_masks(str(root))
    with pytest.raises(UserError, match=r"holds no images/ and masks/"):
        open_masks(str(tmp_path / "set" / "images"))
    with pytest.raises(UserError, match=r"does not exist"):
        open_masks(str(tmp_path / "nowhere"))
    empty = tmp_path / "empty"
    for kind in ("images", "masks"):
        (empty / kind / "train").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"holds no image that has a mask of the same name \(0 images, 0 masks\)"
    ):
        open_masks(str(empty))
    (root / "masks" / "val").rename(root / "masks" / "vall")
    with pytest.raises(UserError, match=r"has no folder val/"):
        open_masks(str(root))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"colours": {"a": [0, 0, 0]}, "void": 3}, r"--data\.void means nothing beside --data\.colours"),
        ({"colours": {"a": [0, 0, 0], "b": [0, 0, 0]}}, r"a and b have one colour"),
        ({"colours": {"a": [0, 0, 256]}}, r"a is no colour"),
        ({"colours": {"a": "#12345"}}, r"a is no colour"),
        ({"colours": {"void": [0, 0, 0]}}, r"names no class"),
        ({"colours": "nowhere.yaml"}, r"nowhere\.yaml cannot be read"),
        ({"num_classes": 3, "class_map": {"a": 0, "b": 1}}, r"num_classes=3, but the class map names 2"),
        ({"num_classes": 1}, r"1 class\(es\) beside void"),
        ({"void": 1, "class_map": {"a": 0, "b": 1, "c": 2, "d": 3}}, r"void=1 is also the id of a class"),
        ({"first_id": -1}, r"must not be negative"),
        ({"split_seed": 3}, r"--data\.split_seed means nothing for .*val/ of its own"),
        ({"scenes": 3}, r"--data\.scenes means nothing for"),
        ({"class_map": {"a": "x", "b": 1}}, r"a class map must give each class its own label"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        open_masks(str(good(tmp_path)), **options)


def test_colours_that_are_no_classs(tmp_path: Path) -> None:
    root = pairs(tmp_path, {"train": 2, "val": 1})
    for part in ("train", "val"):
        for path in (root / "masks" / part).iterdir():
            save(path, COLOURS[np.asarray(Image.open(path))])
    colours = {"a": [0, 0, 0], "b": [250, 10, 20], "c": [20, 240, 30]}
    with pytest.raises(
        UserError, match=r"holds colours that are no class's: \[30, 40, 230\] \(\d+\.\d% of its pixels\)"
    ):
        open_masks(str(root), colours=colours)


def test_too_many_masks_to_count_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepvit.masks.local.COUNTED", 3)
    root = str(good(tmp_path))
    with pytest.raises(UserError, match=r"has 4 training masks, too many .*--data\.num_classes"):
        open_masks(root)
    assert open_masks(root, num_classes=4).num_classes == 4


def test_what_opening_does_not_look_at_is_found_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepvit.masks.registry.LOOKED_AT", 2)
    root = good(tmp_path)
    save(root / "masks" / "train" / "01.png", blobs(0) + 40)
    data = open_masks(str(root), num_classes=4)
    with pytest.raises(UserError, match=r"01\.png holds the ids 40"):
        data.train.target(1)


# -- published layouts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "ADEChallengeData2016"])
def test_ade20k(tmp_path: Path, inside: str) -> None:
    root = tmp_path / inside
    raw = np.array([[0, 1], [150, 75]], dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    for part in ("training", "validation"):
        (root / "images" / part).mkdir(parents=True)
        Image.fromarray(COLOURS[raw % 6]).save(root / "images" / part / "ADE_1.jpg")
        save(root / "annotations" / part / "ADE_1.png", raw)
    data = open_masks(str(tmp_path))
    assert data.num_classes == 150
    assert (data.class_names[0], data.class_names[74], data.class_names[149]) == ("wall", "computer", "flag")
    assert data.palette[:3] == [(120, 120, 120), (180, 120, 120), (6, 230, 230)]
    assert (data.palette[74], data.palette[149]) == ((0, 255, 173), (92, 0, 255))
    assert len(data.palette) == 150
    # of the 450 numbers in mmsegmentation's ade.py, which are those of the benchmark's color150
    assert hashlib.sha256(np.array(data.palette, dtype=np.uint8)).hexdigest()[:16] == "ce475c9151035eff"
    same(data, [np.array([[255, 0], [149, 74]], dtype=np.uint8).repeat(4, 0).repeat(4, 1)])
    save(root / "annotations" / "validation" / "ADE_1.png", np.full((8, 8), 151, dtype=np.uint8))
    with pytest.raises(UserError, match=r"holds the id 151, beyond the 150 classes .*scene parsing"):
        open_masks(str(tmp_path))


def test_cityscapes(tmp_path: Path) -> None:
    raw = np.arange(36, dtype=np.uint8).reshape(6, 6)
    raw[5, 4:] = 255, 0
    for part, city in (("train", "aachen"), ("val", "ulm")):
        save(tmp_path / "leftImg8bit" / part / city / f"{city}_0_leftImg8bit.png", COLOURS[raw % 6])
        save(tmp_path / "gtFine" / part / city / f"{city}_0_gtFine_labelIds.png", raw)
        save(tmp_path / "gtFine" / part / city / f"{city}_0_gtFine_instanceIds.png", raw)
    data = open_masks(str(tmp_path))
    assert (data.num_classes, data.class_names[0], data.class_names[18]) == (19, "road", "bicycle")
    # trainId of each id, from labels.py of cityscapesScripts
    train_ids = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
                 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
    same(data, [np.vectorize(lambda value: train_ids.get(int(value), 255))(raw).astype(np.uint8)])
    assert len({colour for _, _, colour in CITY_CLASSES}) == 19
    (tmp_path / "gtFine" / "val" / "ulm" / "ulm_0_gtFine_labelIds.png").unlink()
    with pytest.raises(UserError, match=r"holds no image .* that has a mask"):
        open_masks(str(tmp_path))


def test_pascal_voc(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"torch/voc2012 could not be opened .*--data\.download true"):
        open_masks("torch/voc2012", root=str(tmp_path))
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="torch/cityscapes has no masks that are known here"):
        open_masks("torch/cityscapes", root=str(tmp_path))
    base = tmp_path / "VOCdevkit" / "VOC2012"
    raw = np.array([[0, 20], [255, 7]], dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, name in (("train", "2007_1"), ("val", "2007_2")):
        (lists / f"{split}.txt").write_text(f"{name}\n")
        (base / "JPEGImages").mkdir(exist_ok=True)
        Image.fromarray(COLOURS[raw % 6]).save(base / "JPEGImages" / f"{name}.jpg")
        image = Image.fromarray(raw)
        image.putpalette([channel for colour in palette(256) for channel in colour])
        (base / "SegmentationClass").mkdir(exist_ok=True)
        image.save(base / "SegmentationClass" / f"{name}.png")
    data = open_masks("torch/voc2012", root=str(tmp_path))
    assert (data.num_classes, data.class_names[20]) == (21, "tvmonitor")
    same(data, [raw])
    # the first colours of the development kit's map, as published with it
    assert data.palette[:5] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert data.palette[20] == (0, 64, 128)
    (base / "SegmentationClass" / "2007_2.png").unlink()
    with pytest.raises(UserError, match=r"1 of its files are not there"):
        open_masks("torch/voc2012", root=str(tmp_path))
