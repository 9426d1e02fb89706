"""A teacher by name: a run folder, a timm name; its own preprocessing; refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import deepvit
from deepvit import losses
from deepvit.errors import UserError
from deepvit.runs import load_deployed
from deepvit.runs.folder import read_metrics
from deepvit.training.config import TrainConfig
from deepvit.training.parts import prepared

SMALL = {"depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": 8, "patch_size": 4}
TINY: dict[str, Any] = {
    "model": "vit_tiny_patch16_224", "model_args": SMALL, "data": "digits", "batch_size": 64, "max_train_images": 128,
    "max_val_images": 32, "diagnose_images": 0, "devices": "cpu", "progress": False, "epochs": 1,
}  # fmt: skip
ANCHORED = {"gram_anchoring": 1.0, "patch_kernel_alignment": 0.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deepvit.train(**TINY, out=str(tmp_path_factory.mktemp("teacher") / "run")).path


def test_a_run_is_the_teacher_and_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    before = (run / "model.safetensors").read_bytes()
    options = {**TINY, "losses": ANCHORED, "loss_args": {"teacher": str(run)}, "seed": 1}
    trained = deepvit.train(**options, out=str(tmp_path / "run"))
    row = read_metrics(trained.path)[0]
    assert float(row["train/gram_anchoring"]) > 0
    assert 0 < float(row["train/patch_kernel_alignment"]) <= 1
    assert (run / "model.safetensors").read_bytes() == before
    card = load_deployed(trained.path)
    assert card[1].cures == []
    config = TrainConfig.from_yaml(trained.path / "config.yaml")
    assert config.loss.args == {"teacher": str(run)}


@torch.no_grad()
def test_the_terms_are_those_against_the_deployed_network(run: Path) -> None:
    options = {**TINY, "losses": ANCHORED, "loss_args": {"teacher": str(run)}, "seed": 1}
    parts = prepared(TrainConfig(**options))
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    parts.network.eval()
    _, terms = parts.objective(parts.network, images, torch.zeros(6, dtype=torch.long))
    teacher, _ = load_deployed(run)

    def tokens(model: Any) -> torch.Tensor:
        return model.forward_features(images)[:, 1:]  # after the final norm, without the class token

    x, y = (torch.nn.functional.normalize(tokens(m), dim=-1) for m in (parts.network, teacher))
    assert float(terms["gram_anchoring"]) == pytest.approx(
        float((x @ x.mT - y @ y.mT).square().mean()), rel=1e-4
    )


@torch.no_grad()
def test_images_reach_the_teacher_in_its_own_preprocessing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that is the network itself, but for other mean and deviation, sees the same picture otherwise scaled."""
    from deepvit.training import teachers

    whole = teachers.load_subject

    def other(*args: Any, **kwargs: Any) -> Any:
        subject = whole(*args, **kwargs)
        subject.input = type(subject.input)(8, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
        return subject

    monkeypatch.setattr(teachers, "load_subject", other)
    options = TrainConfig(**TINY, losses=ANCHORED, loss_args={"teacher": str(run)})
    parts = prepared(options)
    own = parts.card.input
    images = torch.rand(2, 3, 8, 8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (own.mean, own.std))
    _, terms = parts.objective(parts.network.eval(), (images - mean) / std, torch.zeros(2, dtype=torch.long))
    teacher, _ = load_deployed(run)
    its = [torch.tensor(v).view(1, 3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))]
    y = teacher.forward_features((images - its[0]) / its[1])[:, 1:]
    x = parts.network.forward_features((images - mean) / std)[:, 1:]
    assert float(terms["gram_anchoring"]) == pytest.approx(float(losses.gram_anchoring(x, y)), rel=1e-4)


def test_a_timm_name_means_its_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepvit.runs import subjects

    asked: list[dict[str, Any]] = []
    whole = subjects.models.create

    def without_network(name: str, *, pretrained: bool = False, **options: Any) -> Any:
        asked.append({"name": name, "pretrained": pretrained, **options})
        return whole(name, pretrained=False, **{"patch_size": 4, **options})

    monkeypatch.setattr(subjects.models, "create", without_network)
    prepared(TrainConfig(**TINY, losses=ANCHORED, loss_args={"teacher": "vit_tiny_patch16_224"}))
    teachers = [each for each in asked if each["pretrained"]]
    assert [(each["name"], each["img_size"]) for each in teachers] == [("vit_tiny_patch16_224", (8, 8))]
    assert timm.is_model("vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"losses": {"patch_cosine": 1.0}}, "no loss with a weight compares with a teacher"),
        ({"loss_args": {"teacher": "runs/nowhere"}}, "there is no file or folder runs/nowhere"),
        ({"model_args": {**SMALL, "patch_size": 2}}, "take a teacher of the same patch grid"),
        ({"model_args": {**SMALL, "img_size": 16, "patch_size": 8}}, "does not take these images"),
        ({"loss_args": {}}, "compares with a frozen teacher"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    options = {**TINY, "losses": ANCHORED, "loss_args": {"teacher": str(run)}, **changes}
    with pytest.raises(UserError, match=said):
        deepvit.train(**options, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
