"""The registry of sources: what each takes, what it refuses, and that all of it can be asked for by one dataclass."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
from data.conftest import classes, write_files
from jsonargparse import ArgumentParser, set_parsing_settings

from deepvit.data import SOURCES, DataOptions, ImageData, Source, open_data
from deepvit.data.options import HeldOutOptions
from deepvit.data.sources import Sources
from deepvit.errors import UserError
from deepvit.masks import MASK_SOURCES

NAMES = [field.name for field in dataclasses.fields(DataOptions)]
VALUES = {
    "class_map": "map.txt",
    "val_fraction": 0.5,
    "split_seed": 1,
    "layout": "parts",
    "root": "x",
    "num_classes": 3,
    "colours": "colours.yaml",
    "void": 11,
    "first_id": 1,
    "download": True,
    "scenes": 100,
    "scene_size": 64,
}
EVERY = [*SOURCES, *MASK_SOURCES]


def test_every_option_of_every_source_can_be_asked_for() -> None:
    assert set(NAMES) == set(VALUES)
    taken = {field.name for source in EVERY for field in dataclasses.fields(source.options)}
    assert taken == set(NAMES)
    assert all(getattr(DataOptions(), name) is None for name in NAMES)


def test_every_option_has_its_help_on_a_command_line() -> None:
    @dataclass
    class Config:
        data: DataOptions = dataclasses.field(default_factory=DataOptions)

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser()
    parser.add_argument("--data", type=DataOptions)
    help_of = {a.dest: a.help for a in parser._actions}
    assert all(len(help_of[f"data.{name}"]) > 30 for name in NAMES), help_of
    words = ["--data.class_map", "map.txt", "--data.val_fraction", "0.1", "--data.layout", "classes"]
    options = parser.instantiate(parser.parse_args(words)).data
    assert options == DataOptions(class_map="map.txt", val_fraction=0.1, layout="classes")


@pytest.mark.parametrize("source", EVERY, ids=lambda source: source.name)
@pytest.mark.parametrize("name", NAMES)
def test_an_option_that_a_source_does_not_take_is_refused_by_name(
    source: Source[ImageData], name: str
) -> None:
    options = DataOptions(**{name: VALUES[name]})
    if name in {field.name for field in dataclasses.fields(source.options)}:
        assert getattr(source.chosen("x", options), name) == VALUES[name]
        return
    with pytest.raises(UserError, match=rf"--data\.{name} means nothing for place .*leave it out"):
        source.chosen("place", options)


def test_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data\.val_fraction means nothing for digits"):
        open_data("digits", val_fraction=0.5)
    write_files(tmp_path, classes(2, "train/") | classes(1, "val/"))
    for option in ({"val_fraction": 0.5}, {"split_seed": 3}):
        with pytest.raises(
            UserError, match=r"means nothing for .*which has folders train/ and val/ of its own"
        ):
            open_data(str(tmp_path), **option)


def test_mistaken_options_are_named(tmp_path: Path) -> None:
    write_files(tmp_path, classes(3))
    with pytest.raises(UserError, match="did you mean val_fraction"):
        open_data(str(tmp_path), val_fractoin=0.5)
    with pytest.raises(UserError, match=r"val_fraction=2 must lie between 0 and 1"):
        open_data(str(tmp_path), val_fraction=2)
    with pytest.raises(UserError, match=r"split_seed=-1 must not be negative"):
        open_data(str(tmp_path), split_seed=-1)


def test_a_new_source_is_one_record(tmp_path: Path) -> None:
    @dataclass
    class Options(HeldOutOptions):
        """Of squares."""

    digits = open_data("digits")

    def open_squares(name: str, options: Options) -> ImageData:
        return dataclasses.replace(digits, spec=f"squares/{name}", split=str(options.val_fraction))

    squares = Source("squares/", (("squares/NAME", "squares"),), "nothing", Options, open_squares)
    sources = Sources(*SOURCES, squares)
    data = sources.open("squares/red", DataOptions(val_fraction=0.3))
    assert (data.spec, data.split) == ("squares/red", "0.3")
    assert "squares/NAME" in sources.help()
    assert sources.table()[-1] == {
        "data": "squares/NAME",
        "what": "squares",
        "needs": "nothing",
        "options": "val_fraction, split_seed",
    }
    with pytest.raises(UserError, match="did you mean 'squares/red'"):
        sources.open("square/red")
