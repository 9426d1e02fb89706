"""Runs, diagnosis folders and collapse.json files side by side."""

import json

import pytest
from report.example import example_measurements

from deepvit.commands.compare import compare, show
from deepvit.errors import UserError
from deepvit.report import write_report


def run_folder(path, epochs=3, data="digits"):
    """What a finished run leaves, without training one."""
    write_report(example_measurements(path.name, depth=4, heads=1, grid=2, images=0, collapse_from=2), path)
    result = {
        "val/top1": 91.25,
        "val/top5": 99.0,
        "seconds_per_epoch": 1.5,
        "parameters": 22_050_664,
        "epochs": epochs,
    }
    info = {
        "arch": "vit_tiny_patch16_224",
        "model_args": {"depth": 4},
        "data": data,
        "seed": 0,
        "result": result,
    }
    (path / "run.json").write_text(json.dumps(info))
    (path / "config.yaml").write_text("")
    (path / "model.json").write_text(json.dumps({"cures": [{"name": "reattention", "blocks": [0, 1, 2, 3]}]}))
    rows = ["epoch,step,val/top1,train/loss,train/loss_ce,seconds"]
    rows += [
        f"{epoch},{10 * epoch},{50 + epoch},{3 / epoch},{3 / epoch},1.5" for epoch in range(1, epochs + 1)
    ]
    (path / "metrics.csv").write_text("\n".join(rows) + "\n")
    return path


def test_runs_diagnoses_and_files_stand_side_by_side(tmp_path, capsys):
    runs = [run_folder(tmp_path / "plain"), run_folder(tmp_path / "cured", epochs=5)]
    write_report(
        example_measurements("vit_small", depth=6, heads=1, grid=2, images=0), tmp_path / "diagnosis"
    )
    write_report(example_measurements("file", depth=6, heads=1, grid=2, images=0), tmp_path / "other")
    places = [*runs, tmp_path / "diagnosis", tmp_path / "other" / "collapse.json"]
    result = compare([str(place) for place in places], out=str(tmp_path / "out"))
    assert list(result["runs"]) == ["plain", "cured", "diagnosis", "other"]
    assert [row["top1"] for row in result["runs"].values()] == [91.25, 91.25, None, None]
    assert result["runs"]["diagnosis"]["parameters"] == pytest.approx(22.050664)
    assert result["runs"]["diagnosis"]["similar_blocks"] is not None
    assert "Different budgets (3, 5 epochs): a difference may be that of training time." in result["warnings"]
    assert any("known of 2 of 4 networks" in each for each in result["warnings"])
    page = (tmp_path / "out" / "compare.html").read_text()
    for told in (
        "What differs",
        "Top-1 accuracy",
        "Training loss",
        "reattention",
        "vit_tiny_patch16_224 (depth 4)",
    ):
        assert told in page, told
    for column in ("val/top1", "val top1", "Training loss ce"):
        assert column not in page, column
    show(result)
    assert "Different budgets (3, 5 epochs)" in " ".join(capsys.readouterr().out.split())


def test_different_data_is_said_once(tmp_path, capsys):
    runs = [run_folder(tmp_path / "one"), run_folder(tmp_path / "two", data="torch/cifar10")]
    result = compare([str(run) for run in runs], out=str(tmp_path / "out"))
    assert [each for each in result["warnings"] if "different data" in each] == [
        "Trained on different data (digits, torch/cifar10): accuracies do not compare."
    ]
    show(result)
    assert capsys.readouterr().out.count("different data") == 1


def test_what_is_no_run_and_no_report_is_refused(tmp_path):
    run = run_folder(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a run folder"):
        compare([str(run), str(tmp_path / "empty")], out=str(tmp_path / "out"))
    (run / "run.json").rename(run / "away")
    with pytest.raises(UserError, match="has not ended"):
        compare([str(run), str(tmp_path)], out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
