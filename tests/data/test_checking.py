"""Each thing that can be wrong in a data set is put into a good one, and found; a good one has no findings."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data.conftest import classes, encoded, picture, write_files, write_tar
from PIL import Image

from deepvit.data import ImageData, open_data
from deepvit.data.checking import DataCheck, Finding, check_classification
from deepvit.data.sets import ArrayImages
from deepvit.errors import UserError

SIDE = (40, 40)


def good() -> dict[str, bytes]:
    members = {}
    for n, name in enumerate(("ant", "bee", "cat")):
        for part, count in (("train", 6), ("val", 2)):
            for i in range(count):
                members[f"{part}/{name}/{i}.png"] = encoded(
                    1000 * n + i + (500 if part == "val" else 0), SIDE
                )
    return members


def check(root: Path, members: dict[str, bytes]) -> DataCheck:
    return check_classification(open_data(str(write_files(root, members))))


def of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_nothing_is_found_in_good_data(tmp_path: Path) -> None:
    read: list[int] = []
    data = open_data(str(write_files(tmp_path, good())))
    result = check_classification(data, progress=read.append)
    assert result == DataCheck(str(tmp_path), {"train": 18, "val": 6}, [])
    assert read == list(range(1, 25))
    assert check_classification(open_data("digits")).wrong == []


def exif() -> Image.Exif:
    value = Image.Exif()
    value[0x0112] = 6
    return value


Case = tuple[str, Callable[[dict[str, bytes]], object], str, str, int]
CASES: list[Case] = [
    ("broken", lambda m: m.update({"train/bee/1.png": b"no", "val/ant/0.png": m["val/ant/0.png"][:80]}), "wrong",
     "2 images cannot be read: image ", 2),
    ("in both parts", lambda m: m.update({"val/ant/0.png": m["train/ant/3.png"]}), "wrong",
     "1 validation image is also among the training images: ", 2),
    ("in another format", lambda m: m.update({"val/ant/0.bmp": of(picture(3, SIDE), "BMP")}), "wrong",
     "1 validation image is also among the training images: ", 2),
    ("two labels", lambda m: m.update({"train/bee/0.png": m["train/ant/0.png"]}), "wrong",
     "1 picture has two labels: ", 2),
    ("repeated", lambda m: m.update({"train/ant/9.png": m["train/ant/0.png"], "train/ant/8.png": m["train/ant/0.png"]}),
     "notice", "2 training images repeat others: ", 3),
    ("uneven", lambda m: m.update({f"train/ant/{i}.png": encoded(9000 + i, SIDE) for i in range(61)}), "notice",
     "training images are uneven: ant has 61, ", 0),
    ("long", lambda m: m.update({"train/ant/0.png": encoded(1, (200, 40))}), "notice",
     "1 image is more than 4 times as long as wide", 1),
    ("tiny", lambda m: m.update({"train/ant/0.png": encoded(1, (9, 9))}), "notice", "1 image is below 16 pixels", 1),
    ("huge", lambda m: m.update({"train/ant/0.png": encoded(1, (400, 400))}), "notice",
     "1 image is more than 8 times larger or smaller than half of the images (40 pixels)", 1),
    ("modes", lambda m: m.update({"train/ant/0.png": of(picture(1, SIDE).convert("RGBA")),
                                  "train/ant/1.png": of(picture(2, SIDE).convert("L"))}), "notice",
     "images are colour, but 1 transparent, 1 grey: ", 2),
    ("16 bits", lambda m: m.update({"train/ant/0.png": of(Image.fromarray(np.full((40, 40), 999, np.uint16)))}), "notice",
     "images are colour, but 1 grey of 16 bits or more: ", 1),
    ("turned", lambda m: m.update({"train/ant/0.png": of(picture(99, SIDE), exif=exif())}), "notice",
     "1 image is turned by EXIF orientation (read upright here): ", 1),
    ("not validated", lambda m: [m.pop(f"val/cat/{i}.png") for i in range(2)], "notice",
     "1 class without validation images: cat", 0),
    ("one image", lambda m: [m.pop(f"train/cat/{i}.png") for i in range(5)], "notice",
     "1 class with one training image only: cat", 0),
    ("near names", lambda m: m.update({"train/Ant /0.png": encoded(77, SIDE), "train/Ant /1.png": encoded(78, SIDE),
                                       "val/Ant /1.png": encoded(79, SIDE)}), "notice", "classes with nearly one name: ", 0),
    ("unused", lambda m: m.update({"extra/ant/0.png": b""}), "notice", "not used beside train/ and val/: extra", 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "spoil", "severity", "text", "files"), CASES, ids=[case[0] for case in CASES]
)
def test_what_is_wrong_is_found(
    name: str,
    spoil: Callable[[dict[str, bytes]], object],
    severity: str,
    text: str,
    files: int,
    tmp_path: Path,
) -> None:
    members = good()
    spoil(members)
    (finding,) = check(tmp_path, members).findings
    assert finding.severity == severity
    assert finding.text.startswith(text)
    assert "\n" not in finding.text
    assert len(finding.files) == files


def test_the_wrong_come_first_and_all_is_json(tmp_path: Path) -> None:
    members = good() | {"train/ant/0.png": encoded(1, (9, 9)), "val/bee/1.png": b""}
    result = check(tmp_path, members)
    assert [finding.severity for finding in result.findings] == ["wrong", "notice"]
    assert result.wrong == result.findings[:1]
    read = json.loads(json.dumps(result.to_dict()))
    assert read["images"] == {"train": 18, "val": 6}
    assert [Finding(**finding) for finding in read["findings"]] == result.findings
    assert read["findings"][0]["files"] == [str(tmp_path / "val/bee/1.png")]


def test_labels_out_of_range_and_classes_that_cannot_be_learnt() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 20, 20), dtype=np.uint8)
    train = ArrayImages(pixels[:4], torch.tensor([0, 0, 7, -1]), "a")
    val = ArrayImages(pixels[4:], torch.tensor([0, 0, 1, 1]), "b")
    result = check_classification(ImageData("x", train, val, ["no", "yes"], ""))
    assert [finding.text for finding in result.wrong] == [
        "2 images have a label outside 0 to 1: -1, 7",
        "1 class without training images, which cannot be learnt: yes",
    ]


def test_a_stream_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    for part in ("train", "val"):
        write_tar(
            tmp_path / f"{part}-0.tar",
            {"0.png": encoded(0), "0.cls": b"0", "1.png": encoded(1), "1.cls": b"1"},
        )
    with pytest.raises(UserError, match="stream and cannot be checked"):
        check_classification(open_data(f"wds/{tmp_path}"))


def test_a_folder_of_classes_is_checked_after_its_split(tmp_path: Path) -> None:
    members = classes(5)
    members["ant/04.png"] = members["ant/00.png"]
    result = check(tmp_path, members)
    assert result.images == {"train": 12, "val": 3}
    assert len(result.findings) == 1
