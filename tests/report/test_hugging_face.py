"""`deepvit diagnose` of Hugging Face folders: what is looked at, at which size, and what is no image model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from deepvit.cli import main
from deepvit.errors import UserError
from deepvit.runs.hugging_face import patches_of
from deepvit.runs.subjects import Subject, load_subject

VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50,
    "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BOTH = {"vision_config": VISION, "text_config": TEXT}
NAFLEX = {key: value for key, value in VISION.items() if key != "image_size"} | {"num_patches": 16}


def saved(folder: Path, model: hf.PreTrainedModel, **processor: Any) -> str:
    model.save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


TOWERS = {
    "clip": lambda: hf.CLIPModel(hf.CLIPConfig(**BOTH)),
    "siglip": lambda: hf.SiglipModel(hf.SiglipConfig(**BOTH)),
    "siglip2": lambda: hf.Siglip2Model(hf.Siglip2Config(vision_config=NAFLEX, text_config=TEXT)),
    "owlvit": lambda: hf.OwlViTForObjectDetection(hf.OwlViTConfig(**BOTH)),
}


@pytest.mark.parametrize("name", TOWERS)
def test_the_vision_tower_is_what_is_meant(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / name, TOWERS[name]())
    words = ["diagnose", folder, "--data", "digits", "--images", "4", "--out", str(tmp_path / "out")]
    assert main(words) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "out" / "collapse.json").read_text())
    assert len(found["blocks"]) == 2
    assert any(
        "the vision tower is looked at (vision_model)" in note for note in found["provenance"]["notes"]
    )


def test_siglip2_sees_the_patches_that_its_processor_cuts() -> None:
    from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

    image = torch.arange(3 * 16 * 24, dtype=torch.float32).reshape(1, 3, 16, 24)
    patches, rows, columns = patches_of(image, 8)
    assert (rows, columns) == (2, 3)
    theirs = convert_image_to_patches(image[0], 8)
    assert torch.equal(patches, torch.as_tensor(theirs).reshape(patches.shape))


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        (lambda: hf.BertModel(hf.BertConfig(**TEXT)), "BertModel takes input_ids"),
        (lambda: hf.GPT2Model(hf.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50)), "GPT2Model takes input_ids"),
    ],
    ids=["bert", "gpt2"],
)  # fmt: skip
def test_a_model_of_text_is_refused_in_one_line(
    model: Any, takes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "text", model())
    assert main(["diagnose", folder, "--data", "digits", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "no image model" in error
    assert takes in error
    assert not (tmp_path / "out").exists()


def vit(folder: Path, **processor: Any) -> str:
    return saved(folder, hf.ViTModel(hf.ViTConfig(**VISION)), **processor)


def shape_of(subject: Subject) -> tuple[int, int]:
    images = torch.zeros(1, 3, *subject.input.hw)
    with torch.no_grad():
        tokens = subject.model(images).last_hidden_state.shape[1] - 1
    assert tokens == subject.input.height * subject.input.width // 64
    return subject.input.hw


def test_the_processors_size_wins_and_the_users_over_it(tmp_path: Path) -> None:
    kind = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "resample": 2}
    folder = vit(tmp_path / "vit", **kind, size={"height": 48, "width": 64}, image_mean=[0.1] * 3)
    subject = load_subject(folder)
    assert subject.input.interpolation == "bilinear"
    assert subject.input.mean == (0.1, 0.1, 0.1)
    assert shape_of(subject) == (48, 64)
    assert shape_of(load_subject(folder, model_args={"img_size": 96})) == (96, 96)
    assert shape_of(load_subject(vit(tmp_path / "bare"))) == (32, 32)


def test_a_crop_is_the_size_and_its_share_is_kept(tmp_path: Path) -> None:
    kind = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "do_normalize": True}
    folder = vit(tmp_path / "vit", **kind, size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    spec = load_subject(folder).input
    assert spec.hw == (32, 32)
    assert spec.crop == pytest.approx(0.8)


def test_a_model_of_one_size_says_so(tmp_path: Path) -> None:
    folder = vit(tmp_path / "vit")
    with pytest.raises(UserError, match=r"made for images of 32×32 pixels and does not take 4×4"):
        load_subject(folder, model_args={"img_size": 4})
    with pytest.raises(UserError, match=r"--model\.depth .* only --model\.img_size"):
        load_subject(folder, model_args={"depth": 3})


def rewritten(folder: str, change: Callable[[str], str | None]) -> str:
    """The folder with its tensors under other names; None leaves a tensor out."""
    path = Path(folder) / "model.safetensors"
    state = {new: value for key, value in load_file(path).items() if (new := change(key)) is not None}
    save_file(state, path, {"format": "pt"})
    return folder


def diagnosed(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """First line in the terminal, and the text of the report."""
    words = ["--data", "digits", "--images", "2", "--lesions", "off", "--out", str(tmp_path / "out")]
    assert main(["diagnose", folder, *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out.splitlines()[0], (tmp_path / "out" / "report.html").read_text("utf-8")


def test_weights_that_the_file_lacks_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    gone = "layer.1.attention"
    folder = rewritten(vit(tmp_path / "vit"), lambda key: None if gone in key else key)
    subject = load_subject(folder)
    assert not subject.random
    lacks = r"8 of its \d\d tensors are not in the file and are random \(first: \S+\)"
    assert any(re.fullmatch(lacks, note) for note in subject.notes), subject.notes
    first, page = diagnosed(folder, tmp_path, capsys)
    assert re.fullmatch(rf"vit: {lacks}\.", first), first
    assert "Not all weights were loaded:" in page
    assert 'class="random"' not in page


def test_a_file_of_other_names_leaves_random_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor under a prefix that the network does not have: nothing is loaded, and transformers only warns."""
    monkeypatch.setenv("COLUMNS", "200")
    folder = rewritten(vit(tmp_path / "vit"), lambda key: f"student.backbone.{key}")
    assert load_subject(folder).random
    first, page = diagnosed(folder, tmp_path, capsys)
    assert first.startswith("vit has random weights (untrained): none of its tensors is in the file")
    assert "--pretrained" not in first
    assert '<b class="random">random weights</b>' in page


def test_a_whole_file_is_not_remarked_upon(tmp_path: Path) -> None:
    subject = load_subject(vit(tmp_path / "vit"))
    assert (subject.random, subject.remark) == (False, "")
