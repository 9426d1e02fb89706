"""README says what is so: its counts are the registries', its numbers come from records and benchmarks."""

from __future__ import annotations

import csv
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from deepvit import commands, cures, losses, recipes, tasks
from deepvit.commands.list import KINDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
WORDS = re.findall(
    r"\w+",
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen twenty""",
)


def number(word: str) -> int:
    return WORDS.index(word.lower()) if word.lower() in WORDS else int(word)


def script(name: str) -> ModuleType:
    """A script of docs/make, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "make" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def found(pattern: str) -> tuple[Any, ...]:
    match = re.search(pattern, README)
    assert match, f"README no longer says {pattern!r}"
    return match.groups()


def test_cures_and_losses_are_counted() -> None:
    total, more, terms = found(r"\*\*(\w+) cures\*\*.*? and (\w+) more, and \*\*(\w+) losses\*\*")
    assert number(total) == len(cures.CURES)
    assert number(more) == len(cures.CURES) - 1
    assert number(terms) == len(losses.LOSSES)


def test_the_networks_that_it_names_are_those_of_the_table() -> None:
    """The table of docs/cure.md is measured by tests/cures/test_networks.py."""
    rows = re.findall(
        r"^\| (.+?) \| `[\w.]+` \| (\d+) \|", (ROOT / "docs/cure.md").read_text("utf-8"), re.MULTILINE
    )
    taken = {
        name.split(",")[0]: int(count) for name, count in reversed(rows)
    }  # of one name the first is the plain one
    most, fewer, none = found(r"own attention \(([^;]+); fewer into ([^;]+); none into ([^;)]+)\)")

    def names(text: str) -> list[str]:
        return re.split(r", | and ", text)

    assert all(taken[name] >= len(cures.CURES) - 3 for name in names(most)), taken
    assert all(0 < taken[name] < len(cures.CURES) - 3 for name in names(fewer)), taken
    assert all(taken[name] == 0 for name in names(none)), taken


def test_every_command_is_in_its_table() -> None:
    told = re.findall(r"`deepvit ([\w-]+)", README.split("## What there is")[1].split("**")[0])
    assert sorted(told) == sorted(commands.NAMES)
    assert found(r"deepvit list ([\w\\|]+)`")[0].replace("\\", "").split("|") == list(KINDS)
    assert len(tasks.TASKS) == 2  # "a classifier, or a segmenter"


def test_tables_are_those_of_the_files() -> None:
    """`python docs/make/readme.py` writes them."""
    assert script("readme").written(README) == README


# A figure of README's own words and where it stands; what is in a table is compared whole.
SOURCES = [
    (
        r"in the plain network (\d+) of (\d+) blocks attend",
        "records/depth/README.md",
        r"similar blocks: {} of {} ",
    ),
    (r"makes ([\d.]+)% of the steps", "benchmarks/results/engine.md", "reaches {}% "),
    (r"two cores of an (AMD \w+)", "benchmarks/results/model.md", "{}, 2 threads"),
]


@pytest.mark.parametrize(("said", "file", "there"), SOURCES, ids=lambda x: x[:24])
def test_a_figure_stands_in_its_file(said: str, file: str, there: str) -> None:
    assert there.format(*found(said)) in re.sub(r"\s+", " ", (ROOT / file).read_text("utf-8"))


def test_no_other_figure_is_in_its_words() -> None:
    """Whoever writes a new measured number into README names its file above."""
    text = re.sub(r"<!-- (\w+): begin -->.*?<!-- \1: end -->", "", README, flags=re.DOTALL)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"arxiv\.org/abs/[\d.]+", "", text)
    for said, _, _ in SOURCES:
        text = re.sub(said, "", text)
    measured = re.findall(r"(?<![\w.])\d+\.\d+(?!\w)|\d+(?:\.\d+)?%", text)
    assert measured == []


def test_the_demo_is_what_it_says() -> None:
    recipe = yaml.safe_load(recipes.find("quickstart").read_text())
    (blocks,) = found(r"make demo +# one (\d+)-block ViT plain and cured twice")
    assert recipe["depths"] == [int(blocks)]
    assert recipe["methods"] == ["plain", "reattention", "diversity"]
    (minutes,) = found(r"takes about (\d+) minutes on two cores")
    assert int(minutes) < 5
    (size,) = found(r"\((\d+) GB, most of it torch\)")
    assert f"about {size} GB" in (ROOT / "Makefile").read_text("utf-8")


def test_what_the_demo_claims_holds_on_each_seed() -> None:
    """The demo is one seed of the study of 32 blocks: plain is last on each; which cure is first turns, and is not said."""
    seeds: dict[tuple[str, str], dict[str, float]] = {}
    for name in ("depth", "quickstart"):
        with (ROOT / "records" / name / "table.csv").open() as file:
            for run in csv.DictReader(file):
                seeds.setdefault((name, run["seed"]), {})[run["method"]] = float(run["top1"])
    assert len({seed for name, seed in seeds if name == "depth"}) >= 3
    assert all(min(found, key=found.__getitem__) == "plain" for found in seeds.values()), seeds
    best = {max(found, key=found.__getitem__) for found in seeds.values()}
    assert (len(best) > 1) == ("better turns with the seed" in re.sub(r"\s+", " ", README))
    one, many = (yaml.safe_load(recipes.find(name).read_text()) for name in ("quickstart", "depth"))
    for recipe in (one, many):
        for key in ("title", "seeds", "jobs"):
            recipe.pop(key)
    assert one == many
