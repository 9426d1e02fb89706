"""A run is pushed, and timm's own functions give it back; the model card says what is known and what is not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import yaml
from exporting.deployed import CLASSES, SCENE, run_folder
from training.test_run import tiny

import deepvit
from deepvit.errors import UserError

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 32, "patch_size": 8}


def head(text: str) -> dict[str, Any]:
    """The YAML head of a model card."""
    return dict(yaml.safe_load(text.split("---\n")[1]))


@pytest.mark.parametrize(
    ("arch", "cure", "args"),
    [
        ("vit_small_patch16_224", "", SMALL),
        ("deepvit_tiny_d16_patch4_32", "", {"depth": 3, "dynamic_img_size": True}),
        ("vit_small_patch16_224", "reattention@last:1+layerscale", SMALL),
        ("vit_small_patch16_224", "registers+value_residual", SMALL),
        ("swin_tiny_patch4_window7_224", "", {"img_size": 56, "depths": (1, 1), "num_heads": (2, 4), "embed_dim": 24}),
    ],
    ids=["vit", "deepvit", "cured", "registers", "swin"],
)  # fmt: skip
def test_timm_gives_a_pushed_run_back(arch: str, cure: str, args: dict[str, Any], tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", arch, args.get("img_size", 32), cure, **args)
    pushed = deepvit.push(str(run), f"local-dir:{tmp_path / 'hub'}", license="mit")
    assert pushed.timm_reads
    network, card = deepvit.load_deployed(run)
    again = timm.create_model(pushed.place, pretrained=True).eval()
    images = torch.randn(2, 3, *card.input.hw)
    assert torch.equal(again(images), network(images))
    config = timm.data.resolve_model_data_config(again)
    assert tuple(config["input_size"]) == (3, *card.input.hw)
    assert tuple(config["mean"]) == card.input.mean
    assert config["interpolation"] == card.input.interpolation
    assert config["crop_pct"] == card.input.crop
    assert again.pretrained_cfg["label_names"] == CLASSES
    # Another number of classes: the trunk is the run's, the classifier new.
    other = timm.create_model(pushed.place, pretrained=True, num_classes=7).eval()
    assert other(images).shape == (2, 7)
    assert torch.equal(other.forward_features(images), network.forward_features(images))
    fresh = timm.create_model(pushed.place, pretrained=False).eval()
    assert not torch.equal(fresh(images), network(images))


def test_deepvit_reads_it_as_a_run(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", "vit_small_patch16_224", 32, "layerscale", **SMALL)
    deepvit.push(str(run), f"local-dir:{tmp_path / 'hub'}")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(
        deepvit.load_deployed(tmp_path / "hub")[0](images), deepvit.load_deployed(run)[0](images)
    )
    deepvit.push(str(run), f"local-dir:{tmp_path / 'hub'}")  # again, into the same folder


def test_what_timm_cannot_rebuild_says_how(tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    hub, plain = tmp_path / "hub", run_folder(tmp_path / "plain", "vit_small_patch16_224", 32, **SMALL)
    deepvit.push(str(plain), f"local-dir:{hub}")
    run = run_folder(tmp_path / "run", "vit_small_patch16_224", 32, facts=SCENE, **SMALL)
    pushed = deepvit.push(str(run), f"local-dir:{hub}")
    assert not pushed.timm_reads
    assert not (hub / "config.json").exists()  # that of the push before would build another network
    card = (hub / "README.md").read_text()
    assert head(card)["library_name"] == "deepvit"
    assert head(card)["pipeline_tag"] == "image-segmentation"
    code = card.split("```python\n")[1].split("```")[0]
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["model"](torch.zeros(1, 3, 32, 32))["out"].shape == (1, 3, 32, 32)


def test_the_card_of_a_trained_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    deepvit.train(
        **tiny(
            out, epochs=2, keep="best", cures="layerscale", diagnose_images=8, losses={"patch_cosine": 0.1}
        )
    )
    deepvit.push(str(out), f"local-dir:{tmp_path / 'hub'}", license="apache-2.0")
    text = (tmp_path / "hub" / "README.md").read_text()
    said, record = head(text), json.loads((out / "run.json").read_text())
    assert said["license"] == "apache-2.0"
    assert {"image-classification", "timm", "deepvit", "layerscale"} <= set(said["tags"])
    (result,) = said["model-index"][0]["results"]
    figures = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert figures["top1"] == round(record["result"]["val/top1"], 2)
    assert result["dataset"]["type"] == "digits"
    for part in (
        "layerscale in blocks",
        "| epochs | 2 |",
        f"| top-1 accuracy % | {record['result']['val/top1']:.2f} |",
        json.loads((out / "collapse.json").read_text())["verdict"]["headline"],
        "One run with one seed (0)",
        "The epoch was chosen on the validation images",
        "Gong et al. 2021, arXiv 2104.12753",
        "**not reproduced**",
    ):
        assert part in text, part
    assert str(tmp_path) not in text.split("## Load it")[0] + text.split("## What was trained")[1]
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(text)
    assert card.data.eval_results[0].metric_value == figures["top1"]
    code = text.split("```python\n")[1].split("```")[0]
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["model"](torch.zeros(1, 3, 8, 8)).shape == (1, 10)


class Hub:
    """What of the hub's API a push calls; keeps what was uploaded."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        self.folder, self.calls = folder, []
        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", self.create_repo)
        monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", self.upload_folder)

    def create_repo(self, repo_id: str, **given: Any) -> Any:
        self.calls.append((repo_id, given))
        return type("Url", (str,), {"repo_id": repo_id})(f"https://hub/{repo_id}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, **given: Any) -> None:
        self.calls.append((repo_id, given))
        for path in Path(folder_path).iterdir():
            (self.folder / path.name).write_bytes(path.read_bytes())


def test_a_repository_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's own calls with its network replaced: what it uploads, timm's hf-hub: loads."""
    pytest.importorskip("huggingface_hub")
    import timm.models._hub as timm_hub

    (tmp_path / "repository").mkdir()
    hub = Hub(tmp_path / "repository", monkeypatch)
    run = run_folder(tmp_path / "run", "vit_small_patch16_224", 32, "reattention@last:1", **SMALL)
    pushed = deepvit.push(str(run), "hf-hub:me/leaves", private=True, message="first")
    assert pushed.url == "https://hub/me/leaves"
    assert hub.calls[0] == ("me/leaves", {"private": True, "exist_ok": True})
    assert hub.calls[1][1]["commit_message"] == "first"
    assert sorted(p.name for p in hub.folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.json",
        "model.safetensors",
    ]
    text = (hub.folder / "README.md").read_text()
    assert 'timm.create_model("hf-hub:me/leaves", pretrained=True)' in text
    monkeypatch.setattr(
        timm_hub, "hf_hub_download", lambda repo_id, filename, **_: str(hub.folder / filename)
    )
    again = timm.create_model("hf-hub:me/leaves", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), deepvit.load_deployed(run)[0](images))


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", "vit_small_patch16_224", 32, **SMALL)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for to, told in (
        (None, "--to is needed"),
        ("somewhere", "give local-dir:FOLDER or hf-hub:OWNER/NAME"),
        ("hf-hub:leaves", "a repository is hf-hub:OWNER/NAME"),
        (f"local-dir:{tmp_path / 'full'}", "holds something else already .thesis.txt."),
        (f"local-dir:{run / 'model.json'}", "is a file; a folder is wanted"),
        ("hf-hub:me/leaves", "the hub does not take me/leaves|who you are"),  # the tests are offline
    ):
        with pytest.raises(UserError, match=told):
            deepvit.push(str(run), to)
    with pytest.raises(UserError, match="no run folder"):
        deepvit.push(str(tmp_path / "none"), f"local-dir:{tmp_path / 'x'}")
    assert not (tmp_path / "x").exists()


def test_a_damaged_base_is_not_built() -> None:
    record = [{"name": "layerscale", "blocks": [0], "options": {}}]
    with pytest.raises(UserError, match="which timm does not have"):
        timm.create_model("cured_vit", base="local-dir:/somewhere", cures=record)


def test_a_push_that_would_give_another_network_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(tmp_path / "run", "vit_small_patch16_224", 32, **SMALL)
    real = timm.create_model

    def another(*names: Any, **given: Any) -> Any:
        model = real(*names, **given)
        with torch.no_grad():
            model.head.bias += 1e-3
        return model

    monkeypatch.setattr("deepvit.hubs.push.timm", SimpleNamespace(create_model=another))
    with pytest.raises(UserError, match="it is not pushed"):
        deepvit.push(str(run), f"local-dir:{tmp_path / 'hub'}")
    assert not (tmp_path / "hub").exists()
