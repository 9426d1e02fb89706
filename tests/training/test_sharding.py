"""``--strategy fsdp``: each process holds its share, and everything that is kept is whole."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.test_processes import WHOLE, torchrun, weights_differ
from training.test_trust import DYING, same_run

import deepvit
from deepvit.errors import UserError
from deepvit.training.replay import replay

SHARED: dict[str, Any] = {
    **WHOLE, "devices": "cpu:2", "batch_size": 6, "epochs": 2, "strategy": "fsdp", "keep": "best", "save_steps": 3,
    "monitor_every": 5,
}  # fmt: skip

SHARES = """
import copy, timm, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from deepvit.training.leaving import end_in_order
from deepvit.training.sharding import blocks_in, own, put_together, shard, share, whole, whole_state
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(rank)
for name, kept in (("vit_tiny_patch16_224", {"depth": 3}), ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 2, 1)})):
    size = {"img_size": 32, "embed_dim": 48} if "vit" in name else {"img_size": 64, "embed_dim": 24}
    net = timm.create_model(name, num_classes=5, **size, **kept).eval()
    if rank == 0:
        first = copy.deepcopy(net)
    assert len(blocks_in(net)) == sum(kept.get("depths", [kept.get("depth", 0)]))
    total = sum(p.numel() for p in net.parameters())
    shard(net, init_device_mesh("cpu", (2,)))
    mine = sum(own(p).numel() for p in net.parameters())
    assert 0.4 < mine / total < 0.6, (mine, total)
    state = whole_state(net.state_dict(), keep=rank == 0)
    assert bool(state) == (rank == 0)
    x = torch.randn(2, 3, size["img_size"], size["img_size"])
    with torch.no_grad(), put_together(net):
        outputs = [net(x) for _ in range(3 - 2 * rank)]  # one process may make more passes than another
    assert sum(own(p).numel() for p in net.parameters()) == mine
    if rank == 0:
        assert all(torch.equal(value, state[key]) for key, value in first.state_dict().items())
        assert all(torch.equal(first(x), output) for output in outputs)
    for p in net.parameters():
        full = whole(p).detach()
        torch.testing.assert_close(own(share(full, p)), own(p).detach())
end_in_order()
dist.destroy_process_group()
"""


def test_each_process_holds_its_share(tmp_path: Path) -> None:
    (tmp_path / "shares.py").write_text(SHARES)
    done = torchrun([str(tmp_path / "shares.py")])
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": "fsdp", "devices": "cpu"}, "this is one: add --devices 2"),
        ({"strategy": "ddp", "devices": "cpu"}, "this is one: add --devices 2"),
        ({"strategy": "zero"}, "one of auto, ddp, fsdp"),
    ],
)
def test_what_there_is_nothing_to_share_for(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        deepvit.train(**{**SHARED, **options}, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_does_not_go_with_shares(tmp_path: Path) -> None:
    for options, said in (({"compile": True}, "--compile"), ({"precision": "16"}, "take bf16 or 32")):
        with pytest.raises(UserError, match=said):
            deepvit.train(**{**SHARED, **options}, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_in_shares_goes_on_and_is_that_of_whole_networks(tmp_path: Path) -> None:
    whole = deepvit.train(**SHARED, out=str(tmp_path / "whole")).path
    options = {**SHARED, "out": str(tmp_path / "run"), "resume": "auto"}
    done = subprocess.run(
        [sys.executable, "-c", DYING, "Trainee.training_step", "15", json.dumps(options)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    shutil.copytree(tmp_path / "run", tmp_path / "changed")
    deepvit.train(**options)
    same_run(whole, tmp_path / "run")
    # The same checkpoint goes on where each process holds the whole network.
    deepvit.train(**{**options, "out": str(tmp_path / "changed"), "strategy": "ddp"})
    assert weights_differ(whole, tmp_path / "changed") < 1e-6
    network, _ = deepvit.load_deployed(whole)
    assert all(
        torch.equal(v, load_file(whole / "model.safetensors")[k]) for k, v in network.state_dict().items()
    )


POISONED = """
import json, sys, torch, deepvit
from deepvit.training.guards import DivergedError
from deepvit.training.trainee import Trainee
step = Trainee.training_step
def poisoned(self, batch, index):
    loss = step(self, batch, index)
    return loss + (batch[0].sum() * 0 + float("inf")) * self.model.head.bias.sum() if index == 4 else loss
Trainee.training_step = poisoned
try:
    deepvit.train(**json.loads(sys.argv[1]))
except DivergedError as error:
    print("stopped:", error)
"""


@pytest.mark.slow
def test_a_bad_step_in_shares_is_kept_whole(tmp_path: Path) -> None:
    (tmp_path / "poisoned.py").write_text(POISONED)
    options = {**SHARED, "devices": "cpu", "out": str(tmp_path / "run"), "save_steps": 1}
    done = torchrun([str(tmp_path / "poisoned.py"), json.dumps(options)])
    assert done.stdout.count("stopped:") == 2, done.stderr[-3000:]
    kept = load_file(tmp_path / "run" / "nonfinite" / "weights.safetensors")
    assert all(bool(value.isfinite().all()) for value in kept.values() if value.is_floating_point())
    assert replay(tmp_path / "run")["record"]["step"] == 4
