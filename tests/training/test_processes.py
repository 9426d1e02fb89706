"""Several gloo processes are one with the same global batch; how they start, meet, fail and end."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training.started import started

import deepvit
from deepvit.data.batched.plan import TrainPlan
from deepvit.errors import UserError
from deepvit.runs.place import Place, place
from deepvit.training.devices import Devices, srun_meeting
from deepvit.training.strategy import has_unused

# Everything that looks at more than one image: Re-attention and the stem's batch norms, Mixup by pairs, every loss, EMA.
WHOLE: dict[str, Any] = {
    "model": "deepvit_tiny_d16_patch4_32",
    "model_args": {
        "depth": 2, "stem": "conv", "img_size": 8, "patch_size": 4, "embed_dim": 16, "num_heads": 2,
        "qkv_bias": False,  # see NOTHING
    },
    "data": "digits", "max_train_images": 120, "max_val_images": 101, "lr": 1e-6, "warmup_steps": 0, "min_lr": 1e-7,
    "ema_decay": 0.9, "augment": {"mixup": 0.8, "crop_padding": 0, "hflip": 0.0}, "precision": "32", "log_every": 1,
    "losses": {"patch_cosine": 0.5, "patch_contrastive": 0.5, "patch_mixing": 1.0, "attention_cosine": 0.2},
    "loss_args": {"attention_images": 1.0}, "diagnose_images": 0, "progress": False,
}  # fmt: skip
BATCH = 12
# The training loss does not hang on the keys' bias, nor on theta's, whose mean the batch norm takes out again: their
# gradient is rounding alone, which Adam makes as large as any other.
NOTHING = ("reatten_matrix.bias", "attn.var_norm.running_mean")


def trained(out: Path, world: int, **options: Any) -> Path:
    given = {**WHOLE, "devices": f"cpu:{world}", "batch_size": BATCH // world, **options}
    return deepvit.train(**given, out=str(out)).path


def state(run: Path) -> dict[str, torch.Tensor]:
    loaded = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: value.double() for name, value in loaded.items() if not name.endswith(NOTHING)}


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").open()))


def weights_differ(one: Path, two: Path) -> float:
    """Distance of all weights and running statistics, the moving average's too, relative to their length."""
    a, b = state(one), state(two)
    assert set(a) == set(b)
    distance = sum(float((a[name] - b[name]).square().sum()) for name in a)
    return (distance / sum(float(value.square().sum()) for value in a.values())) ** 0.5


def losses_differ(one: Path, two: Path) -> float:
    """The largest relative difference in an epoch of what is minimised, of its main term and of the validation loss."""
    names = ("train/loss", "train/cross_entropy", "val/loss")
    pairs = [(float(a[n]), float(b[n])) for a, b in zip(rows(one), rows(two), strict=True) for n in names]
    terms = [n for n in rows(one)[0] if n.startswith("train/")]
    # Cosines of nearly uniform maps are ill conditioned: float32 leaves them five digits.
    assert all(
        float(a[n]) == pytest.approx(float(b[n]), abs=1e-5)
        for a, b in zip(rows(one), rows(two), strict=True)
        for n in terms
    )
    return max(abs(a / b - 1) for a, b in pairs)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("processes") / "one", 1, epochs=1)


def test_two_processes_are_one_with_the_same_batch(tmp_path: Path, alone: Path) -> None:
    two = trained(tmp_path / "two", 2, epochs=1)
    assert rows(alone)[0]["step"] == rows(two)[0]["step"] == "10"
    assert weights_differ(alone, two) < 1e-6
    assert losses_differ(alone, two) < 1e-6
    for figure in ("val/top1", "val/top5"):  # 101 images over two processes, each counted once
        assert float(rows(alone)[0][figure]) == pytest.approx(float(rows(two)[0][figure]), rel=1e-6)
    assert set(load_file(alone / "model.safetensors")) == set(load_file(two / "model.safetensors"))


@pytest.mark.slow
def test_fifty_steps_in_two_and_three_processes(tmp_path: Path) -> None:
    one = trained(tmp_path / "one", 1, epochs=5)
    assert rows(one)[-1]["step"] == "50"
    for world in (2, 3):
        several = trained(tmp_path / str(world), world, epochs=5)
        assert weights_differ(one, several) < 1e-6
        assert losses_differ(one, several) < 1e-6
        for mine, theirs in zip(rows(one), rows(several), strict=True):
            assert float(mine["val/top1"]) == pytest.approx(float(theirs["val/top1"]), rel=1e-6)
    apart = trained(tmp_path / "apart", 2, epochs=5, sync_batchnorm=False)
    assert weights_differ(one, apart) > 1e-5


@pytest.mark.parametrize(("world", "size"), [(1, 5), (2, 4), (3, 4), (2, 5), (3, 7)])
def test_processes_share_the_batches_of_one(world: int, size: int) -> None:
    whole = TrainPlan(103, size * world, seed=1).epoch(2)
    shares = [TrainPlan(103, size, seed=1, rank=rank, world=world).epoch(2) for rank in range(world)]
    assert {len(share) for share in shares} == {len(whole)}
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert sorted(torch.cat(parts).tolist()) == sorted(batch.tolist())
        pairs = set(zip(batch.tolist(), batch.flip(0).tolist(), strict=True))
        if size % 2 == 0:  # the mirrored batch pairs the same images
            mine = {pair for part in parts for pair in zip(part.tolist(), part.flip(0).tolist(), strict=True)}
            assert mine == pairs


RANKS = """
import sys, torch, torch.distributed as dist, deepvit
from deepvit.layers.synced_norm import synchronise
from torch import nn
from timm.layers import BatchNormAct2d
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(3)
draw = lambda: torch.randn(7, 3, 5, 4, dtype=torch.float64)
x, grad = draw() * 0.01 + 100, draw()
sizes = [2, 5]
part = slice(0, 2) if rank == 0 else slice(2, 7)
for momentum, kind in ((0.1, nn.BatchNorm2d), (None, nn.BatchNorm2d), (0.1, BatchNormAct2d)):
    plain, ours = kind(3).double(), kind(3).double()
    plain.momentum = ours.momentum = momentum
    with torch.no_grad():
        for norm in (plain, ours):
            norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0])); norm.bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
    ours = synchronise(nn.Sequential(ours))[0]
    assert isinstance(ours, kind)
    whole, own = x.clone().requires_grad_(), x[part].clone().requires_grad_()
    for _ in range(2):
        y, z = plain(whole), ours(own)
    y.backward(grad); z.backward(grad[part])
    torch.testing.assert_close(z, y[part])
    torch.testing.assert_close(own.grad, whole.grad[part], rtol=1e-6, atol=1e-9)
    for name, value in plain.named_buffers():
        torch.testing.assert_close(getattr(ours, name), value, rtol=1e-9, atol=1e-12)
    for p, q in zip(plain.parameters(), ours.parameters()):
        dist.all_reduce(q.grad); torch.testing.assert_close(q.grad, p.grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))
"""


def torchrun(script: list[str], world: int = 2, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    return subprocess.run(
        [*command, *script], capture_output=True, text=True, env={**os.environ, **env}, timeout=300
    )


def test_batch_norms_over_processes_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    done = torchrun([str(tmp_path / "ranks.py")])
    assert done.returncode == 0, done.stderr[-3000:]


def command_line(tmp_path: Path, **options: Any) -> list[str]:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**WHOLE, "batch_size": BATCH // 2, "epochs": 1, **options}))
    return ["train", "--config", str(config), "--out", str(tmp_path / "run")]


def test_torchrun_trains_once(tmp_path: Path, alone: Path) -> None:
    done = torchrun(["-m", "deepvit", *command_line(tmp_path)])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("run folder:") == 1
    assert weights_differ(alone, tmp_path / "run") < 1e-6


@pytest.mark.slow
def test_torchrun_and_what_is_asked_for_beside_it(tmp_path: Path) -> None:
    other = torchrun(["-m", "deepvit", "train", "--devices", "cpu:3"])
    assert "torchrun has started 2 processes here and --devices cpu:3 asks for 3" in other.stderr
    study = torchrun(["-m", "deepvit", "study", "quickstart", "--out", str(tmp_path / "study")])
    assert "a study shares its runs out itself" in study.stderr
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_evaluation_in_several_processes_is_that_of_one(tmp_path: Path, alone: Path, world: int) -> None:
    one = deepvit.evaluate(str(alone))
    assert one["images"] == 101
    done = torchrun(["-m", "deepvit", "evaluate", str(alone), "--out", str(tmp_path / "x.json")], world)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("101 images") == 1
    several = json.loads((tmp_path / "x.json").read_text())
    assert several.pop("loss") == pytest.approx(one.pop("loss"), rel=1e-6)  # sums in another order
    assert several == one


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_looking_in_several_processes(tmp_path: Path, alone: Path, world: int) -> None:
    other = torchrun(["-m", "deepvit", "evaluate", str(alone), "--device", "cuda:0"], world)
    assert "leave out --device cuda:0" in other.stderr
    words = [
        "-m",
        "deepvit",
        "diagnose",
        str(alone),
        "--images",
        "2",
        "--lesions",
        "off",
        "--out",
        str(tmp_path / "d"),
    ]
    looked = torchrun(words, world)
    assert looked.stderr.count(f"deepvit diagnose works in one process: the first of {world} does it") == 1
    assert (tmp_path / "d" / "collapse.json").exists()


def test_signals_end_all_processes_together_and_the_run_goes_on(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "deepvit", *command_line(tmp_path, epochs=500), "--devices", "cpu:2"]
    with started(words) as process:
        wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt")
        children = children_of(process.pid)
        assert children
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=100)
        assert process.returncode == 143, said
        assert "SIGTERM; the run is saved" in said
        assert "Traceback" not in said
        assert gone(children)


@pytest.mark.slow
def test_children_end_with_their_parent(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "deepvit", *command_line(tmp_path, epochs=500), "--devices", "cpu:2"]
    with started(words) as process:
        wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt")
        children = children_of(process.pid)
        assert children
        process.kill()
        process.wait()
        assert gone(children)


def test_one_process_that_dies_ends_the_others_in_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "deepvit", *command_line(tmp_path, epochs=500), "--devices", "cpu:2"]
    with started(words) as process:
        wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt")
        for child in children_of(process.pid):
            os.kill(child, signal.SIGKILL)
        _, said = process.communicate(timeout=100)
        assert process.returncode == 2, said
        assert "process 1 has ended with code -9" in said
        assert "Traceback" not in said


def test_a_mistake_is_said_once(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "deepvit", *command_line(tmp_path, data=str(tmp_path / "none"))]
    done = subprocess.run([*words, "--devices", "cpu:2"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_variables_of_a_scheduler_without_its_launcher_mean_one_process(tmp_path: Path) -> None:
    env = {**os.environ, "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
           "SLURM_NNODES": "1", "SLURM_NODELIST": "here"}  # fmt: skip
    words = [sys.executable, "-m", "deepvit", *command_line(tmp_path, devices="cpu")]
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "run.json").exists()


def test_who_this_is() -> None:
    assert place({}) is None
    assert place({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "1"}) is None  # whose?
    run = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
           "MASTER_ADDR": "a", "MASTER_PORT": "5"}  # fmt: skip
    assert place(run) == Place(3, 4, 1, 2, "a", 5, "torchrun")
    step = {
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_NODES": "2",
    }
    assert place(step) == Place(2, 4, 0, 2, by="srun")
    assert place({**step, "SLURM_STEP_NUM_TASKS": "1"}) is None
    env = {"SLURM_STEP_NODELIST": "gpu[03-04,7]", "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "2"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        met = srun_meeting(Place(2, 4, 0, 2, by="srun"))
        assert (met.address, met.port) == ("gpu03", 15_000 + 1234 * 7 + 2)
        assert srun_meeting(Place(1, 2, 1, 2, by="srun")).address == "127.0.0.1"  # all on one machine
    for text, kind, count in (("auto", "auto", 1), ("cpu", "cpu", 1), ("cpu:3", "cpu", 3), ("2", "gpu", 2)):
        assert (Devices.read(text).kind, Devices.read(text).count) == (kind, count)
    for text, index in (("cuda", 0), ("cuda:1", 1)):  # as commands with one device say it
        assert Devices.read(text).indices == (index,)
    assert Devices.read("1,3").indices == (1, 3)
    for text in ("cpu:0", "cpu:x", "0", "-1", "1,1", "", "gpu"):
        with pytest.raises(UserError):
            Devices.read(text)
    with pytest.raises(UserError, match="--nodes 2 needs MASTER_ADDR, MASTER_PORT, NODE_RANK"):
        deepvit.train(devices="cpu:2", nodes=2)


def test_parameters_without_gradient_are_found() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 2, 1), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    odd = Odd().train()
    assert has_unused(odd, torch.zeros(1, 3, 4, 4))
    assert odd.training
    odd.idle.requires_grad_(False)
    assert not has_unused(odd, torch.zeros(1, 3, 4, 4))


def wait_for(path: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.1)


def children_of(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def gone(processes: list[int], seconds: float = 15) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(Path(f"/proc/{process}").exists() for process in processes):
            return True
        time.sleep(0.1)
    return False
