"""Labels of a data set as numbers of a network's classes, for accuracy with lesions."""

from __future__ import annotations

import pytest
import torch

from deepvit.collapse.lesions.score import Accuracy, MeanIoU, usual_score
from deepvit.commands.diagnose import Relabelled
from deepvit.runs.subjects import score_of
from deepvit.tasks import find


class Loader:
    skipped = ("cat.jpg: broken",)
    batch_size = 2

    def __len__(self):
        return 1

    def __iter__(self):
        yield torch.zeros(3, 3, 8, 8), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (["ant", "bee", "cat"], [0, 1, 2]),
        (["cat", "dog", "ant", "bee"], [2, 3, 0]),
        (None, [0, 1, 2]),
        (["other", "names"], [0, 1, 2]),
    ],
)
def test_classes_go_by_their_names(network, expected):
    loader = Relabelled(Loader(), ["ant", "bee", "cat"], network)
    ((images, targets),) = loader
    assert targets.tolist() == expected
    assert (len(images), loader.skipped, len(loader), loader.batch_size) == (3, ["cat.jpg: broken"], 1, 2)
    assert loader.names[expected[0]] == "ant"


def test_a_classifier_is_scored_by_its_tasks_own_meter():
    score = score_of(find("classification")({"class_names": ["a", "b", "c"]}))
    assert (score.name, score.key) == ("top-1 accuracy", "top1")
    meter = score.meter()
    meter.update(torch.eye(3), torch.tensor([0, 1, 0]))
    assert meter.compute()[score.key] == pytest.approx(200 / 3)


def test_the_usual_scores_by_hand():
    accuracy = Accuracy()
    accuracy.update(torch.eye(3), torch.tensor([0, 1, 0]))
    accuracy.update(torch.eye(3)[:1], torch.tensor([0]))
    assert accuracy.compute()["accuracy"] == 75.0
    iou = MeanIoU()
    told = torch.tensor([[[0, 0], [1, 1]]])
    true = torch.tensor([[[0, 1], [1, 255]]])
    iou.update(torch.nn.functional.one_hot(told, 3).permute(0, 3, 1, 2).float(), true)
    # Class 0: 1 of 2; class 1: 1 of 2; class 2 does not occur, 255 is left out.
    assert iou.compute()["mIoU"] == 50.0
    assert usual_score("classification", torch.zeros(3)) is None
    assert usual_score("features", torch.zeros(3, dtype=torch.long)) is None
