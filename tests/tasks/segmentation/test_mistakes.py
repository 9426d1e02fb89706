"""Data and networks that cannot be trained on: exit code 2 and one line before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from masks.made import COLOURS, blobs, pairs, save

from deepvit.cli import main
from deepvit.errors import UserError
from deepvit.masks import open_masks

MIXER = "--model mixer_s32_224 --model.img_size 224 --scene.crop_size 64"


def beyond(root: Path) -> None:
    mask = blobs(0)
    mask[0, 0] = 7
    save(root / "masks" / "train" / "01.png", mask)


def sizes(root: Path) -> None:
    save(root / "masks" / "val" / "01.png", blobs(0, (24, 30)))


def in_colour(root: Path) -> None:
    for path in (root / "masks").rglob("*.png"):
        save(path, COLOURS[blobs(0)])


def without_mask(root: Path) -> None:
    (root / "masks" / "train" / "01.png").unlink()


def without_image(root: Path) -> None:
    (root / "images" / "val" / "01.png").unlink()


def empty(root: Path) -> None:
    for path in (root / "images" / "val").iterdir():
        path.unlink()


def void(root: Path) -> None:
    save(root / "masks" / "train" / "02.png", np.full((24, 32), 255, dtype=np.uint8))


def fine(root: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "words", "texts"),
    [
        (beyond, "--data.num_classes 4", ("train/01.png holds the id 7", "4 classes")),
        (sizes, "", ("val/01.png has 30×24 pixels", "32×24")),
        (in_colour, "", ("is in colour (RGB)", "--data.colours")),
        (without_mask, "", ("1 image has no mask of the same name", "images/train/01.png")),
        (without_image, "", ("1 mask has no image of the same name", "masks/val/01.png")),
        (empty, "", ("val/ holds no image that has a mask",)),
        (void, "", ("train/02.png holds nothing but void",)),
        (fine, MIXER, ("gives no feature maps", "--scene.crop_size")),
        (fine, "--model vgg11 --head linear --grad_checkpointing", ("gradient checkpointing",)),
        (fine, "--data.first_id x", ("first_id",)),
    ],
)
def test_one_line_before_training(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    words: str,
    texts: tuple[str, ...],
) -> None:
    root, out = pairs(tmp_path / "set", {"train": 4, "val": 2}), tmp_path / "run"
    spoil(root)
    common = ["train", "--task", "segmentation", "--data", str(root), "--out", str(out), "--devices", "cpu"]
    assert main([*common, *words.split()]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("deepvit train: ")]
    assert len(errors) == 1, said
    for text in texts:
        assert text in errors[0], said
    assert not out.exists()


def test_a_bad_mask_among_many_is_found_before_training(tmp_path: Path) -> None:
    root = pairs(tmp_path / "set", {"train": 200, "val": 100}, size=(8, 8))
    save(root / "masks" / "val" / "71.png", np.full((8, 8), 9, dtype=np.uint8))
    with pytest.raises(UserError, match=r"val/71.png holds the id 9"):
        open_masks(str(root), num_classes=4)
    save(root / "masks" / "train" / "133.png", np.full((8, 8), 255, dtype=np.uint8))
    with pytest.raises(UserError, match=r"train/133.png holds nothing but void"):
        open_masks(str(root), num_classes=4)
