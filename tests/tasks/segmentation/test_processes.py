"""Several processes are one with the same global batch, however unevenly the pixels that count are shared out."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from masks.made import COLOURS, blobs, save
from torch import nn

import deepvit
from deepvit.layers.synced_norm import synchronise
from deepvit.losses.mixing import patch_mixing
from deepvit.tasks.segmentation.heads import SteadyNorm
from deepvit.tasks.segmentation.loss import criterion
from deepvit.tasks.segmentation.patches import by_mask

VOID = 255
WEIGHTS = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)


def batch():
    """Four images of which the first two, those of the first process, are nearly all void."""
    draw = torch.Generator().manual_seed(5)
    images = torch.randn(4, 2, 6, 8, generator=draw, dtype=torch.float64)
    truth = torch.randint(0, 3, (4, 6, 8), generator=draw)
    truth[0] = VOID
    truth[1, 1:] = VOID
    return images, truth


def layer():
    torch.manual_seed(1)
    return nn.Conv2d(2, 3, 1).double()


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    images, truth = batch()
    own = slice(0, 2) if rank == 0 else slice(2, 4)
    for weights in (None, WEIGHTS.float()):
        whole = layer()
        given = None if weights is None else weights.double()
        logits = whole(images)
        expected = F.cross_entropy(logits, truth, given, ignore_index=VOID)
        expected = expected + 0.4 * F.cross_entropy(2 * logits, truth, given, ignore_index=VOID)
        expected.backward()
        mine = layer()
        logits = mine(images[own])
        terms = criterion(weights, 0.4, VOID)({"out": logits, "aux": 2 * logits}, truth[own])
        agrees(mine, whole, sum(terms.values()), expected)

    # patches of 2 × 2 pixels as classes of their own, a patch without a label counts for nothing
    whole, mine = layer(), layer()
    pooled = F.avg_pool2d(images, 2)
    hard = truth[:, ::2, ::2]
    blocks = hard.repeat_interleave(2, 1).repeat_interleave(2, 2)
    expected = F.cross_entropy(whole(pooled), hard, ignore_index=VOID)
    expected.backward()
    labels = by_mask(2, 3, VOID)(images[own], blocks[own]).patches
    tokens = mine(pooled[own]).flatten(2).transpose(1, 2)
    agrees(mine, whole, patch_mixing(tokens, labels), expected)

    # one cell an image, as the pyramid has it: each process alone could estimate nothing from one
    torch.manual_seed(2)
    x = torch.randn(2, 3, 1, 1)
    plain, ours = nn.BatchNorm2d(3), synchronise(nn.Sequential(SteadyNorm(3)))[0]
    torch.testing.assert_close(ours(x[rank : rank + 1]), plain(x)[rank : rank + 1])
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)
    dist.destroy_process_group()


def agrees(mine, whole, loss, expected):
    """The mean over processes of loss and gradients is that of one process."""
    loss.backward()
    found = loss.detach().double()
    dist.all_reduce(found)
    torch.testing.assert_close(found / 2, expected.detach(), rtol=1e-6, atol=1e-7)
    for one, all_ in zip(mine.parameters(), whole.parameters(), strict=True):
        dist.all_reduce(one.grad)
        torch.testing.assert_close(one.grad / 2, all_.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_losses_are_means_over_the_pixels_of_both_processes(tmp_path: Path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)


def scenes(root: Path) -> Path:
    """Images of which every other one is mostly void."""
    for part, count in (("train", 8), ("val", 3)):
        for i in range(count):
            mask = blobs(i, (40, 40))
            save(root / "images" / part / f"{i}.png", COLOURS[mask])
            if i % 2:
                mask[:, 8:] = VOID
            save(root / "masks" / part / f"{i}.png", mask)
    return root


# Without biases: that of the keys has a gradient of rounding alone, which Adam makes as large as any other.
def trained(out: Path, data: Path, world: int) -> tuple[dict[str, torch.Tensor], list[dict[str, str]]]:
    run = deepvit.train(
        task="segmentation", data=str(data), out=str(out), model="vit_tiny_patch16_224",
        model_args={"depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": 40, "patch_size": 8, "qkv_bias": False},
        scene={"scale": (1.0, 1.0), "hflip": 0.0, "photometric": 0.0, "max_share": 1.0}, channels=8, decoder_dropout=0.0,
        aux_weight=0.0, class_weights="median", losses={"patch_mixing": 0.5}, devices=f"cpu:{world}", batch_size=4 // world,
        epochs=2, lr=1e-6, warmup_steps=0, precision="32", diagnose_images=0, workers=0, progress=False,
    )  # fmt: skip
    state = torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {k: v.double() for k, v in state.items()}, list(csv.DictReader((run.path / "metrics.csv").open()))


def test_a_run_in_two_processes_is_that_in_one(tmp_path: Path):
    data = scenes(tmp_path / "data")
    (one, rows), (two, others) = (trained(tmp_path / str(world), data, world) for world in (1, 2))
    distance = sum(float((one[name] - two[name]).square().sum()) for name in one)
    assert (distance / sum(float(value.square().sum()) for value in one.values())) ** 0.5 < 1e-6
    figures = (
        "train/cross_entropy",
        "train/patch_mixing",
        "val/miou",
        "val/mean_accuracy",
        "val/pixel_accuracy",
        "val/loss",
    )
    for mine, theirs in zip(rows, others, strict=True):
        assert mine["step"] == theirs["step"]
        assert [float(theirs[name]) for name in figures] == pytest.approx(
            [float(mine[name]) for name in figures], rel=1e-6
        )
    assert np.isfinite(float(rows[-1]["val/miou"]))
