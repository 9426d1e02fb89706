"""The options of data sources, each written once: a source takes some of them and refuses the others by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from deepvit.errors import UserError


@dataclass
class NoOptions:
    """A source that has nothing to choose."""


@dataclass
class ClassMapOption:
    """Which label each class has."""

    class_map: dict[str, int] | str | None = None
    """Labels of the classes: a text file with one class name a line (line number = label, from 0), or YAML, a list of names
    or NAME: LABEL; by default the names in natural order. For masks: what the classes are called."""


@dataclass
class HeldOutOptions:
    """How validation images are held out where a source has none of its own."""

    val_fraction: float | None = None
    """Share of each class that is held out for validation where the data has no validation part (default 0.2)."""
    split_seed: int | None = None
    """Chooses the images that are held out (default 0); keep it the same for runs that are to be compared."""


@dataclass
class LayoutOption:
    """What the folders of a place mean."""

    layout: Literal["classes", "parts"] | None = None
    """What the folders at the top are: classes, whatever they are called, or parts (train, val or test); by default told
    from their names."""


@dataclass
class RootOption:
    """Where downloaded files are."""

    root: str | None = None
    """Folder in which torch/ and hfds/ keep their files (default: their libraries' cache folders)."""


@dataclass
class ClassCountOption:
    """How many classes there are."""

    num_classes: int | None = None
    """Number of classes of wds/ shards and of masks that do not say it themselves."""


@dataclass
class MaskIdOptions:
    """What the pixels of masks mean."""

    colours: dict[str, Any] | str | None = None
    """Classes of masks by their colour: a YAML file of NAME: [R, G, B] (or a list of several, or "#rrggbb") in the order of
    the classes; a name void counts for nothing."""
    void: int | list[int] | None = None
    """Ids in masks that count for nothing, beside 255."""
    first_id: int | None = None
    """Id in masks of the first class (default 0): 1 where 0 means nothing; ids below it count for nothing."""


@dataclass
class DownloadOption:
    """Whether a network may be used."""

    download: bool | None = None
    """Fetch what is not there yet (masks of torch/ only; default false)."""


@dataclass
class SceneOptions:
    """Scenes that are drawn."""

    scenes: int | None = None
    """Training scenes an epoch of digit-scenes (default 2000), new ones in each."""
    scene_size: int | None = None
    """Height and width in pixels of digit-scenes (default 48)."""


@dataclass
class DataOptions(
    SceneOptions,
    DownloadOption,
    MaskIdOptions,
    ClassCountOption,
    RootOption,
    LayoutOption,
    HeldOutOptions,
    ClassMapOption,
):
    """All options of all data sources; None means not given. A source refuses by name those that it does not take."""

    def given(self) -> dict[str, Any]:
        """The options that are set, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def of(cls, **options: Any) -> DataOptions:
        """From options by name; ``UserError`` with the nearest names for one that no source has."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=2)
                hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
                raise UserError(f"no data option is called {name!r}; {hint}")
        return cls(**options)


def load_class_map(source: Mapping[str, int] | str | Path | None) -> dict[str, int] | None:
    """A class map from a mapping or a file: text with one class name a line (line number = label, from 0), or YAML."""
    if source is None:
        return None
    if isinstance(source, Mapping):
        mapping = dict(source)
    else:
        names = _class_file(source)
        if isinstance(names, Mapping):
            mapping = dict(names)
        else:
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise UserError(f"class map {source} holds {twice[0]!r} twice; give each class one line")
            mapping = {name: label for label, name in enumerate(names)}
    whole = all(type(label) is int for label in mapping.values())
    if not mapping or not whole or sorted(mapping.values()) != list(range(len(mapping))):
        raise UserError("a class map must give each class its own label, 0 to the number of classes - 1")
    return mapping


def _class_file(source: str | Path) -> Mapping[str, int] | list[str]:
    """Names in order, or names with labels, from a file of text or YAML."""
    try:
        text = Path(source).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"class map {source} does not exist; give a text file with one class name a line"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(
            f"class map {source} cannot be read ({reason}); give a text file with one class name a line"
        ) from None
    if Path(source).suffix not in (".yaml", ".yml"):
        return [line.strip() for line in text.split("\n") if line.strip()]
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"class map {source} is not YAML ({str(error).splitlines()[0]})") from None
    if isinstance(value, Mapping):
        return {str(name): label for name, label in value.items()}
    if isinstance(value, list):
        return [str(name) for name in value]
    raise UserError(f"class map {source} must be a list of names, or NAME: LABEL")
