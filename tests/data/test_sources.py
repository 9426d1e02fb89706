from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from data.conftest import classes, encoded, picture, write_files, write_tar
from PIL import Image

from deepvit.data import open_data, open_images, table
from deepvit.errors import UserError


def test_digits_are_split_once_and_for_all() -> None:
    data = open_data("digits")
    again = open_data("digits")
    assert (len(data.train), len(data.val), data.num_classes, data.mirror) == (1438, 359, 10, False)
    assert torch.equal(data.train.targets, again.train.targets)
    assert data.val.targets.bincount().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    image = data.train.image(0)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    red, green, blue = image.split()
    assert red.tobytes() == green.tobytes() == blue.tobytes()
    assert max(max(data.train.image(i).getextrema()[0]) for i in range(5)) == 255


def test_table_has_a_row_for_every_form() -> None:
    rows = table()
    assert {"digits", "torch/NAME", "hfds/NAME", "wds/PLACE"} <= {row["data"] for row in rows}
    assert all(set(row) == {"data", "what", "needs", "options"} for row in rows)
    assert "1,438 for training and 359 for testing" in rows[0]["what"]  # the counts of the test above


@pytest.mark.parametrize("val", ["val", "validation", "test"])
def test_folder_with_train_and(val: str, tmp_path: Path) -> None:
    write_files(tmp_path, classes(4, "train/") | classes(2, f"{val}/"))
    data = open_data(str(tmp_path))
    assert (len(data.train), len(data.val), data.class_names) == (12, 6, ["ant", "bee", "cat"])
    assert data.train.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert val in data.split
    assert data.val.where(0) == str(tmp_path / val / "ant" / "00.png")
    assert np.array_equal(
        np.asarray(data.val.image(0)), np.asarray(Image.open(tmp_path / val / "ant" / "00.png"))
    )


def test_validation_folder_wins_over_test(tmp_path: Path) -> None:
    write_files(tmp_path, classes(2, "train/") | classes(3, "test/") | classes(1, "val/"))
    assert len(open_data(str(tmp_path)).val) == 3  # one image a class


def test_flat_folder_is_split_stratified_and_by_its_own_seed(tmp_path: Path) -> None:
    write_files(tmp_path, classes(10))
    data = open_data(str(tmp_path))
    assert (len(data.train), len(data.val)) == (24, 6)
    assert data.val.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert "20%" in data.split
    seen = {data.train.where(i) for i in range(24)} | {data.val.where(i) for i in range(6)}
    assert len(seen) == 30
    other = open_data(str(tmp_path), split_seed=1)
    assert [other.val.where(i) for i in range(6)] != [data.val.where(i) for i in range(6)]
    assert len(open_data(str(tmp_path), val_fraction=0.5).val) == 15


def test_only_a_train_folder_is_split_too(tmp_path: Path) -> None:
    write_files(tmp_path, classes(5, "train/"))
    data = open_data(str(tmp_path))
    assert (len(data.train), len(data.val), data.class_names) == (12, 3, ["ant", "bee", "cat"])


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_files(tmp_path, classes(5, names=("bus", "car", "train")))
    assert open_data(str(tmp_path)).class_names == ["bus", "car", "train"]


def test_class_names_are_in_natural_order(tmp_path: Path) -> None:
    write_files(tmp_path, classes(2, names=("10", "9", "1")))
    assert open_data(str(tmp_path)).class_names == ["1", "9", "10"]


def test_tars_equal_folders(tmp_path: Path, folder: Path) -> None:
    write_tar(tmp_path / "train.tar", classes(8, "train/"))
    members = {name.removeprefix("val/"): data for name, data in classes(3, "val/").items()}
    write_tar(tmp_path / "test.tar", members)
    both = write_tar(
        tmp_path / "both.tar",
        {"./set/" + k: v for k, v in (classes(8, "train/") | classes(3, "val/")).items()},
    )
    expected = open_data(str(folder))
    for spec in (tmp_path / "train.tar", both):
        data = open_data(str(spec))
        assert data.class_names == expected.class_names
        for mine, theirs in ((data.train, expected.train), (data.val, expected.val)):
            assert torch.equal(mine.targets, theirs.targets)
            for i in (0, len(mine) - 1):
                assert mine.image(i).tobytes() == theirs.image(i).tobytes()


def test_folder_of_train_tar_and_test_tar(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", classes(4))
    write_tar(tmp_path / "test.tar", classes(2))
    data = open_data(str(tmp_path))
    assert (len(data.train), len(data.val), data.split) == (12, 6, "train.tar and test.tar")


def test_a_single_tar_is_split(tmp_path: Path) -> None:
    data = open_data(str(write_tar(tmp_path / "all.tar", classes(10))))
    assert (len(data.train), len(data.val)) == (24, 6)


def test_class_map_fixes_labels(tmp_path: Path, folder: Path) -> None:
    text = tmp_path / "map.txt"
    text.write_text("cat\nbee\nant\ndog\n")
    data = open_data(str(folder), class_map=text)
    assert data.class_names == ["cat", "bee", "ant", "dog"]
    assert data.train.targets.tolist() == [2] * 8 + [1] * 8 + [0] * 8
    with pytest.raises(UserError, match="'cat' of the data is not in the class map"):
        open_data(str(folder), class_map={"ant": 0, "bee": 1})


def test_images_of_other_kinds_become_rgb(tmp_path: Path) -> None:
    wide = Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8))
    grey = Image.fromarray(np.full((8, 8), 77, dtype=np.uint8))
    wide.save(tmp_path / "a.png")
    grey.save(tmp_path / "b.png")
    picture(1).convert("P").save(tmp_path / "c.gif")
    images = open_images(tmp_path)
    assert [images.image(i).mode for i in range(3)] == ["RGB"] * 3
    assert np.asarray(images.image(0))[0, 5].tolist() == [round(5000 / 257)] * 3
    assert np.asarray(images.image(1))[0, 0].tolist() == [77] * 3
    assert images.targets.tolist() == [-1] * 3


def test_open_images_takes_a_file_and_a_tar(tmp_path: Path) -> None:
    write_files(tmp_path, {"x.png": encoded(1)})
    assert len(open_images(tmp_path / "x.png")) == 1
    assert len(open_images(write_tar(tmp_path / "a.tar", classes(2)))) == 6


def message(spec: str | Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        open_data(str(spec), **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_are_named_in_one_line(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert f"no images found in {tmp_path / 'empty'}" in message(tmp_path / "empty")
    assert "did you mean 'digits'" in message("digit")
    assert "did you mean 'torch/cifar10'" in message("trch/cifar10")
    (tmp_path / "a.zip").write_bytes(b"")
    assert "neither a folder nor a .tar" in message(tmp_path / "a.zip")
    (tmp_path / "bad.tar").write_bytes(b"not a tar" * 100)
    assert "not a readable uncompressed tar" in message(tmp_path / "bad.tar")
    write_files(tmp_path / "loose", {"x.png": encoded(1), "ant/y.png": encoded(2)})
    assert "outside any class folder (e.g. x.png)" in message(tmp_path / "loose")
    write_files(tmp_path / "single", classes(1))
    assert "none can validate" in message(tmp_path / "single")


def test_a_class_only_in_val_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, classes(2, "train/") | classes(1, "val/", ("ant", "dog")))
    text = message(tmp_path)
    assert "'dog'" in text
    assert "train" in text
    assert "'ant'" not in text


def test_notes_name_empty_folders_and_classes_without_validation(tmp_path: Path) -> None:
    write_files(tmp_path, classes(2, "train/") | classes(1, "val/", ("ant", "bee")))
    (tmp_path / "train" / "dodo").mkdir()
    assert open_data(str(tmp_path)).account() == [
        "1 folder holds no images: train/dodo",
        "1 class without validation images: cat",
    ]


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    whole = io.BytesIO()
    picture(1, (64, 64)).save(whole, "JPEG")
    write_files(tmp_path, classes(2) | {"ant/99.jpg": whole.getvalue()[:-300], "bee/99.png": b"nothing"})
    images = open_images(tmp_path)
    bad = [i for i in range(len(images)) if "99" in images.where(i)]
    assert len(bad) == 2
    for i in bad:
        with pytest.raises(UserError, match=r"99\..* cannot be read"):
            images.image(i)
