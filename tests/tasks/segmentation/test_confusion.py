"""The meter against a confusion matrix counted by NumPy: ignored pixels, absent classes, any batch size, two processes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from deepvit.tasks.segmentation.confusion import Confusion

CLASSES, IGNORE, IMAGES = 7, 255, 9
ABSENT = 4
"""A class that neither the truth nor the prediction has; 5 is in the truth alone, 6 in the prediction alone."""


def scene():
    draw = np.random.default_rng(3)
    truth = draw.choice([0, 1, 2, 3, 5, IGNORE], size=(IMAGES, 13, 11), p=[0.4, 0.2, 0.1, 0.05, 0.05, 0.2])
    truth[2] = IGNORE  # an image in which nothing counts
    said = np.where(
        draw.random(truth.shape) < 0.6,
        np.where(truth == IGNORE, 0, truth),
        draw.choice([0, 1, 2, 3, 6], size=truth.shape),
    )
    said[said == 5] = 1
    logits = draw.normal(size=(IMAGES, CLASSES, 13, 11))
    np.put_along_axis(logits, said[:, None], logits.max(1, keepdims=True) + 0.5, axis=1)
    return torch.from_numpy(logits).float(), torch.from_numpy(truth).long()


def by_numpy(logits, truth):
    said, truth = logits.numpy().argmax(1), truth.numpy()
    matrix = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    for is_, taken in zip(truth.flatten(), said.flatten(), strict=True):
        if is_ != IGNORE:
            matrix[is_, taken] += 1
    ious, accuracies = [], []
    for k in range(CLASSES):
        union = matrix[k].sum() + matrix[:, k].sum() - matrix[k, k]
        if union:
            ious.append(matrix[k, k] / union)
        if matrix[k].sum():
            accuracies.append(matrix[k, k] / matrix[k].sum())
    shifted = logits.double().numpy()
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    known = truth != IGNORE
    loss = -np.take_along_axis(logs, np.where(known, truth, 0)[:, None], 1)[:, 0][known].mean()
    figures = {
        "miou": 100 * np.mean(ious),
        "mean_accuracy": 100 * np.mean(accuracies),
        "pixel_accuracy": 100 * matrix.trace() / matrix.sum(),
        "loss": loss,
    }
    return matrix, figures


def check(meter):
    matrix, figures = by_numpy(*scene())
    assert (meter.counts() == matrix).all()
    found = meter.compute()
    for name, value in figures.items():
        assert found[name] == pytest.approx(value, rel=1e-6 if name == "loss" else 1e-13), name


@pytest.mark.parametrize("size", [1, 2, 4, IMAGES])
def test_any_batch_size_gives_the_figures_of_all_pixels(size):
    logits, truth = scene()
    meter = Confusion(CLASSES, IGNORE)
    for start in range(0, IMAGES, size):
        meter.update(logits[start : start + size], truth[start : start + size])
    check(meter)
    meter.reset()
    meter.update(logits, truth)
    check(meter)


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    logits, truth = scene()
    meter = Confusion(CLASSES, IGNORE)
    for part in (slice(0, 3), slice(3, 4)) if rank == 0 else (slice(4, IMAGES),):  # unequal shares
        meter.update(logits[part], truth[part])
    check(meter)
    if rank == 0:  # the other one has gone on
        alone = Confusion(CLASSES, IGNORE, together=False)
        alone.update(logits, truth)
        check(alone)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(tmp_path: Path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)


def test_absent_classes_are_left_out_and_named():
    from deepvit.tasks import Segmentation

    problem = Segmentation(
        {"class_names": list("abcdefg"), "palette": [[0, 0, 0]] * 7, "ignore_index": IGNORE, "head": "linear",
         "channels": None, "decoder_dropout": 0.0, "aux": False, "short_side": None}
    )  # fmt: skip
    meter = problem.meter()
    meter.update(*scene())
    detail = problem.detail(meter, None)
    assert detail["left_out"] == ["e"]
    assert detail["per_class"]["e"] == {"iou": None, "accuracy": None}
    assert detail["per_class"]["f"] == {"iou": 0.0, "accuracy": 0.0}
    assert detail["per_class"]["g"] == {"iou": 0.0, "accuracy": None}


def test_nothing_that_counts_is_no_division_by_zero():
    meter = Confusion(CLASSES, IGNORE)
    meter.update(torch.zeros(1, CLASSES, 2, 2), torch.full((1, 2, 2), IGNORE))
    assert all(math.isfinite(value) for value in meter.compute().values())
