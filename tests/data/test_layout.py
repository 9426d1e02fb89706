"""What folders mean: misspelt parts are questioned, what is short or unused is said, in folders and in tars."""

from __future__ import annotations

from pathlib import Path

import pytest
from data.conftest import classes, write_files, write_tar

from deepvit.data import open_data
from deepvit.errors import UserError


def place(kind: str, path: Path, members: dict[str, bytes]) -> str:
    if kind == "tar":
        return str(write_tar(path / "set.tar", members))
    return str(write_files(path / "set", members))


def refusal(spec: str, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        open_data(spec, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize(
    ("train", "val", "named", "meant"),
    [
        ("train", "vall", "vall", "val"),
        ("train", "vla", "vla", "val"),
        ("train", "tset", "tset", "test"),
        ("train", "validaton", "validaton", "validation"),
        ("train", "val_images", "val_images", "val"),
        ("trian", "val", "trian", "train"),
        ("Tarin", "Test", "Tarin", "train"),
        ("training_set", "test_set", "test_set", "test"),
    ],
)
def test_misspelt_parts_are_questioned(
    kind: str, train: str, val: str, named: str, meant: str, tmp_path: Path
) -> None:
    text = refusal(place(kind, tmp_path, classes(4, f"{train}/") | classes(2, f"{val}/")))
    assert f"/{named} is neither a part's name nor surely a class" in text
    assert f"rename it to {meant}/" in text
    assert "--data.layout classes" in text


def test_flat_folders_of_such_names_are_questioned_and_can_be_classes(tmp_path: Path) -> None:
    spec = place("folder", tmp_path, classes(5, names=("train", "van")))
    assert "set/van is neither" in refusal(spec)
    assert open_data(spec, layout="classes").class_names == ["train", "van"]


def test_a_misspelt_part_beside_good_ones_is_questioned(tmp_path: Path) -> None:
    spec = place("folder", tmp_path, classes(4, "train/") | classes(2, "vall/") | classes(2, "test/"))
    assert "rename it to val/" in refusal(spec)


def test_an_unknown_part_with_the_same_classes_is_questioned(tmp_path: Path) -> None:
    spec = place("folder", tmp_path, classes(4, "train/") | classes(2, "holdout/"))
    assert "set/holdout is neither" in refusal(spec)
    assert open_data(spec, layout="classes").class_names == ["holdout", "train"]


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("names", [("trn", "vld"), ("a", "b"), ("fold1", "fold2", "fold3")])
def test_folders_of_any_names_with_the_same_classes_are_questioned(
    kind: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    members = {path: image for name in names for path, image in classes(2, f"{name}/").items()}
    spec = place(kind, tmp_path, members)
    for options in ({}, {"layout": "parts"}):
        text = refusal(spec, **options)
        assert f"/{names[0]} is neither a part's name nor surely a class" in text
        assert "name the parts train/ and val/" in text
        assert "--data.layout classes" in text
    assert open_data(spec, layout="classes").class_names == list(names)


def test_classes_that_share_one_folder_or_not_all_pass(tmp_path: Path) -> None:
    """An archive's own folder below each class, and views that some classes lack, are no set of classes."""
    one = {
        path: image for name in ("bear", "cow") for path, image in classes(5, f"{name}/", ("images",)).items()
    }
    assert open_data(place("folder", tmp_path / "one", one)).class_names == ["bear", "cow"]
    some = classes(5, "bear/", ("front", "side")) | classes(5, "cow/", ("front", "side", "top"))
    assert open_data(place("folder", tmp_path / "some", some)).class_names == ["bear", "cow"]


def test_parts_without_train_are_questioned(tmp_path: Path) -> None:
    spec = place("folder", tmp_path, classes(4, "val/") | classes(2, "test/"))
    assert "holds test, val but no train folder" in refusal(spec)


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_case_does_not_matter(kind: str, tmp_path: Path) -> None:
    data = open_data(place(kind, tmp_path, classes(4, "Train/") | classes(2, "VAL/")))
    assert (data.class_names, len(data.train), len(data.val)) == (["ant", "bee", "cat"], 12, 6)


@pytest.mark.parametrize(
    "names",
    [
        ("bus", "car", "train"),
        ("bus", "train", "van"),
        ("rain", "snow", "sun"),
        ("brain", "heart"),
        ("1", "2"),
    ],
)
def test_ordinary_class_names_pass(names: tuple[str, ...], tmp_path: Path) -> None:
    assert open_data(place("folder", tmp_path, classes(5, names=names))).class_names == sorted(names)


def test_an_empty_part_is_not_a_held_out_part(tmp_path: Path) -> None:
    spec = place("folder", tmp_path, classes(5, "train/"))
    (Path(spec) / "val").mkdir()
    assert "set/val holds no images" in refusal(spec)
    (Path(spec) / "val" / "ant").mkdir()
    assert "set/val holds no images" in refusal(spec)


def test_layout_parts_demands_them(tmp_path: Path) -> None:
    assert "layout parts asks for" in refusal(place("folder", tmp_path, classes(4)), layout="parts")


def test_tars_that_are_no_pair_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", classes(4))
    write_tar(tmp_path / "vall.tar", classes(2))
    assert "no pair train.tar and val.tar (it has train.tar, vall.tar)" in refusal(str(tmp_path))


def test_links_in_a_circle_are_named(tmp_path: Path) -> None:
    spec = place("folder", tmp_path, classes(4))
    (Path(spec) / "ant" / "again").symlink_to(spec)
    assert "link to a folder above it" in refusal(spec)


def test_what_is_short_or_unused_is_said_in_one_line_each(tmp_path: Path) -> None:
    members = classes(4, "train/") | classes(1, "train/", ("dog", "emu")) | classes(2, "extra/")
    members |= classes(2, "val/", ("ant", "bee")) | classes(1, "val/", ("dog",))
    spec = place("folder", tmp_path, members)
    (Path(spec) / "train" / "fox").mkdir()
    (Path(spec) / "val" / "cat").mkdir()
    assert open_data(spec).account() == [
        "2 folders hold no images: train/fox, val/cat",
        "not used beside train/ and val/: extra",
        "1 class of one image, which trains and is never validated: emu",
        "1 class without validation images: cat",
        "1 class with one training image only: dog",
    ]


def test_a_class_of_one_image_and_classes_of_the_map_alone_are_said(tmp_path: Path) -> None:
    spec = place("folder", tmp_path, classes(4) | classes(1, names=("dog",)))
    (tmp_path / "map.txt").write_text("ant\nbee\ncat\ndog\nelk\nfox\n")
    assert open_data(spec, class_map=str(tmp_path / "map.txt")).account() == [
        "2 classes without any image: elk, fox",
        "1 class of one image, which trains and is never validated: dog",
    ]


def test_nothing_is_said_of_good_data(folder: Path) -> None:
    assert open_data(str(folder)).account() == []
