"""What is shipped: one version, a whole wheel, dependencies that are declared, bounds that are the tried ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from house.table import PACKAGE, SOURCES, House
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import deepvit

ROOT = SOURCES.parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Import name → the package that is installed for it, where the two differ.
INSTALLED_AS = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "pyyaml"}
# What comes with a declared dependency by its own promise.
BROUGHT = {"markupsafe": "jinja2", "docstring_parser": "jsonargparse", "triton": "torch"}


def requirements(*extras: str) -> dict[str, Requirement]:
    """Canonical name → requirement: the dependencies and those of some extras."""
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])]
    found = (Requirement(text) for text in texts)
    return {canonicalize_name(r.name): r for r in found if r.name != PROJECT["name"]}


def pins(name: str) -> dict[str, str]:
    """Canonical name → version of a file of constraints."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in lines)
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1].strip() for line in lines}


def test_the_version_stands_once() -> None:
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
    said = [
        path.name
        for path in SOURCES.rglob("*.py")
        if re.search(r"^\s*__version__ *=", path.read_text(), re.M)
    ]
    assert said == ["__init__.py"]


def test_a_source_tree_knows_its_version(tmp_path: Path) -> None:
    """Whatever is installed beside it."""
    done = subprocess.run(
        [sys.executable, "-m", "deepvit", "--version"], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCES.parent)},
    )  # fmt: skip
    assert done.stdout == f"deepvit {deepvit.__version__}\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this source tree, built without an environment of its own and without a network."""
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("wheel")
    return zipfile.ZipFile(next(iter(WheelBuilder(str(ROOT)).build(directory=str(folder)))))


def test_the_wheel_holds_every_file(wheel: zipfile.ZipFile) -> None:
    files = (path for path in SOURCES.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert {path.relative_to(SOURCES.parent).as_posix() for path in files} <= set(wheel.namelist())
    assert f"{PACKAGE}/py.typed" in wheel.namelist()


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    head = wheel.read(name).decode()
    assert f"\nVersion: {deepvit.__version__}\n" in head
    assert "\nClassifier: Typing :: Typed\n" in head
    assert "\nLicense-Expression: MIT\n" in head


def test_what_is_imported_is_declared() -> None:
    """Every library that the package imports stands in its dependencies or in an extra that a user can ask for."""
    declared = requirements(*(extra for extra in EXTRAS if extra not in ("dev", "docs")))
    missing = set()
    for module, names in House().names.items():
        for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {PACKAGE}:
            if canonicalize_name(BROUGHT.get(top, INSTALLED_AS.get(top, top))) not in declared:
                missing.add(f"{module} imports {top}")
    assert not missing


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-lowest.txt"])
def test_constraints_name_every_dependency(name: str) -> None:
    extras = [extra for extra in EXTRAS if extra != "docs" or name == "constraints.txt"]
    found, wanted = pins(name), requirements(*extras)
    assert sorted(set(wanted) - set(found)) == []
    assert [str(r) for key, r in wanted.items() if found[key] not in r.specifier] == []


def test_the_lowest_versions_are_those_that_are_tried() -> None:
    """A bound that is raised or lowered without ``make lowest`` would be one that nobody tried."""
    found = pins("constraints-lowest.txt")
    bounds = {key: [s for s in r.specifier if s.operator == ">="] for key, r in requirements(*EXTRAS).items()}
    assert [key for key, lower in bounds.items() if len(lower) != 1] == []
    untried = {
        key: (lower[0].version, found[key])
        for key, lower in bounds.items()
        if key in found and not same(lower[0].version, found[key])
    }
    assert untried == {}


def same(bound: str, version: str) -> bool:
    """Whether a version is the first one at or above a bound: equal, or the bound's own series (1.9 → 1.9.2)."""
    series = bound.split(".")
    return version.split(".")[: len(series)] == series


def test_lightning_is_newer_than_the_malicious_uploads() -> None:
    specifier = requirements()["lightning"].specifier
    assert not any(bad in specifier for bad in ("2.6.2", "2.6.3", "2.6.5"))
    assert "2.11.0" in requirements()["torch"].specifier


def test_hosted_ci_tries_every_python_that_is_promised() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    rows = jobs["test"]["strategy"]["matrix"]["include"]
    promised = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)}
    assert {row["python"] for row in rows} == promised
    assert any("constraints-lowest.txt" in row["pipflags"] for row in rows)
    commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([\w-]+)", " ".join(commands)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for name in re.findall(r"constraints[\w-]*\.txt", yaml.safe_dump(jobs)):
        assert (ROOT / name).exists()


def test_the_tools_of_a_commit_hook_come_from_no_fixed_folder() -> None:
    assert ".venv" not in re.sub("#.*", "", (ROOT / ".pre-commit-config.yaml").read_text())
