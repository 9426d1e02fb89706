"""What README and guides show works: Python examples run, command lines are understood and run, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from masks.made import pairs
from PIL import Image
from report.example import example_measurements

import deepvit
from deepvit import commands, cures, losses, recipes, tasks
from deepvit.cli import main, values_of
from deepvit.collapse import METRICS
from deepvit.data import SOURCES
from deepvit.ops import BACKENDS
from deepvit.report import write_report

ROOT = Path(__file__).parents[1]
ALONE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in ALONE), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced pieces of a page that are marked with one of these words ("" for none)."""
    found, language, lines = [], None, list[str]()
    for line in page.read_text("utf-8").splitlines():
        if not line.startswith("```"):
            lines.append(line)
        elif language is None:
            language, lines = line[3:].strip(), []
        else:
            if language in languages:
                found.append("\n".join(lines) + "\n")
            language = None
    assert language is None, f"{page.name}: a piece of code does not end"
    return found


def test_blocks_are_those_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```\na\n```\nwords\n```python\nb\n```\nmore\n```\nc\n```\n")
    assert blocks(page, "") == ["a\n", "c\n"]
    assert blocks(page, "python") == ["b\n"]


SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2}
DEEP = {"depth": 16, **SHAPE}
SMALL = {"epochs": 1, "batch_size": 4, "max_train_images": 8, "max_val_images": 4, "devices": "cpu", "progress": False,
         "diagnose_images": 4, "overwrite": True}  # fmt: skip
HERE = {
    # What a page takes for granted: its reader's files and variables, here small ones.
    "capture.md": ("images",),
    "cure.md": ("model", "deep run"),
    "export.md": ("exported",),
    "report.md": ("reports", "model", "trainer"),
    "segment.md": ("pairs",),
    "train.md": ("photographs",),
}


def photographs(root: Path, count: int = 4) -> None:
    for part in ("train", "val"):
        for label, colour in (("apple", (200, 30, 30)), ("leaf", (30, 160, 40))):
            for i in range(count):
                (root / part / label).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (colour[0], colour[1], 10 * i)).save(
                    root / part / label / f"{i}.png"
                )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, nothing downloaded, trainings of a few images; registries are as before afterwards."""
    monkeypatch.chdir(tmp_path)
    create, train = timm.create_model, deepvit.train

    def small(name: str, **given: Any) -> torch.nn.Module:
        less = {"embed_dim": 48} if name == "vit_small_patch16_224" else {}
        if not name.startswith("local-dir:"):  # what was pushed lies here
            given["pretrained"] = False
        return create(name, **{**less, **given})

    monkeypatch.setattr(timm, "create_model", small)

    def short(**options: Any) -> Any:
        shape = {**SHAPE, "depth": 2, **options.pop("model_args", {})}
        if "scene" in options:
            options["scene"] = {**options["scene"], "crop_size": 32}
        return train(**{**options, **SMALL, "model_args": shape})

    monkeypatch.setattr(deepvit, "train", short)
    registries = (cures.CURES, losses.LOSSES, METRICS, tasks.TASKS, commands.NAMES, commands._ADDED, BACKENDS)
    before, sources = [dict(registry) for registry in registries], list(SOURCES)
    yield tmp_path
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)
    SOURCES._sources[:] = sources


def hf_vit() -> torch.nn.Module:
    """What a reader's ``transformers.Trainer`` holds; the trainer itself needs accelerate, which not everybody has."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes))


def prepared(page: str, root: Path) -> dict[str, Any]:
    """The names that a page's pieces know, and the files that they read."""
    names: dict[str, Any] = {"deepvit": deepvit, "timm": timm, "torch": torch, "F": F}
    for thing in HERE.get(page, ()):
        if thing == "images":
            names["images"] = torch.randn(2, 3, 224, 224)
        elif thing == "model":
            names["model"] = timm.create_model("vit_small_patch16_224", num_classes=10)
            names["images"], names["labels"] = torch.randn(4, 3, 224, 224), torch.tensor([1, 2, 3, 4])
            names["loader"] = [names["images"][:2]]
        elif thing == "trainer":
            names["trainer"] = SimpleNamespace(
                model=hf_vit(), add_callback=lambda callback: callback.probe.measure(0)
            )
        elif thing == "deep run":
            deepvit.train(data="digits", model="vit_tiny_patch16_224", model_args=DEEP, out="runs/a")
        elif thing == "reports":
            names["results"] = example_measurements("plain", depth=4, heads=2, grid=4)
            for name in ("plain", "cured"):
                write_report(example_measurements(name, depth=4, heads=2, grid=4), root / "runs" / name)
        elif thing == "exported":
            photographs(root / "PHOTOS")
            Image.new("RGB", (48, 40), (200, 30, 30)).save(root / "photo.jpg")
            deepvit.train(data="PHOTOS", model="vit_tiny_patch16_224", out="runs/a")
            deepvit.export("runs/a", out="model.onnx")
            deepvit.push("runs/a", to="local-dir:hub/a")
        elif thing == "pairs":
            pairs(root / "PHOTOS", {"train": 8, "val": 4}, size=(48, 48))
        elif thing == "photographs":
            photographs(root / "PHOTOS")
    return names


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


def test_most_pages_show_python() -> None:
    shown = {page.name for page in WITH_PYTHON}
    assert shown >= {"README.md", "quickstart.md", "extending.md", *HERE}


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda p: p.name)
def test_python_examples_run(page: Path, world: Path) -> None:
    """One after the other, each knowing what those before it made."""
    names = prepared(page.name, world)
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), names)


def command_lines() -> list[tuple[str, str]]:
    lines = []
    for page in PAGES:
        for code in blocks(page, "", "bash"):
            for line in code.replace("\\\n", " ").splitlines():
                if line.startswith("deepvit "):
                    lines.append((page.name, re.split(r"\s+#", line)[0].strip()))
    return lines


LINES = command_lines()


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda x: x[:60])
def test_command_lines_are_understood(page: str, line: str) -> None:
    _, name, *words = shlex.split(line)
    assert name in commands.NAMES
    if name == "study":
        assert words[0] in recipes.names() or words[0].endswith(".yaml")
        words[0] = words[0] if words[0] in recipes.names() else "quickstart"
    words = [word for word in words if "..." not in word]
    if page == "segment.md" and name in ("evaluate", "predict"):
        return  # its options are the run's: test_the_lines_of_a_guide_run has one
    assert values_of(name, commands.find(name), words) is not None


# What makes a line of a guide small enough to be run: it stands behind what the line says.
TINY = " ".join(f"--model.{key} {value}" for key, value in {"depth": 16, **SHAPE}.items())
TRAIN = "--epochs 1 --batch_size 4 --max_train_images 8 --max_val_images 4 --devices cpu --diagnose_images 4 --overwrite"
SHORT = {
    "diagnose": f"--images 4 --device cpu {TINY}",
    "train": TRAIN,
    "evaluate": "--max_val_images 4 --device cpu",
    "predict": "--device cpu",
    "study": " ".join(f"--train.{word[2:]}" if word.startswith("--") else word for word in TRAIN.split())
    .replace("--train.overwrite", "--overwrite"),
}  # fmt: skip
ELSEWHERE = (
    "--devices 4",
    "--devices 0,2",
    "--executor slurm",
    "--nodes",
    "hf-hub:",
)  # other machines than this one


def shortened(line: str) -> list[str]:
    """A line of a guide with fewer images and blocks, and without what would be downloaded."""
    line = line.replace(" --pretrained", "").replace(" --weights pretrained", "")
    _, name, *_ = line.split()
    more = SHORT.get(name, "")
    if "--arch" in line:
        more = "--images 2 --lesions off --device cpu"
    if name == "train" and "--weights runs/" not in line:
        more = f"{TINY.replace('--model.depth 16 ', '') if '--model.depth' in line else TINY} {more}"
    if name == "train" and "segmentation" in line:
        line = re.sub(r"--scene.crop_size \d+", "", line)
        more = (
            "--model.patch_size 8 --model.embed_dim 24 --model.num_heads 2 --model.depth 4 --channels 8 "
            + SHORT["train"]
        )
        more = more if "--weights runs/" not in line else SHORT["train"]
    return shlex.split(f"{line} {more}")[1:]


def reader(page: str, root: Path) -> None:
    """The files that the lines of a guide name."""
    if page == "segment.md":
        for name in ("PHOTOS", "CAMVID", "DATA"):
            pairs(root / name, {"train": 8, "val": 4}, size=(48, 48))
        assert main(shortened("deepvit train --task segmentation --data PHOTOS --out RUN")) == 0
    else:
        photographs(root / "PHOTOS")
    example = example_measurements("plain", depth=4, heads=2, grid=4)
    if page == "quickstart.md":
        torch.save(deepvit.models.create("deepvit_s_patch16_224").state_dict(), root / "deepvit_s.pth.tar")
    if page == "report.md":
        for name in ("runs/plain", "runs/reattention", "diagnosis/vit_small", "other"):
            write_report(example, root / name)
    if page == "cure.md":
        write_report(example, root)
        methods = "methods: [plain, attnscale@last:6]\n"
        (root / "my-study.yaml").write_text(methods + "train: {model: vit_tiny_patch16_224, data: digits}\n")
    for name in {"cure.md": ["a"], "export.md": ["a"], "segment.md": ["classifier", "a"]}.get(page, []):
        words = shlex.split(
            f"train --data digits --model vit_tiny_patch16_224 {TINY} {TRAIN} --out runs/{name}"
        )
        assert main(words) == 0


def run_lines(page: str, root: Path) -> list[str]:
    """The lines of a page that failed, in their order: later ones use what earlier ones left."""
    failed = []
    reader(page, root)
    for name, line in LINES:
        if name == page and "..." not in line and not any(words in line for words in ELSEWHERE):
            code = main(shortened(line))
            if code != 0:
                failed.append(f"{code}: {line}")
    return failed


def test_the_lines_of_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_lines("README.md", tmp_path) == []
    assert (tmp_path / "report/report.html").exists()
    assert (tmp_path / "runs/cured/model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({name for name, _ in LINES} - {"README.md"}))
def test_the_lines_of_a_guide_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_lines(page, tmp_path) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text) + re.findall(
        r"(?:src|srcset)=\"([^\"]+)\"", text
    )
    missing = [target for target in targets if not (page.parent / target).exists()]
    # Pages that the site makes: the options of the commands, and notebooks as pages.
    assert [target for target in missing if not target.endswith("commands.md")] == []


def test_recipes_name_the_command_that_runs_them() -> None:
    for name in recipes.names():
        words = shlex.split(recipes.header(name)["command"])
        assert words[0] == "deepvit"
        assert name in words, name


def test_the_makefile_runs_what_the_readme_says() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", readme, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
