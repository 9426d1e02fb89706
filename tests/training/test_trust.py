"""What long training must survive: kills inside epochs and writes, damaged checkpoints, numbers that are not finite."""

from __future__ import annotations

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.started import started

import deepvit
from deepvit.errors import UserError
from deepvit.files import atomic_path
from deepvit.runs.lock import writing
from deepvit.training import checkpoints
from deepvit.training.checkpoints import DIGESTS, LAST, PREVIOUS, newest_good
from deepvit.training.guards import DivergedError, Policy
from deepvit.training.replay import replay

TINY: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "model_args": {
        "depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": 8, "patch_size": 4, "drop_path_rate": 0.2,
    },
    "data": "digits", "batch_size": 32, "max_train_images": 320, "max_val_images": 64, "epochs": 2, "accumulate": 2,
    "ema_decay": 0.9, "keep": "best", "losses": {"patch_cosine": 0.1, "patch_mixing": 0.3}, "diagnose_images": 0,
    "augment": {"mixup": 0.8, "crop_padding": 1}, "devices": "cpu", "progress": False, "save_steps": 2, "log_every": 3,
}  # fmt: skip
SAME = ("epoch", "step", "lr", "train/loss", "train/cross_entropy", "val/top1", "val/loss")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deepvit.train(**TINY, out=str(tmp_path_factory.mktemp("trust") / "whole")).path


def same_run(one: Path, two: Path) -> None:
    for name in ("model.safetensors", "checkpoints/best.safetensors"):
        a, b = load_file(one / name), load_file(two / name)
        assert set(a) == set(b)
        assert all(torch.equal(a[key], b[key]) for key in a), name
    tables = [list(csv.DictReader((run / "metrics.csv").open())) for run in (one, two)]
    for first, second in zip(*tables, strict=True):
        assert {c: first[c] for c in SAME} == {c: second[c] for c in SAME}


# A child that dies by SIGKILL at the n-th visit of a place, by name.
DYING = """
import json, os, sys
import deepvit, deepvit.files
from deepvit.training import callbacks, checkpoints, saving, trainee
place, at, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
visits = 0
def dies(function):
    def wrapped(*args, **kwargs):
        global visits
        visits += 1
        if visits == at:
            os.kill(os.getpid(), 9)
        return function(*args, **kwargs)
    return wrapped
owner, _, name = place.rpartition(".")
modules = {"os": os, "saving": saving, "checkpoints": checkpoints, "files": deepvit.files}
parts = owner.split(".")
target = modules.get(parts[0]) or {"Trainee": trainee.Trainee, "RunLog": callbacks.RunLog}[parts[0]]
for part in parts[1:]:
    target = getattr(target, part)
setattr(target, name, dies(getattr(target, name)))
deepvit.train(**options)
"""
PLACES = [
    ("Trainee.training_step", 1), ("Trainee.training_step", 7), ("Trainee.optimizer_step", 4), ("os.replace", 5),
    ("os.fsync", 6), ("checkpoints.keep_previous", 2), ("RunLog.on_train_epoch_end", 1), ("Trainee.validation_step", 1),
    ("checkpoints.write_atomic", 2), ("os.link", 1), ("Trainee.training_step", 16), ("RunLog.on_train_epoch_end", 2),
]  # fmt: skip


def killed_and_resumed(tmp_path: Path, place: str, at: int, whole: Path) -> None:
    out = tmp_path / "killed"
    options = {**TINY, "out": str(out), "resume": "auto"}
    done = subprocess.run(
        [sys.executable, "-c", DYING, place, str(at), json.dumps(options)], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    deepvit.train(**options)
    same_run(whole, out)


@pytest.mark.parametrize(("place", "at"), PLACES[1:2])
def test_killed_anywhere_it_goes_on_as_if_nothing_was(
    tmp_path: Path, place: str, at: int, whole: Path
) -> None:
    killed_and_resumed(tmp_path, place, at, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "at"), PLACES[:1] + PLACES[2:])
def test_killed_in_every_write(tmp_path: Path, place: str, at: int, whole: Path) -> None:
    killed_and_resumed(tmp_path, place, at, whole)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow)]
)
def test_signals_save_inside_the_epoch_and_say_how_to_go_on(
    tmp_path: Path, whole: Path, number: signal.Signals, code: int
) -> None:
    # 0.3 s a step: the signal comes in the first epoch
    script = (
        "import sys, json, time\n"
        "from deepvit.cli import main\n"
        "from deepvit.training import trainee\n"
        "step = trainee.Trainee.training_step\n"
        "def slow(*a): time.sleep(0.3); print('step', flush=True); return step(*a)\n"
        "trainee.Trainee.training_step = slow\n"
        "sys.exit(main(['train', *sys.argv[1:]]))\n"
    )
    out = tmp_path / number.name
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**TINY, "save_steps": 0}))
    words = ["--config", str(config), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert f"deepvit train --resume --out {out}" in errors
    assert not (out / "metrics.csv").exists()  # no epoch had ended
    deepvit.train(resume=True, out=str(out), progress=False, devices="cpu")
    same_run(whole, out)


def damaged(path: Path, how: str, seed: int) -> None:
    data = bytearray(path.read_bytes())
    place = int(torch.randint(len(data), (1,), generator=torch.Generator().manual_seed(seed)))
    if how == "truncated":
        path.write_bytes(data[:place])
    else:
        data[place] ^= 1 << (seed % 8)
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_damaged_checkpoints_are_noticed_and_the_one_before_is_used(
    tmp_path: Path, whole: Path, how: str
) -> None:
    folder = whole / "checkpoints"
    for seed in range(40):
        copy = tmp_path / str(seed)
        copy.mkdir()
        for name in (LAST, PREVIOUS, DIGESTS):
            os.link(folder / name, copy / name) if name != LAST else (copy / name).write_bytes(
                (folder / name).read_bytes()
            )
        damaged(copy / LAST, how, seed)
        path, said = newest_good(copy)
        assert path == copy / PREVIOUS
        assert "is damaged" in said[0]


def test_a_run_goes_on_from_the_checkpoint_before(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = {**TINY, "out": str(out)}
    done = subprocess.run(
        [sys.executable, "-c", DYING, "Trainee.training_step", "14", json.dumps(options)], capture_output=True
    )
    assert done.returncode == -signal.SIGKILL
    damaged(out / "checkpoints" / LAST, "flipped", 3)
    deepvit.train(resume=True, out=str(out), progress=False, devices="cpu")
    assert "is damaged" in capsys.readouterr().err
    same_run(whole, out)
    (out / "run.json").unlink()
    for name in (LAST, PREVIOUS):
        damaged(out / "checkpoints" / name, "truncated", 5)
    with pytest.raises(UserError, match="nothing to go on from"):
        deepvit.train(resume=True, out=str(out), progress=False, devices="cpu")


def test_a_foreign_checkpoint_executes_nothing(tmp_path: Path, whole: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "owned",))

    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "config.yaml").write_text((whole / "config.yaml").read_text())
    torch.save({"state_dict": Evil()}, out / "checkpoints" / LAST)
    with pytest.raises((UserError, pickle.UnpicklingError), match="more than tensors"):
        deepvit.train(resume=True, out=str(out), progress=False, devices="cpu")
    assert not (tmp_path / "owned").exists()


def test_a_full_disk_leaves_both_checkpoints(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    writer = checkpoints.SafeCheckpoints()
    for number in (1, 2):
        writer.save_checkpoint({"number": torch.tensor(number)}, folder / LAST)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(self: object, data: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._Hashing, "write", full)
    with pytest.raises(UserError, match="cannot be written"):
        writer.save_checkpoint({"number": torch.tensor(3)}, folder / LAST)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert int(writer.load_checkpoint(folder / LAST)["number"]) == 2
    assert int(writer.load_checkpoint(folder / PREVIOUS)["number"]) == 1


def test_errors_of_the_disk_are_one_line(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "x") as path:
            path.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_one_writer_a_folder(tmp_path: Path) -> None:
    with writing(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} on"), writing(tmp_path):
        pass
    with writing(tmp_path):
        pass


@pytest.mark.slow
def test_two_starts_at_once_do_not_mix(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**TINY, "epochs": 6}))
    words = [
        sys.executable,
        "-m",
        "deepvit",
        "train",
        "--config",
        str(config),
        "--out",
        str(tmp_path / "run"),
    ]
    with started(words) as one, started(words) as other:
        both = (one, other)
        results = [process.communicate(timeout=300) for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes == [0, 2], results
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5, 6]


def poison(monkeypatch: pytest.MonkeyPatch, at: int, what: str) -> None:
    """Make a number NaN at the ``at``-th training step."""
    from deepvit.training.trainee import Trainee

    step = Trainee.training_step

    def training_step(self: Trainee, batch: Any, index: int) -> Any:
        if self.global_step != at:
            return step(self, batch, index)
        if what == "input":
            batch[0].view(-1)[0] = float("nan")
        loss = step(self, batch, index)
        parameter = self.model.get_parameter("blocks.1.attn.qkv.weight")
        return (
            loss * float("nan")
            if what == "loss"
            else loss + (parameter * 0).sum() * float("inf")
            if what == "gradient"
            else loss
        )

    monkeypatch.setattr(Trainee, "training_step", training_step)


@pytest.mark.parametrize("what", ["loss", "gradient", "input"])
@pytest.mark.parametrize(
    "at", [2, 4, 9]
)  # inside an epoch, its last step (5 a run of two epochs), the very last
def test_nothing_that_is_not_finite_reaches_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, at: int, whole: Path
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        poison(patch, at, what)
        with pytest.raises(DivergedError, match="not finite"):
            deepvit.train(**{**TINY, "save_steps": 1}, out=str(out))
    assert not (out / "run.json").exists()
    path, said = newest_good(out / "checkpoints")
    assert (path is not None, said) == (at > 0, [])
    state = checkpoints.SafeCheckpoints().load_checkpoint(path)["state_dict"]
    assert all(bool(v.isfinite().all()) for v in state.values() if v.is_floating_point())
    record = json.loads((out / "nonfinite" / "record.json").read_text())
    assert record["step"] == at
    deepvit.train(
        resume=True, out=str(out), progress=False, devices="cpu"
    )  # the cause is gone: as if it had not been
    same_run(whole, out)


def test_what_was_bad_can_be_seen_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create = timm.create_model

    def broken(*args: Any, **kwargs: Any) -> Any:
        model = create(*args, **kwargs)

        def hook(module: Any, args: Any, output: Any) -> Any:
            return (
                output / (model.norm.weight[0] > 0.999).float()
            )  # a division by zero once training has moved it

        model.blocks[1].mlp.fc2.register_forward_hook(hook)
        return model

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", broken)
        with pytest.raises(DivergedError, match="not finite"):
            deepvit.train(
                **{**TINY, "lr": 0.02, "warmup_steps": 0, "losses": {}, "ema_decay": 0.0}, out=str(out)
            )
        seen = replay(out)
    assert seen["began_in"] == "blocks.1.mlp.fc2"
    assert seen["record"]["began_in"] == "blocks.1.mlp.fc2"
    assert not torch.tensor(list(seen["terms"].values())).isfinite().all()
    with pytest.raises(UserError, match="no step to make again"):
        replay(tmp_path)


@pytest.mark.parametrize("policy", ["skip:1", "fp32_attention"])
def test_a_bad_step_may_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    poison(monkeypatch, 3, "gradient")
    run = deepvit.train(**TINY, out=str(tmp_path / "run"), on_nonfinite=policy)
    assert run.result["steps"] == 10
    with pytest.raises(UserError, match="must be stop, skip:N"):
        Policy.read("skip")


def test_more_bad_steps_than_allowed_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 3, "gradient")
    from deepvit.training.trainee import Trainee

    monkeypatch.setattr(Trainee, "global_step", property(lambda self: 3))
    with pytest.raises(DivergedError, match="after 2 such steps"):
        deepvit.train(**TINY, out=str(tmp_path / "run"), on_nonfinite="skip:2")


def test_validation_that_is_not_finite_stops_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepvit.tasks.classification import Accuracy

    compute = Accuracy.compute
    monkeypatch.setattr(Accuracy, "compute", lambda self: {**compute(self), "loss": float("nan")})
    with pytest.raises(DivergedError, match="validation after epoch 1 gives val/loss=nan"):
        deepvit.train(**TINY, out=str(tmp_path / "run"))


def test_resume_auto_starts_and_goes_on(tmp_path: Path) -> None:
    options = {**TINY, "out": str(tmp_path / "run"), "resume": "auto"}
    first = deepvit.train(**options)
    before = (first.path / "model.safetensors").stat().st_mtime_ns
    time.sleep(0.01)
    assert deepvit.train(**options).result == first.result
    assert (first.path / "model.safetensors").stat().st_mtime_ns == before
