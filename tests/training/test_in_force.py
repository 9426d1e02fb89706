"""What options left open is recorded as it was: in run.json and in TensorBoard's table of hyperparameters."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from training.test_run import tiny

import deepvit
from deepvit.training.loggers import flat


def test_what_was_in_force_is_recorded(tmp_path: Path) -> None:
    out = tmp_path / "run"
    deepvit.train(**tiny(out, epochs=2, augment={"mixup": 0.5}))
    found = json.loads((out / "run.json").read_text())["in_force"]
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert found["lr"] == pytest.approx(max(5e-4, 1e-3 * math.sqrt(128 / 256)))
    assert found["steps_per_epoch"] == int(rows[0]["step"]) == 3
    assert found["schedule_steps"] == int(rows[-1]["step"])
    assert found["warmup_steps"] == 5  # ten, as the least, is more than all six
    assert found["images_per_step"] == 128
    assert found["precision"] == "32-true"
    assert (found["train_images"], found["val_images"]) == (400, 100)
    assert (found["accelerator"], found["devices"]) == ("cpu", 1)
    assert found["input"]["size"] == [8, 8]
    assert found["augment"]["mixup"] == 0.5
    assert found["augment"]["crop_padding"] is not None

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(out / "tensorboard")).Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    shown = HParamsPluginData.FromString(content).session_start_info.hparams
    assert shown["in_force.lr"].number_value == pytest.approx(found["lr"])
    assert shown["batch_size"].number_value == 128
    assert shown["in_force.precision"].string_value == "32-true"
    assert "val/top1" in events.Tags()["scalars"]
    assert [event.value for event in events.Scalars("val/top1")] == [
        pytest.approx(float(row["val/top1"])) for row in rows
    ]  # and no value of its own


def test_values_are_flat_texts_and_numbers() -> None:
    assert flat({"a": {"b": (1, 2), "c": None}, "d": True}) == {"a.b": "(1, 2)", "d": True}
