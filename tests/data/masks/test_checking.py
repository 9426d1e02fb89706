"""Each thing that can be wrong in data with masks is put into good data, and found; good data has no findings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data.masks.made import COLOURS, blobs, pairs, save

from deepvit.cli import main
from deepvit.data import DataOptions
from deepvit.data.masks import MaskCheck, check_masks, class_weights, open_masks, open_unchecked
from deepvit.errors import UserError


def check(root: Path, **options: object) -> MaskCheck:
    return check_masks(open_unchecked(str(root), DataOptions.of(**options)))


def good(tmp_path: Path) -> Path:
    return pairs(tmp_path / "set", {"train": 4, "val": 3})


def only(found: MaskCheck, severity: str, text: str) -> list[str]:
    """The files of the one finding of that severity, whose text holds ``text``."""
    assert [finding.severity for finding in found.findings] == [severity], found.findings
    assert text in found.findings[0].text, found.findings
    return [Path(name).name for name in found.findings[0].files]


def test_good_data_has_no_findings_and_a_true_histogram(tmp_path: Path) -> None:
    root = good(tmp_path)
    mask = blobs(500)
    mask[:3] = 255
    save(root / "masks" / "train" / "00.png", mask)
    steps: list[int] = []
    found = check_masks(open_unchecked(str(root)), progress=steps.append)
    assert found.findings == []
    assert found.images == {"train": 4, "val": 3}
    assert steps == list(range(1, 8))
    truth = {"train": [mask, *(blobs(500 + i) for i in (1, 2, 3))], "val": [blobs(300 + i) for i in range(3)]}
    for part, masks in truth.items():
        counts = np.bincount(np.concatenate([one.flatten() for one in masks]), minlength=256)
        for label, row in enumerate(found.classes):
            assert row["name"] == f"class {label}"
            assert row[part]["share"] == pytest.approx(counts[label] / counts[:4].sum())
            assert row[part]["images"] == sum(label in one for one in masks)
        assert found.ignored[part] == pytest.approx(counts[255] / counts.sum())
    heads, rows = found.table()
    assert len(rows) == 5
    assert {len(row) for row in rows} == {len(heads)}


def test_ids_that_are_no_class(tmp_path: Path) -> None:
    root = good(tmp_path)
    bad = blobs(0)
    bad[0, :2] = 7, 9
    save(root / "masks" / "val" / "01.png", bad)
    found = check(root)
    assert only(found, "wrong", "1 mask holds ids or colours beyond the 4 classes: 7 in 1") == ["01.png"]


def test_sizes_that_differ(tmp_path: Path) -> None:
    root = good(tmp_path)
    save(root / "masks" / "train" / "02.png", blobs(0, (24, 30)))
    assert only(check(root), "wrong", "1 mask of another size than its image: ") == ["02.png"]


def test_images_and_masks_that_stand_alone(tmp_path: Path) -> None:
    root = good(tmp_path)
    (root / "masks" / "train" / "01.png").unlink()
    (root / "images" / "val" / "00.png").unlink()
    texts = [finding.text for finding in check(root).wrong]
    assert len(texts) == 2
    assert "1 image has no mask" in texts[0]
    assert "1 mask has no image" in texts[1]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    root = good(tmp_path)
    (root / "masks" / "train" / "01.png").write_bytes(b"none")
    assert only(check(root, num_classes=4), "wrong", "1 mask that cannot be read") == ["01.png"]
    root = pairs(tmp_path / "other", {"train": 4, "val": 3})
    (root / "images" / "train" / "02.png").write_bytes(b"none")
    assert only(check(root), "wrong", "1 image cannot be read") == ["02.png"]


def test_colour_without_a_map_and_void_alone(tmp_path: Path) -> None:
    root = good(tmp_path)
    save(root / "masks" / "train" / "00.png", COLOURS[blobs(500)])
    assert only(check(root, num_classes=4), "wrong", "1 mask in colour without a colour map") == ["00.png"]
    save(root / "masks" / "train" / "00.png", np.full((24, 32), 255, dtype=np.uint8))
    assert only(check(root), "wrong", "1 mask holds nothing but void") == ["00.png"]


def test_the_same_image_in_both_parts(tmp_path: Path) -> None:
    root = good(tmp_path)
    save(root / "images" / "val" / "01.png", COLOURS[blobs(502)])
    assert only(check(root), "wrong", "1 validation image is also among the training images") == [
        "01.png",
        "02.png",
    ]


def test_ids_that_seem_to_be_off_by_one(tmp_path: Path) -> None:
    root = good(tmp_path)
    for path in (root / "masks").rglob("*.png"):
        save(path, blobs(int(path.stem)) + 1)
    found = check(root, num_classes=4)
    assert any(
        "off by one: 0 never occurs, and 4 occurs in 7 masks; try --data.first_id 1" in f.text
        for f in found.wrong
    )
    texts = [finding.text for finding in check(root).findings]
    assert any(
        "id 0 (class 0) never occurs: if ids count from 1, give --data.first_id 1" in text for text in texts
    )
    assert check(root, first_id=1).findings == []
    root = pairs(tmp_path / "from0", {"train": 4, "val": 3})
    texts = [finding.text for finding in check(root, first_id=1, num_classes=4).findings]
    assert any(
        "id 4 (class 3) never occurs, and ids below 1 are void: if ids count from 0" in text for text in texts
    )


def test_classes_that_a_part_lacks_and_rare_ones(tmp_path: Path) -> None:
    root = pairs(tmp_path, {"train": 3, "val": 2}, size=(80, 80))
    lone = np.zeros((80, 80), dtype=np.uint8)
    lone[0, 0], lone[1:40] = 4, 1
    save(root / "masks" / "val" / "00.png", lone)
    found = check(root, num_classes=6)
    assert [f.text for f in found.wrong] == [
        "1 class without training images, which cannot be learnt: class 4"
    ]
    assert "1 class without any pixel: class 5" in [f.text for f in found.findings]
    save(root / "masks" / "val" / "00.png", blobs(0, (80, 80)))
    save(root / "masks" / "train" / "00.png", lone)
    texts = [f.text for f in check(root, num_classes=5).findings]
    assert any(text.startswith("1 class without validation images") for text in texts)
    assert any("1 class has less than 0.1% of the training pixels (class 4 0.01%)" in text for text in texts)


def test_much_that_is_void(tmp_path: Path) -> None:
    root = good(tmp_path)
    for path in (root / "masks" / "train").iterdir():
        mask = blobs(500 + int(path.stem))
        mask[8:] = 255
        save(path, mask)
    assert only(check(root, num_classes=4), "notice", "67% of the pixels of train count for nothing") == []


def test_drawn_scenes_are_fine() -> None:
    data = open_masks("digit-scenes", scenes=100)
    data.val = data.val.subset(range(60))
    assert check_masks(data).wrong == []


# -- weights -----------------------------------------------------------------------------------------------------------


def test_class_weights_equal_their_definition(tmp_path: Path) -> None:
    root = good(tmp_path)
    mask = np.full((24, 32), 3, dtype=np.uint8)
    mask[:4], mask[4:6] = 255, 0
    save(root / "masks" / "train" / "00.png", mask)
    data = open_masks(str(root), num_classes=5)
    masks = [mask, *(blobs(500 + i) for i in (1, 2, 3))]
    share, frequency = np.zeros(4), np.zeros(4)
    for label in range(4):
        own = sum(int((one == label).sum()) for one in masks)
        share[label] = own / sum(int((one != 255).sum()) for one in masks)
        frequency[label] = own / sum(int((one != 255).sum()) for one in masks if label in one)
    for kind, expected in (("inverse", 1 / share), ("median", np.median(frequency) / frequency)):
        expected = np.append(expected, expected.max())
        got = class_weights(data, kind)
        assert got.dtype == torch.float32
        assert torch.allclose(got, torch.tensor(expected / expected.mean(), dtype=torch.float32), rtol=1e-5)
    assert not torch.equal(class_weights(data, "median"), class_weights(data, "median", limit=1))
    with pytest.raises(UserError, match="there are inverse and median"):
        class_weights(data, "mean")


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_tells_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = good(tmp_path)
    assert main(["check-data", str(root)]) == 0
    text = capsys.readouterr().out
    assert "(segmentation): 4 in train, 3 in val" in text
    assert "class 3" in text
    assert "nothing is wrong" in text

    assert main(["check-data", str(root), "--data.void", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in result["classes"]] == ["class 0", "class 1", "class 2"]
    assert (result["task"], result["wrong"], result["findings"]) == ("segmentation", 0, [])

    for i in range(3):
        save(root / "masks" / "train" / f"{i:02}.png", np.full((24, 32), 255, dtype=np.uint8))
    assert main(["check-data", str(root)]) == 1
    text = capsys.readouterr().out
    assert "wrong: 3 masks hold nothing but void" in text
    assert "02.png" in text
    assert "1 to be mended" in text
    assert main(["check-data", str(root), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert len(result["findings"][0]["files"]) == 3

    assert main(["check-data", str(tmp_path / "nowhere")]) == 2
    assert main(["check-data", str(root), "--task", "segmentatoin"]) == 2
    assert "did you mean segmentation?" in capsys.readouterr().err
    assert main(["check-data", str(root), "--data.voidd", "3"]) == 2


def test_the_command_tells_what_the_data_is_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for spec, task in ((str(folder), "classification"), ("digits", "classification")):
        assert main(["check-data", spec, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["task"] == task
    assert main(["check-data", "digits", "--task", "segmentation"]) == 2
