from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deepvit.data import InputSpec, Loaders
from deepvit.data.batched.plan import EvalPlan, TrainPlan
from deepvit.data.split import evenly_spaced, stratified_split
from deepvit.errors import UserError


@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_is_shared_out_without_overlap(world: int) -> None:
    plans = [TrainPlan(103, 8, seed=1, rank=rank, world=world) for rank in range(world)]
    assert len({plan.batches for plan in plans}) == 1
    epochs = [torch.cat([torch.cat(plan.epoch(e)) for plan in plans]) for e in (0, 1)]
    for numbers in epochs:
        assert len(numbers.unique()) == len(numbers) == plans[0].batches * 8 * world
    assert not torch.equal(*epochs)
    assert {len(batch) for plan in plans for batch in plan.epoch(0)} == {8}
    if world == 1:
        assert set(epochs[0].tolist()) != set(epochs[1].tolist())  # not always the same images are left out


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [5, 7, 16, 33, 100])
@pytest.mark.parametrize("size", [1, 4, 8])
def test_validation_is_every_image_once_in_as_many_batches_for_all(count: int, world: int, size: int) -> None:
    plans = [EvalPlan(count, size, rank=rank, world=world) for rank in range(world)]
    batches = [plan.epoch(0) for plan in plans]
    assert len({len(b) for b in batches}) == 1
    assert [len(b) for b in batches] == [plan.batches for plan in plans]
    assert all(len(numbers) > 0 for b in batches for numbers in b)
    assert sorted(torch.cat([torch.cat(b) for b in batches]).tolist()) == list(range(count))
    assert max(len(numbers) for b in batches for numbers in b) <= size + (world > 1)


def test_validation_on_one_process_is_in_order_with_full_batches() -> None:
    assert [batch.tolist() for batch in EvalPlan(7, 3).epoch(0)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_too_few_images_for_the_processes() -> None:
    with pytest.raises(UserError, match="too few for 4"):
        TrainPlan(3, 8, seed=0, world=4)
    with pytest.raises(UserError, match="too few for 4"):
        EvalPlan(3, 8, world=4)


def test_the_data_module_takes_its_share_of_a_process_group(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        module = Loaders(str(folder), input=InputSpec(12), batch_size=4, progress=False)
        assert len(module.train_dataloader()) == 3
        shares.append([images for images, _ in module.train_dataloader()])
        assert sum(len(images) for images, _ in module.val_dataloader()) in (4, 5)
    assert not any(torch.equal(a, b) for a, b in zip(*shares, strict=True))


def test_stratified_split_holds_out_the_share_of_each_class() -> None:
    targets = torch.tensor([0] * 10 + [1] * 3 + [2])
    train, val = stratified_split(targets, 0.2, seed=0)
    assert targets[val].tolist() == [0, 0, 1]
    assert sorted(torch.cat([train, val]).tolist()) == list(range(14))
    with pytest.raises(UserError, match="between 0 and 1"):
        stratified_split(targets, 1.0, seed=0)


def test_evenly_spaced() -> None:
    assert evenly_spaced(10, None) is None
    assert evenly_spaced(10, 10) is None
    numbers = evenly_spaced(10, 5)
    assert numbers is not None
    assert numbers.tolist() == [0, 2, 4, 6, 8]
