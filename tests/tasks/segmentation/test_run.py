"""Segmentation through every command: train, resume, evaluate, predict, report, fine-tuning, a study."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import deepvit
from deepvit import recipes
from deepvit.cli import main
from deepvit.data import AugmentConfig
from deepvit.errors import UserError
from deepvit.masks import open_masks
from deepvit.tasks import Settings
from deepvit.tasks.segmentation.choices import SegmentOptions
from deepvit.training.config import TrainConfig

TINY = {
    "task": "segmentation",
    "data_args": {"scenes": 12},
    "model": "vit_tiny_patch16_224",
    "model_args": {"depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": 44, "patch_size": 8},
    "channels": 8,
    "batch_size": 3,
    "epochs": 1,
    "max_val_images": 4,
    "diagnose_images": 0,
    "devices": "cpu",
    "workers": 0,
    "progress": False,
}


def tiny(out, **options):
    return {**TINY, "out": str(out), **options}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("seg") / "run"
    losses = {"patch_cosine": 0.1, "patch_mixing": 0.1}
    return deepvit.train(**tiny(out, diagnose_images=4, epochs=2, ema_decay=0.5, losses=losses))


def test_the_folder_holds_what_every_run_has(run):
    rows = list(csv.DictReader((run.path / "metrics.csv").open()))
    assert {
        "train/cross_entropy",
        "train/auxiliary",
        "train/patch_cosine",
        "train/patch_mixing",
        "val/miou",
    } <= set(rows[0])
    assert len(rows) == 2
    assert {"val/miou", "val/mean_accuracy", "val/pixel_accuracy", "val/loss", "best/miou"} <= set(run.result)
    card = json.loads((run.path / "model.json").read_text())
    assert card["task"] == "segmentation"
    assert card["facts"]["class_names"][:2] == ["ground", "digit 0"]
    assert card["model_args"]["dynamic_img_size"] is True


def test_the_report_shows_examples_classes_and_confusion(run):
    text = (run.path / "report.html").read_text()
    for words in ("What it says", "Class by class", "Confusion", "digit 7"):
        assert words in text, words
    assert text.index("<h3>Patches alike") < text.index("<h3>Attention like the block before")
    assert text.count("data:image/png;base64,") == 5  # four validation images, the matrix
    assert text.index('<ul class="legend">') < text.index("of its pixels right")
    assert '<rect width="14" height="14" rx="3" fill="rgb(0, 0, 0)"/></svg>ground</li>' in text
    collapse = json.loads((run.path / "collapse.json").read_text())
    assert collapse["series"]["patch_similarity"]


def test_examples_are_in_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    images = events.Images("val/examples")
    assert len(images) == 2
    assert images[0].width > 4 * 48


def test_evaluate_gives_the_run_s_figures(run, tmp_path, capsys):
    found = deepvit.evaluate(
        str(run.path), device="cpu", batch_size=2, workers=0, out=str(tmp_path / "result.json")
    )
    for name in ("miou", "mean_accuracy", "pixel_accuracy", "loss"):
        assert found[name] == pytest.approx(run.result[f"val/{name}"], rel=1e-6), name
    assert np.array(found["confusion"]).sum() == 4 * 48 * 48
    assert json.loads((tmp_path / "result.json").read_text())["per_class"]["ground"]["iou"] is not None
    assert Image.open(tmp_path / "result-confusion.png").size[0] > 200
    words = [
        "evaluate",
        str(run.path),
        "--scales",
        "0.5,1",
        "--flip",
        "--inference",
        "slide",
        "--device",
        "cpu",
    ]
    assert main([*words, "--out", str(tmp_path / "folder")]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert (tmp_path / "folder" / "result-confusion.png").exists()
    assert main(["evaluate", str(run.path), "--topk", "3"]) == 2


def test_figures_are_the_same_for_images_of_several_sizes_and_any_batch(run, tmp_path):
    data, folder = open_masks("digit-scenes"), tmp_path / "data"
    for part, count in (("train", 2), ("val", 5)):
        for kind in ("images", "masks"):
            (folder / kind / part).mkdir(parents=True)
        for i in range(count):
            box = (0, 0, 48 - i % 3, 40)
            data.val.image(i).crop(box).save(folder / "images" / part / f"{i}.png")
            mask = Image.fromarray(data.val.target(i).numpy()).crop(box)
            mask.save(folder / "masks" / part / f"{i}.png")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(data.class_names))
    model, card = deepvit.load_deployed(run.path)
    problem = card.problem
    opened = open_masks(str(folder), class_map=str(names))
    found = []
    for size in (1, 2, 5):
        settings = Settings(size, AugmentConfig(), options=SegmentOptions(), workers=0, progress=False)
        meter = problem.meter()
        with torch.inference_mode():
            for images, masks in problem.validation(opened, card.input, settings):
                meter.update(problem.infer(model, images), masks)
        found.append(meter.counts())
    assert found[0].sum() == sum((48 - i % 3) * 40 for i in range(5))
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


def test_predict_writes_masks_of_the_image_s_size(run, tmp_path, capsys):
    data = open_masks("digit-scenes")
    picture = data.val.image(0).resize((61, 53))
    picture.save(tmp_path / "scene.png")
    out = tmp_path / "masks"
    assert (
        main(["predict", str(run.path), str(tmp_path / "scene.png"), "--out", str(out), "--device", "cpu"])
        == 0
    )
    mask = np.asarray(Image.open(out / "scene.png"))
    assert mask.shape == (53, 61)
    assert mask.dtype == np.uint8
    colours = np.asarray(Image.open(out / "scene-colour.png"))
    assert (colours == np.array(data.palette, dtype=np.uint8)[mask]).all()
    grey = np.asarray(picture, dtype=np.float64) @ (0.299, 0.587, 0.114)
    overlay = np.asarray(Image.open(out / "scene-overlay.png")).astype(np.float64)
    assert np.abs(overlay - (0.4 * grey[..., None] + 0.6 * colours)).max() <= 1  # a hue is the class's alone
    rows = json.loads((out / "predictions.json").read_text())
    share = 100 * (mask == 0).mean()
    assert rows[0]["shares"].get("ground", 0.0) == pytest.approx(share)
    assert "%" in capsys.readouterr().out
    assert (
        main(["predict", str(run.path), str(tmp_path / "scene.png"), "--out", str(tmp_path / "a.json")]) == 2
    )
    assert "a folder" in capsys.readouterr().err


def test_diagnose_reads_the_run_s_own_images(run, tmp_path):
    assert (
        main(
            ["diagnose", str(run.path), "--images", "4", "--out", str(tmp_path / "report"), "--device", "cpu"]
        )
        == 0
    )
    assert (tmp_path / "report" / "report.html").exists()


def test_resuming_is_the_run_that_was_never_stopped(tmp_path):
    whole = deepvit.train(**tiny(tmp_path / "whole", iterations=7))
    assert whole.result["epochs"] == 2  # four steps an epoch: two epochs hold seven
    part = tmp_path / "part"
    from lightning.pytorch.callbacks import Callback

    from deepvit.training import run as running

    class Stop(Callback):
        def on_train_epoch_end(self, trainer, module):
            raise RuntimeError("stopped")

    build = running.build_trainer

    def built(*arguments):
        trainer, log = build(*arguments)
        trainer.callbacks.append(Stop())  # behind the checkpoint
        return trainer, log

    running.build_trainer = built
    try:
        with pytest.raises(RuntimeError, match="stopped"):
            deepvit.train(**tiny(part, iterations=7))
    finally:
        running.build_trainer = build
    resumed = deepvit.train(out=str(part), resume=True, devices="cpu", progress=False, workers=0)
    one, two = (load_file(r.path / "model.safetensors") for r in (whole, resumed))
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_weights_of_a_classifier_and_of_a_segmentation(run, tmp_path):
    common = {
        key: TINY[key] for key in ("model", "epochs", "devices", "progress", "diagnose_images", "model_args")
    }
    args = dict(common["model_args"], img_size=40)
    options = {**common, "model_args": args, "max_train_images": 64, "max_val_images": 16, "data": "digits"}
    classifier = deepvit.train(**options, out=str(tmp_path / "classifier"))
    old = load_file(classifier.path / "model.safetensors")
    config = TrainConfig(
        **{**tiny(tmp_path / "x", weights=str(classifier.path), model_args={"img_size": 56})}
    )
    _, network, card = built_from(config)
    new = network.backbone.state_dict()
    assert torch.equal(new["blocks.1.mlp.fc1.weight"], old["blocks.1.mlp.fc1.weight"])
    assert new["pos_embed"].shape[1] == 1 + 49  # 25 patches before: the table is resized
    assert card.input.hw == (56, 56)

    config = TrainConfig(
        **tiny(tmp_path / "y", weights=str(run.path), model_args={"img_size": 64}, cures="layerscale")
    )
    _, network, _ = built_from(config)
    old = load_file(run.path / "model.safetensors")
    for name in ("head.classify.weight", "neck.steps.0.0.weight", "backbone.blocks.0.attn.qkv.weight"):
        assert torch.equal(network.state_dict()[name], old[name]), name


def built_from(config):
    from deepvit import tasks
    from deepvit.training.build import build_model

    kind = tasks.find(config.task)
    data = kind.open("digit-scenes", config.data.source, config.own)
    problem = kind(kind.facts_of(data, config.own))
    return problem, *build_model(config, problem, None)


def test_a_probe_of_frozen_features(run, tmp_path):
    options = tiny(tmp_path / "probe", weights=str(run.path), head="linear", frozen=True, model_args={})
    probe = deepvit.train(**options)
    old, new = (load_file(r.path / "model.safetensors") for r in (run, probe))
    names = [name for name in new if name.startswith("backbone.")]
    assert names
    assert all(torch.equal(old[name], new[name]) for name in names)
    assert not [name for name in new if name.startswith(("neck", "aux"))]


def test_a_study_over_cures(tmp_path):
    recipe = tmp_path / "tiny.yaml"
    import yaml

    train = {key: value for key, value in TINY.items() if key != "progress"}
    recipe.write_text(yaml.safe_dump({"methods": ["plain", "layerscale"], "seeds": [0], "train": train}))
    assert main(["study", str(recipe), "--out", str(tmp_path / "study"), "--train.progress", "false"]) == 0
    assert "mean IoU" in (tmp_path / "study" / "table.md").read_text()
    runs = [str(tmp_path / "study" / "runs" / name) for name in ("plain-s0", "layerscale-s0")]
    assert main(["compare", *runs, "--out", str(tmp_path / "side")]) == 0


def test_defaults_are_the_task_s_and_options_go_before_them(capsys):
    config = TrainConfig(task="segmentation")
    assert (config.data.spec, config.optim.schedule, config.optim.lr) == ("digit-scenes", "poly", 1e-3)
    assert config.model.args["depth"] == 6
    assert TrainConfig(task="segmentation", model="vit_tiny_patch16_224").model.args == {}
    assert TrainConfig(task="segmentation", weights="pretrained").optim.lr == 1e-4
    assert TrainConfig(task="segmentation", data="PHOTOS", lr=0.5).optim.lr == 0.5
    again = TrainConfig.from_options(config.options())
    assert again == config
    assert TrainConfig().data.spec == "digits"
    recipe = TrainConfig.from_yaml(recipes.find("segmentation/digit_scenes"))
    assert recipe.options() == config.options()
    assert main(["train", "--task", "segmentation", "--help"]) == 0
    text = capsys.readouterr().out
    assert "[digit-scenes]" in text
    assert "--scene.crop_size" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": {"mixup": 0.8}}, r"--augment.mixup .*--scene"),
        ({"head_dropout": 0.1}, "head_dropout"),
        ({"frozen": True, "losses": {"patch_cosine": 1.0}}, "--frozen"),
        ({"model": "vgg11", "model_args": {}, "grad_checkpointing": True}, "gradient checkpointing"),
        ({"channels": 0}, "channels=0"),
        ({"aux_weight": -1.0}, "aux_weight"),
        ({"iterations": 0}, "iterations=0"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        deepvit.train(**tiny(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_poly_is_a_line_after_the_warm_up():
    from deepvit.training.optim import build_schedule

    optim = TrainConfig(schedule="poly", iterations=100, warmup_steps=10, min_lr=0.0).optim
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = build_schedule(optimizer, optim, steps_per_epoch=7)
    rates = []
    for step in range(120):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1e-6)
    assert rates[5] == pytest.approx(1.0, rel=1e-3)
    for step in (10, 37, 99):
        assert rates[step] == pytest.approx(2.0 * (1 - step / 100))
    assert rates[110] == 0.0


def test_predicting_shares_add_up(run):
    path = run.path.parent / "one.png"
    open_masks("digit-scenes").val.image(1).save(path)
    row = deepvit.predict(str(run.path), [str(path)], device="cpu")[0]
    assert sum(row["shares"].values()) == pytest.approx(100.0)
