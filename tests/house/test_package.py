"""What is shipped: one version, a whole wheel, dependencies that are declared, bounds that are the tried ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from house.table import PACKAGE, SOURCES, House
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import deepvit
from deepvit import commands
from deepvit.cli import values_of

ROOT = SOURCES.parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Import name → the package that is installed for it, where the two differ.
INSTALLED_AS = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "pyyaml"}
# What comes with a declared dependency by its own promise.
BROUGHT = {
    "markupsafe": "jinja2",
    "docstring_parser": "jsonargparse",
    "triton": "torch",
    "huggingface_hub": "timm",
}


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


def test_the_source_distribution_makes_the_same_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """What ``python -m build`` does: the wheel is made from the unpacked source distribution, without the repository."""
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    packed = next(iter(SdistBuilder(str(ROOT)).build(directory=str(tmp_path))))
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"{PACKAGE}-{deepvit.__version__}"
    again = zipfile.ZipFile(next(iter(WheelBuilder(str(unpacked)).build(directory=str(tmp_path / "again")))))
    assert sorted(again.namelist()) == sorted(wheel.namelist())
    changed = [name for name in wheel.namelist() if again.read(name) != wheel.read(name)]
    assert changed == []


def test_the_changelog_begins_with_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    found = re.findall(r"^## (\S+) \((.+)\)$", text, re.M)
    assert found[0][0] == deepvit.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found[0][1])
    versions = [tuple(map(int, name.split("."))) for name, _ in found]
    assert versions == sorted(versions, reverse=True)


def test_a_release_is_built_tried_and_published_by_a_tag() -> None:
    """By the index's trust in the workflow: there is no password anywhere; nothing is published that was not tried."""
    text = (ROOT / ".github/workflows/release.yml").read_text()
    flow = yaml.safe_load(text)
    jobs = flow["jobs"]
    assert flow[True]["push"] == {"tags": ["v*"]}  # YAML takes the word "on" for true
    assert "secrets." not in text
    assert (jobs["try"]["needs"], jobs["publish"]["needs"]) == ("build", "try")
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert flow["permissions"] == {"contents": "read"}
    tried = [step["run"] for step in jobs["try"]["steps"] if step.get("run", "").startswith("deepvit ")]
    assert [line.split()[1] for line in tried] == ["--help", "train", "evaluate", "diagnose", "export"]
    for line in tried[1:]:
        _, name, *words = line.split()
        assert values_of(name, commands.find(name), words) is not None
    assert not any("checkout" in step.get("uses", "") for step in jobs["try"]["steps"])
    promised = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)}
    assert set(jobs["try"]["strategy"]["matrix"]["python"]) == promised


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of an environment with the wheel in it and, of what this one has, everything but deepvit."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    # A folder that is named in a .pth file is searched, but its own .pth files are not read: no editable deepvit.
    (site / "libraries.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    options = ["--quiet", "--no-deps", "--no-index", "--ignore-installed", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *options, wheel.filename], check=True)
    return folder / "bin"


def asked(installed: Path, folder: Path, *words: str) -> str:
    """What a program of that environment prints, far from the repository."""
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [installed / words[0], *words[1:]], capture_output=True, text=True, cwd=folder,
        env={**variables, "XDG_CACHE_HOME": str(folder / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_wheel_needs_nothing_of_the_repository(installed: Path, tmp_path: Path) -> None:
    assert asked(installed, tmp_path, "deepvit", "--version") == f"deepvit {deepvit.__version__}\n"
    assert "deepvit COMMAND" in asked(installed, tmp_path, "deepvit", "--help")
    assert "--dynamic_size" in asked(installed, tmp_path, "deepvit", "export", "--help")
    assert "quickstart" in asked(installed, tmp_path, "deepvit", "list", "recipes")
    where = asked(installed, tmp_path, "python", "-c", "import deepvit; print(deepvit.__file__)")
    assert Path(where.strip()).is_relative_to(installed.parent)


@pytest.mark.slow
def test_an_installed_wheel_trains_diagnoses_and_exports(installed: Path, tmp_path: Path) -> None:
    asked(
        installed,
        tmp_path,
        "deepvit",
        "train",
        "--data",
        "digits",
        "--epochs",
        "1",
        "--out",
        "run",
        "--progress",
        "false",
    )
    asked(
        installed,
        tmp_path,
        "deepvit",
        "diagnose",
        "run",
        "--images",
        "16",
        "--lesions",
        "off",
        "--out",
        "report",
    )
    assert (tmp_path / "report" / "report.html").stat().st_size > 50_000
    assert "any batch" in asked(installed, tmp_path, "deepvit", "export", "run")
    code = (
        "import torch; from deepvit.ops import native; q = torch.randn(1, 4, 9, 8)\n"
        "assert native.why_not(q, 0.0) is None, native.why_not(q, 0.0)"
    )
    asked(installed, tmp_path, "python", "-c", code)  # the compiled sweeps, from the sources in the wheel


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
    # The lowest set is that of the tests, which need no site and no account.
    extras = [extra for extra in EXTRAS if extra not in ("docs", "wandb") or name == "constraints.txt"]
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
