"""What a classifier's figures are called, everywhere the same, and which of them say something."""

from __future__ import annotations

import torch

from deepvit.experiments.rows import columns_of, curve_names
from deepvit.tasks.classification import Classification


def figures(classes: int) -> dict[str, float]:
    meter = Classification({"class_names": [str(i) for i in range(classes)]}).meter()
    meter.update(torch.eye(classes), torch.arange(classes))
    return meter.compute()


def test_top5_of_five_classes_or_fewer_is_not_a_figure() -> None:
    for classes in (2, 5):
        found = figures(classes)
        assert set(found) == {"top1", "loss"}
        assert "top-5" not in Classification.told_figures(found)
    found = figures(6)
    assert set(found) == {"top1", "top5", "loss"}
    assert Classification.told_figures(found).startswith("top-1 100.00%, top-5 100.00%, loss ")
    assert Classification.told_figures({"val/top1": 50.0}, "val/") == "top-1 50.00%"


def test_a_figure_has_one_name_in_lines_tables_and_curves() -> None:
    """The short name of a column begins its heading; what is measured on validation images is not called a test."""
    for column in Classification.columns:
        assert column.short in column.heading
        assert "test" not in column.heading
        assert curve_names("classification")[f"val/{column.key}"].startswith(column.title)
    assert columns_of("classification")["top1"][0] == "top-1 accuracy %"
