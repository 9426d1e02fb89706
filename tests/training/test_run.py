"""A run from options to folder: exact resume, interruption, every refusal before anything is written."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import deepvit
from deepvit.errors import UserError
from deepvit.runs import read_run
from deepvit.training.config import TrainConfig

TINY = {
    "model": "vit_tiny_patch16_224",
    "model_args": {
        "depth": 2,
        "embed_dim": 16,
        "num_heads": 2,
        "img_size": 8,
        "patch_size": 4,
        "drop_path_rate": 0.2,
    },
    "data": "digits",
    "batch_size": 128,
    "max_train_images": 400,
    "max_val_images": 100,
    "diagnose_images": 0,
    "devices": "cpu",
    "progress": False,
}


def tiny(out: Path, **options: object) -> dict[str, object]:
    return {**TINY, "out": str(out), **options}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> deepvit.training.Run:
    out = tmp_path_factory.mktemp("finished") / "run"
    return deepvit.train(**tiny(out, epochs=3, ema_decay=0.9, diagnose_images=16))


def test_a_run_folder_holds_everything(finished: deepvit.training.Run) -> None:
    names = {path.name for path in finished.path.iterdir()}
    assert names >= {
        "config.yaml", "run.json", "metrics.csv", "checkpoints", "model.safetensors", "model.json", "tensorboard",
        "collapse.json", "report.html",
    }  # fmt: skip
    info = json.loads((finished.path / "run.json").read_text())
    assert {"command", "versions", "hardware", "wall_seconds", "seed", "result"} <= set(info)
    rows = list(csv.DictReader((finished.path / "metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert float(rows[-1]["train/cross_entropy"]) < float(rows[0]["train/cross_entropy"])
    assert float(rows[-1]["val/top1"]) == pytest.approx(finished.result["val/top1"])


def test_config_repeats_the_run(finished: deepvit.training.Run, tmp_path: Path) -> None:
    config = TrainConfig.from_yaml(finished.path / "config.yaml")
    again = deepvit.train(config, out=str(tmp_path / "again"), diagnose_images=0)
    one, two = (load_file(path / "model.safetensors") for path in (finished.path, again.path))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_deployed_weights_give_the_reported_accuracy(finished: deepvit.training.Run) -> None:
    result = deepvit.evaluate(str(finished.path), data="digits", device="cpu")
    assert result["images"] == 359
    model, card = deepvit.load_deployed(finished.path)
    assert card.weights == "ema"
    assert not model.training
    rows = list(csv.DictReader((finished.path / "metrics.csv").open()))
    chosen = deepvit.training.ImageDataModule("digits", max_val_images=100, input=card.input, batch_size=64)
    chosen.setup("validate")
    right = sum(int((model(x).argmax(-1) == y).sum()) for x, y in chosen.val_dataloader())
    assert right == pytest.approx(float(rows[-1]["val/top1"]))


def test_killed_and_resumed_is_the_same_run(tmp_path: Path) -> None:
    options = tiny(tmp_path / "whole", epochs=4, ema_decay=0.9, keep="best", accumulate=2)
    options["augment"] = {"mixup": 0.8, "cutmix": 1.0, "crop_padding": 1}
    whole = deepvit.train(**options)

    script = (
        "import sys, os, json, deepvit\n"
        "from deepvit.training import callbacks\n"
        "keep = callbacks.RunLog.on_train_batch_end\n"
        "def dying(self, trainer, module, *rest):\n"
        "    if trainer.current_epoch == 2: os.kill(os.getpid(), 9)\n"
        "    keep(self, trainer, module, *rest)\n"
        "callbacks.RunLog.on_train_batch_end = dying\n"
        "deepvit.train(**json.loads(sys.argv[1]))\n"
    )
    killed = {**options, "out": str(tmp_path / "killed")}
    done = subprocess.run([sys.executable, "-c", script, json.dumps(killed)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "killed" / "run.json").exists()
    with pytest.raises(UserError, match="--resume"):
        read_run(tmp_path / "killed")

    resumed = deepvit.train(out=str(tmp_path / "killed"), resume=True, progress=False, devices="cpu")
    one, two = (load_file(run.path / "model.safetensors") for run in (whole, resumed))
    assert set(one) == set(two)
    for name in one:
        assert torch.equal(one[name], two[name]), name
    tables = [list(csv.DictReader((run.path / "metrics.csv").open())) for run in (whole, resumed)]
    for first, second in zip(*tables, strict=True):
        for column in ("epoch", "step", "lr", "train/loss", "val/top1", "val/loss"):
            assert first[column] == second[column], column


def test_interruption_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = [
        f"--{k}={json.dumps(v) if isinstance(v, dict) else v}" for k, v in tiny(out, epochs=5000).items()
    ]
    # A child takes over that SIGINT is ignored, which a shell's & and many CI runners set: a handler is not taken over.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "deepvit", "train", *arguments], stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, ours)
    try:
        deadline = time.time() + 120
        while process.poll() is None and not (out / "checkpoints" / "last.ckpt").exists():
            assert time.time() < deadline, "no epoch ended"
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert f"deepvit train --resume --out {out}" in errors
    assert "Traceback" not in errors


def test_resuming_a_finished_run_reads_it(finished: deepvit.training.Run) -> None:
    before = (finished.path / "model.safetensors").stat().st_mtime_ns
    again = deepvit.train(out=str(finished.path), resume=True)
    assert again.result == finished.result
    assert (finished.path / "model.safetensors").stat().st_mtime_ns == before


def test_resume_refuses_other_options(finished: deepvit.training.Run) -> None:
    with pytest.raises(UserError, match="--resume goes on with batch_size=128"):
        deepvit.train(out=str(finished.path), resume=True, batch_size=32)
    # 64 is the default: what was asked for counts, not what differs from the default
    with pytest.raises(UserError, match="--resume goes on with batch_size=128"):
        deepvit.train(out=str(finished.path), resume=True, batch_size=64)
    config = TrainConfig(out=str(finished.path), resume=True)
    with pytest.raises(UserError, match="--resume goes on with batch_size=128"):
        deepvit.train(config, given={"out", "resume", "batch_size"})
    assert deepvit.train(config, given={"out", "resume"}).result == finished.result


def test_present_folders_are_not_overwritten(finished: deepvit.training.Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--resume, or replace it by --overwrite"):
        deepvit.train(**tiny(finished.path, epochs=1))
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holiday\.txt"):
        deepvit.train(**tiny(foreign, epochs=1, overwrite=True))
    assert (foreign / "holiday.txt").read_text() == "mine"


def test_overwrite_replaces_a_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = deepvit.train(**tiny(out, epochs=1))
    second = deepvit.train(**tiny(out, epochs=1, seed=1, overwrite=True))
    assert second.info["seed"] == 1
    assert first.info["seed"] == 0


def test_fine_tuning_from_a_run_keeps_its_body(finished: deepvit.training.Run, tmp_path: Path) -> None:
    tuned = deepvit.train(data="digits", weights=str(finished.path), out=str(tmp_path / "tuned"), epochs=1, lr=1e-12,
                          warmup_steps=0, layer_decay=0.7, max_train_images=128, max_val_images=50, diagnose_images=0,
                          weight_decay=0.0, devices="cpu", progress=False)  # fmt: skip
    one, two = (load_file(path / "model.safetensors") for path in (finished.path, tuned.path))
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


@pytest.mark.parametrize("precision", ["bf16", "16"])
def test_mixed_precision_trains_and_clips(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_

    def seen(parameters: object, most: float) -> torch.Tensor:
        norms.append(most)
        return clip(parameters, most)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", seen)
    run = deepvit.train(**tiny(tmp_path / "run", epochs=1, precision=precision, clip_grad=0.5))
    assert norms == [0.5] * run.result["steps"]


def test_a_run_that_lost_only_its_record_gets_it_back(finished: deepvit.training.Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    (copy / "run.json").unlink()
    again = deepvit.train(out=str(copy), resume=True, progress=False, devices="cpu")
    for name in ("val/top1", "val/loss", "epochs", "steps"):
        assert again.result[name] == pytest.approx(finished.result[name]), name


def test_kept_best_weights_and_reported_numbers_agree(tmp_path: Path) -> None:
    run = deepvit.train(
        **tiny(tmp_path / "run", epochs=4, keep="best", lr=0.05, warmup_steps=0, max_val_images=None)
    )
    assert run.result["val/top1"] == run.result["best/top1"]
    assert deepvit.evaluate(str(run.path), device="cpu")["top1"] == pytest.approx(run.result["val/top1"])


def test_fine_tuning_may_change_drop_path(finished: deepvit.training.Run, tmp_path: Path) -> None:
    options = {"data": "digits", "weights": str(finished.path), "epochs": 1, "max_train_images": 128,
               "max_val_images": 50, "diagnose_images": 0, "devices": "cpu", "progress": False}  # fmt: skip
    tuned = deepvit.train(**options, out=str(tmp_path / "tuned"), drop_path=0.5)
    assert tuned.info["model_args"]["drop_path_rate"] == 0.5
    with pytest.raises(UserError, match="does not fit"):
        deepvit.train(
            data="digits", weights=str(finished.path), out=str(tmp_path / "no"), model_args={"depth": 4}
        )


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        deepvit.train(**tiny(tmp_path / "file" / "run", epochs=1))


def test_a_diverging_loss_stops_before_the_update(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not finite at epoch \d+, step \d+ \(cross_entropy="):
        deepvit.train(**tiny(tmp_path / "run", epochs=3, lr=1e18, warmup_steps=0, clip_grad=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "vit_tinny_patch16_224"}, "vit_tiny_patch16_224"),
        ({"model_args": {"embed_dim": 50, "num_heads": 3}}, "num_heads=3"),
        ({"model_args": {"deepth": 3}}, "depth"),
        ({"data": "nowhere"}, "nowhere"),
        ({"losses": {"patch_cosine": -1.0}}, "patch_cosine"),
        ({"losses": {"patch_cosin": 1.0}}, "patch_cosin"),
        ({"cures": "no_such_cure"}, "no_such_cure"),
        ({"weights": "nowhere.pth"}, "nowhere.pth"),
        ({"devices": "7"}, "devices='7'"),
        ({"epochs": 0}, "epochs=0"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"resume": True}, "no run to resume"),
        ({"loss_args": {"tokens": "norm"}}, "loss_args"),
        ({"model_args": {"num_classes": 5}}, "num_classes"),
        ({"model_args": {"in_chans": 1}}, "in_chans"),
        ({"augment": {"randaugment": "foo"}}, "foo"),
        ({"losses": {"patch_mixing": 1.0}, "model_args": {**TINY["model_args"], "img_size": 10, "patch_size": 4}}, "divide"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        deepvit.train(**tiny(out, **options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean epochs"):
        deepvit.train(epoch=3)
