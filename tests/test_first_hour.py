"""What somebody meets in the first hour: a run's own limits, one name for one thing, Python as the shell, help in words."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import deepvit
from deepvit import commands, models
from deepvit.cli import main
from deepvit.commands import help as help_module
from deepvit.data import InputSpec
from deepvit.errors import UserError
from deepvit.runs.subjects import published

SHAPE = {"depth": 2, "img_size": 32, "patch_size": 8, "embed_dim": 16, "num_heads": 2}
LIMITED = 5


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 6)):
        for label in ("apple", "leaf"):
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that saw five of twelve validation images."""
    out = tmp_path_factory.mktemp("runs") / "one"
    deepvit.train(
        model="vit_tiny_patch16_224", model_args=SHAPE, data=str(photographs), epochs=1, batch_size=6, devices="cpu",
        max_val_images=LIMITED, diagnose_images=0, progress=False, out=str(out),
    )  # fmt: skip
    return out


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_evaluate_keeps_the_runs_own_limit(run: Path, photographs: Path) -> None:
    trained = json.loads((run / "run.json").read_text())["result"]
    own = deepvit.evaluate(str(run), device="cpu")
    assert own["images"] == LIMITED
    assert own["top1"] == pytest.approx(trained["val/top1"])
    assert deepvit.evaluate(str(run), device="cpu", max_val_images=8)["images"] == 8
    assert deepvit.evaluate(str(run), data=str(photographs), device="cpu")["images"] == 12


def test_evaluate_on_the_runs_own_folder_keeps_how_it_was_opened(photographs: Path, tmp_path: Path) -> None:
    """Another share held out would count training images as unseen ones."""
    folder = photographs / "train"
    done = deepvit.train(
        model="vit_tiny_patch16_224", model_args=SHAPE, data=str(folder), epochs=1, batch_size=6, devices="cpu",
        data_args={"val_fraction": 0.5, "split_seed": 3}, diagnose_images=0, progress=False, out=str(tmp_path / "run"),
    )  # fmt: skip
    run = str(done.path)
    there = os.path.relpath(folder)  # the same place by another name
    found = deepvit.evaluate(run, data=there, device="cpu")
    assert found["images"] == 6
    assert found["loss"] == pytest.approx(done.result["val/loss"])
    assert deepvit.evaluate(run, data=there, device="cpu", data_args={"val_fraction": 0.34})["images"] == 4
    assert deepvit.evaluate(run, data=str(photographs), device="cpu")["images"] == 12
    out = tmp_path / "result.json"
    words = (
        "evaluate",
        run,
        "--data",
        there,
        "--data.val_fraction",
        "0.34",
        "--device",
        "cpu",
        "--out",
        str(out),
    )
    assert main(list(words)) == 0
    assert json.loads(out.read_text())["images"] == 4
    assert main(["evaluate", run, "--data.val_fractoin", "0.3"]) == 2
    seen = deepvit.diagnose(
        run, there, out=str(tmp_path / "seen"), lesions="off", device="cpu", progress=False
    )
    assert seen.measurements.provenance["images"] == 6
    words = (
        "diagnose",
        run,
        "--data",
        there,
        "--data.val_fraction",
        "0.34",
        "--lesions",
        "off",
        "--device",
        "cpu",
    )
    assert main([*words, "--out", str(tmp_path / "less")]) == 0
    assert json.loads((tmp_path / "less" / "collapse.json").read_text())["provenance"]["images"] == 4


def test_diagnose_says_that_it_took_images_whatever_their_folders_mean(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "misspelt"
    shutil.copytree(photographs / "train", root / "train")
    shutil.copytree(photographs / "val", root / "vall")
    shape = [word for key, value in SHAPE.items() for word in (f"--model.{key}", str(value))]
    words = (
        "diagnose",
        "vit_tiny_patch16_224",
        *shape,
        "--data",
        str(root),
        "--lesions",
        "off",
        "--device",
        "cpu",
    )
    said = shown(capsys, *words, "--out", str(tmp_path / "seen"))
    assert f"all images in {root} were taken" in " ".join(said.split())
    assert "vall" in said


def test_predictions_go_into_a_file_or_a_folder_by_the_name(
    run: Path, photographs: Path, tmp_path: Path
) -> None:
    image = str(next((photographs / "val" / "leaf").iterdir()))
    deepvit.predict(str(run), [image], device="cpu", out=str(tmp_path / "labels.json"))
    deepvit.predict(str(run), [image], device="cpu", out=str(tmp_path / "labels"))
    kept = [
        json.loads(path.read_text())
        for path in (tmp_path / "labels.json", tmp_path / "labels" / "predictions.json")
    ]
    assert kept[0] == kept[1]
    assert kept[0][0]["image"] == image


def test_evaluate_says_one_name_and_no_top_5_of_two(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(capsys, "evaluate", str(run), "--device", "cpu")
    assert re.search(rf"top-1 [\d.]+%, loss [\d.]+, {LIMITED} images", text), text
    assert "top-5" not in text
    for wrong in ("test accuracy", "val top-1", "val/"):
        assert wrong not in text


def test_predict_takes_a_folder(run: Path, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photographs / "val" / "apple"
    assert len(deepvit.predict(str(run), [str(folder)], device="cpu")) == 6
    text = shown(capsys, "predict", str(run), str(folder), "--device", "cpu")
    assert all(str(folder / f"{i}.png") in text for i in range(6))


def test_python_diagnoses_what_the_shell_diagnoses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for key, value in SHAPE.items() for word in (f"--model.{key}", str(value))]
    common = ["--images", "4", "--lesions", "off", "--device", "cpu"]
    text = shown(
        capsys, "diagnose", "vit_tiny_patch16_224", "--data", "digits", *words, *common, "--out", "shell"
    )
    first = "vit_tiny_patch16_224 has random weights (untrained): add --pretrained for published ones."
    assert " ".join(text.split()).startswith(first)
    report = deepvit.diagnose(
        "vit_tiny_patch16_224", "digits", model_args=SHAPE, images=4, lesions="off", device="cpu", out="python",
        progress=False,
    )  # fmt: skip
    assert sorted(path.name for path in Path("python").iterdir()) == sorted(
        p.name for p in Path("shell").iterdir()
    )
    shell, python = (json.loads(Path(name, "collapse.json").read_text()) for name in ("shell", "python"))
    assert list(shell["series"]) == list(python["series"])
    assert shell["provenance"]["data"] == python["provenance"]["data"] == "digits"
    assert report.metrics["blocks"] == python["blocks"]


def test_pretrained_is_advised_where_weights_are_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None are of our own models: whoever followed the advice ended in an error."""
    monkeypatch.chdir(tmp_path)
    words = [word for key, value in SHAPE.items() for word in (f"--model.{key}", str(value))]
    common = ["--data", "digits", "--images", "4", "--lesions", "off", "--device", "cpu", "--out", "shell"]
    text = " ".join(shown(capsys, "diagnose", "deepvit_s_patch16_224", *words, *common).split())
    way = "none are published under this name; give a checkpoint file with --arch, or a run folder"
    assert text.startswith(f"deepvit_s_patch16_224 has random weights (untrained): {way}.")
    assert "--pretrained" not in text
    page = Path("shell", "report.html").read_text("utf-8")
    assert way in page
    assert "--pretrained" not in page
    assert published("vit_small_patch16_224.augreg_in21k")
    assert not any(map(published, models.names()))


def test_help_says_how_images_are_limited() -> None:
    """As the loaders do it: they draw nothing at random."""
    told = {option.split()[0]: text for option, text, _ in help_module.described("train", [])["options"]}
    for name in ("--max_train_images", "--max_val_images"):
        assert "evenly spaced" in told[name]


@pytest.mark.parametrize("name", commands.NAMES)
def test_help_is_in_words(name: str) -> None:
    """Types that people read, the argument that is needed, and one spelling of an option everywhere."""
    told = help_module.described(name, [])
    text = help_module.rendered(told, 80)
    assert not re.search(r"Optional\[|dict\[|list\[|Union|default: null|<class|None\b", text), text
    for option in commands.find(name).positional:
        assert option.name.upper() in told["usage"]
    for option, _, _ in told["options"]:
        assert "model_args" not in option
    if name in ("train", "study"):
        groups = [group for _, _, group in told["options"]]
        assert len({group for group in groups if group}) >= 5
        assert groups == sorted(groups, key=groups.index)  # each group in one piece


class Own(nn.Module):
    """A network that nobody knows: 16 patches of 8 pixels, and no word of its size."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.positions = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.randn(1, 16, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
        self.encoder, self.head = (
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            nn.Linear(16, 2),
        )

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT + self.positions
        return self.head(self.encoder(tokens).mean(1))


def test_a_network_of_ones_own_says_its_size(photographs: Path) -> None:
    model, common = Own().eval(), {"images": 4, "lesions": "off", "progress": False}
    with pytest.raises(
        UserError, match=r"Own failed on images of 224×224 pixels.*give input=PIXELS"
    ) as error:
        deepvit.diagnose(model, str(photographs), **common)
    assert "\n" not in str(error.value)
    for told in (32, InputSpec(32, (0.5,) * 3, (0.5,) * 3)):
        report = deepvit.diagnose(model, str(photographs), input=told, **common)
        assert len(report.metrics["blocks"]) == 2
    with pytest.raises(UserError, match="input says what images"):
        deepvit.diagnose("vit_tiny_patch16_224", str(photographs), input=32)
