"""Cut from the command line: given blocks and those of a report, with other cures, trained on, and what its report says."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import deepvit
from deepvit import cures
from deepvit.cli import main
from deepvit.collapse.results import Cure
from deepvit.report import load
from deepvit.report.cure_commands import command
from deepvit.runs import cut_run, load_deployed
from deepvit.training.config import TrainConfig

ON = ["--data", "digits", "--epochs", "1", "--batch_size", "64", "--max_train_images", "128", "--max_val_images", "64",
      "--progress", "false", "--devices", "cpu", "--warmup_steps", "0", "--lr", "1e-5"]  # fmt: skip
NONE = ["--diagnose_images", "0"]
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five blocks with layer scale, whose report recommends to cut blocks 1 and 3."""
    out = tmp_path_factory.mktemp("whole") / "run"
    small = {"depth": 5, "embed_dim": 16, "num_heads": 2, "img_size": 8, "patch_size": 4}
    words = [word for key, value in small.items() for word in (f"--model.{key}", str(value))]
    first = ["train", "--model", "vit_tiny_patch16_224", *words, *ON, "--cures", "layerscale"]
    assert main([*first, "--diagnose_images", "4", "--diagnose_lesions", "off", "--out", str(out)]) == 0
    told = json.loads((out / "collapse.json").read_text())
    told["verdict"]["cures"] = [{"name": "cut", "blocks": "1,3", "why": "", "loss": False}]
    (out / "collapse.json").write_text(json.dumps(told))
    return out


def blocks_cut(run: Path) -> list[Any]:
    return [
        entry["blocks"]
        for entry in json.loads((run / "model.json").read_text())["cures"]
        if entry["name"] == "cut"
    ]


@pytest.mark.parametrize("asked", ["cut@3-4", "cut@1,3", "cut@auto"])
@torch.no_grad()
def test_a_run_is_cut_and_trained_on(run: Path, tmp_path: Path, asked: str) -> None:
    out = tmp_path / "cut"
    assert main(["train", "--weights", str(run), *ON, *NONE, "--cures", asked, "--out", str(out)]) == 0
    model, card = load_deployed(out)
    assert len(model.blocks) == 3
    assert blocks_cut(out) == [[3, 4] if asked == "cut@3-4" else [1, 3]]
    assert [entry["name"] for entry in card.cures] == ["layerscale", "cut"]
    start = cures.apply(load_deployed(run)[0], "cut", blocks=blocks_cut(out)[0])
    moved = [
        float((a - b).detach().abs().max())
        for a, b in zip(model.parameters(), start.parameters(), strict=True)
    ]  # two steps of 1e-5 from where the run was
    assert 0 < max(moved) < 1e-4
    again = tmp_path / "on"
    assert main(["train", "--weights", str(out), *ON, *NONE, "--out", str(again)]) == 0
    assert len(load_deployed(again)[0].blocks) == 3
    assert deepvit.evaluate(str(again), data="digits", device="cpu")["images"] == 359


def test_auto_without_any_report_says_how_to_name_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cut"
    asked = ["--model", "vit_tiny_patch16_224", "--model.depth", "3", *ON, *NONE, "--cures", "cut@auto"]
    assert main(["train", *asked, "--out", str(out)]) == 2
    assert "--cure_report collapse.json" in capsys.readouterr().err
    assert not out.exists()


def test_options_of_other_cures_go_with_it(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    words = ["--cures", "cut@0,contranorm@2", "--cure_args.contranorm", '{"init": "paper", "strength": 0.3}']
    assert main(["train", "--weights", str(run), *ON, *NONE, *words, "--out", str(out)]) == 0
    record = json.loads((out / "model.json").read_text())["cures"]
    assert [(entry["name"], entry["blocks"]) for entry in record][1:] == [("contranorm", [2]), ("cut", [0])]
    assert record[1]["options"]["strength"] == 0.3
    network, _ = load_deployed(out)
    assert network(IMAGES).shape == (4, 10)


def test_the_report_of_a_cut_run_goes_on_from_the_cut_network(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut run"
    measured = ["--diagnose_images", "4", "--diagnose_lesions", "off"]
    assert (
        main(["train", "--weights", str(run), *ON, *measured, "--cures", "cut@3-4", "--out", str(out)]) == 0
    )
    told = load(out)
    words = shlex.split(command(Cure("qk_norm", "1-2", ""), told).replace("\\\n", " "))
    # Blocks 1 and 2 are those of the cut network, so its weights are what the command goes on from.
    assert words[words.index("--weights") + 1] == str(out)
    assert words[words.index("--cures") + 1] == "qk_norm"
    assert main([*words[1:], "--diagnose_images", "0"]) == 0
    record = json.loads((Path(f"{out}-qk_norm") / "model.json").read_text())["cures"]
    assert [(entry["name"], entry["blocks"]) for entry in record] == [
        ("layerscale", [0, 1, 2, 3, 4]),
        ("cut", [3, 4]),
        ("qk_norm", [1, 2]),
    ]
    loss = shlex.split(command(Cure("patch_cosine", "all", "", loss=True), told).replace("\\\n", " "))
    assert main([*loss[1:], "--diagnose_images", "0"]) == 0
    assert len(load_deployed(f"{out}-patch_cosine")[0].blocks) == 3


def test_the_report_of_a_cured_run_keeps_its_cures(run: Path) -> None:
    told = load(run)
    assert "--cures layerscale,qk_norm@1-2 \\" in command(Cure("qk_norm", "1-2", ""), told)
    assert "--cures cut --cure_blocks 1,3 \\" in command(Cure("cut", "1,3", ""), told)
    assert f"--weights {run} \\" in command(Cure("cut", "1,3", ""), told)


@torch.no_grad()
def test_a_run_cut_without_training_says_of_which_run_it_is(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    cut_run(run, "1,3", out)
    config = TrainConfig.from_yaml(out / "config.yaml")
    assert (config.model.weights, config.cure.names) == (str(run), "cut@1,3")
    assert config.data.spec == "digits"
    report = deepvit.diagnose(
        str(out), images=4, lesions="off", device="cpu", progress=False, out=str(tmp_path / "d")
    )
    train = report.measurements.provenance["train"]
    assert (train["cut"], train["out"]) == (True, str(out))
    again = deepvit.train(config, out=str(tmp_path / "again"), diagnose_images=0)
    assert blocks_cut(again.path) == [[1, 3]]
