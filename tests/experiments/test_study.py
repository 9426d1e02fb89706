"""Studies: the grid, skipping what is done, going on after an interruption, tables that agree with the runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import fmean, stdev

import pytest

from deepvit import recipes
from deepvit.errors import UserError
from deepvit.experiments import study as study_module
from deepvit.experiments.grid import StudyConfig, cells, config_of
from deepvit.experiments.study import study

RECIPE = """
title: tiny
methods: [plain, reattention, diversity]
seeds: [0, 1]
diversity: {patch_cosine: 0.5}
train:
  model: deepvit_tiny_d16_patch4_32
  model_args: {reattention_blocks: none, img_size: 8, patch_size: 4, embed_dim: 16, num_heads: 2, depth: 2}
  data: digits
  epochs: 1
  batch_size: 128
  max_train_images: 256
  max_val_images: 64
  diagnose_images: 8
  devices: cpu
  progress: false
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def done(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    out = tmp_path_factory.mktemp("study") / "out"
    return out, study(str(recipe), out=str(out))


def test_it_writes_table_figure_report_and_all_numbers(done: tuple[Path, dict[str, object]]) -> None:
    out, result = done
    files = {
        "study.json",
        "table.md",
        "table.csv",
        "figure.png",
        "figure.svg",
        "profiles.json",
        "report.html",
    }
    assert files <= {p.name for p in out.iterdir()}
    assert json.loads((out / "study.json").read_text())["groups"] == result["groups"]
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert len(rows) == 6
    for group in result["groups"]:  # type: ignore[attr-defined]
        own = [float(row["top1"]) for row in rows if row["method"] == group["method"]]
        assert group["top1"]["mean"] == pytest.approx(fmean(own))
        assert group["top1"]["std"] == pytest.approx(stdev(own))
        assert group["top1"]["runs"] == 2
    text = (out / "table.md").read_text()
    assert "±" in text
    assert "similar blocks" in text


def test_what_is_done_is_skipped(
    recipe: Path, done: tuple[Path, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before = done

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(study_module, "train", refuse)
    again = study(str(recipe), out=str(out))
    assert again["runs"] == before["runs"]


def test_it_goes_on_after_an_interruption(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, trained = tmp_path / "out", []
    original = study_module.train

    def stopping(config: object) -> object:
        trained.append(config["out"])  # type: ignore[attr-defined]
        if len(trained) == 2:
            raise KeyboardInterrupt
        return original(config)

    monkeypatch.setattr(study_module, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        study(str(recipe), out=str(out), seeds=[0], methods=["plain", "reattention"])
    assert len(json.loads((out / "study.json").read_text())["runs"]) == 1
    result = study(str(recipe), out=str(out), seeds=[0], methods=["plain", "reattention"])
    assert len(result["runs"]) == 2
    assert len(trained) == 3  # the first run was not trained again


@pytest.mark.slow
def test_runs_at_the_same_time_give_the_same_numbers(
    recipe: Path, done: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    _, before = done
    both = study(str(recipe), out=str(tmp_path / "out"), methods=["plain", "reattention"], seeds=[0], jobs=2)
    assert [run["method"] for run in both["runs"]] == ["plain", "reattention"]
    one = {run["method"]: run["top1"] for run in before["runs"] if run["seed"] == 0}  # type: ignore[attr-defined]
    assert {run["method"]: run["top1"] for run in both["runs"]} == {
        m: one[m] for m in ("plain", "reattention")
    }


def test_another_study_in_the_folder_is_refused(recipe: Path, done: tuple[Path, dict[str, object]]) -> None:
    out, _ = done
    with pytest.raises(UserError, match="holds a study with another train"):
        study(str(recipe), out=str(out), train={"epochs": 2})


def test_a_foreign_folder_is_refused(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="not a study"):
        study(str(recipe), out=str(tmp_path))


def test_methods_become_cures_and_losses() -> None:
    config = StudyConfig(
        methods=["plain", "reattention+diversity", "attnscale@last:6"], depths=[4, 8], seeds=[3],
        diversity={"patch_cosine": 0.5}, out="x",
    )  # fmt: skip
    grid = cells(config)
    assert len(grid) == 6
    plain, mixed, scaled = (config_of(config, cell) for cell in grid[:3])
    assert plain["cures"] == ""
    assert plain["losses"] == {}
    assert plain["model_args"]["depth"] == 4
    assert plain["seed"] == 3
    assert "reattention" in mixed["cures"]
    assert mixed["losses"] == {"patch_cosine": 0.5}
    assert "attnscale" in scaled["cures"]
    assert len({config_of(config, cell)["out"] for cell in grid}) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": []}, "at least one method"),
        ({"seeds": [1, 1]}, "twice"),
        ({"methods": ["reattentoin"]}, "reattentoin"),
        ({"depths": [0]}, "depths"),
        ({"sedes": [1]}, "sedes"),
        ({"train": {"epoch": 3}}, "epochs"),
    ],
)
def test_mistakes(recipe: Path, tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        study(str(recipe), out=str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_diverged_runs_are_a_result(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = {"lr": 1e18, "warmup_steps": 0, "clip_grad": 0, "epochs": 3}
    result = study(str(recipe), out=str(out), seeds=[0], methods=["plain"], train=options)
    assert "not finite" in result["runs"][0]["diverged"]
    assert result["groups"][0]["diverged"] == 1
    assert "1 diverged" in (out / "table.md").read_text()


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_can_be_read_and_states_its_evidence(name: str) -> None:
    facts = recipes.header(name)
    assert {"what", "command", "hardware", "result"} <= set(facts)
    text = recipes.find(name).read_text()
    if "\nmethods:" in text or text.startswith("methods:"):
        config = StudyConfig.from_yaml(recipes.find(name))
        assert [config_of(config, cell) for cell in cells(config)]
    else:
        from deepvit.training.config import TrainConfig

        TrainConfig.from_yaml(recipes.find(name))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"methods": ["plain", "attnscale@7"]}, "attnscale@7-s0: .*7"),
        ({"train": {"data": "no/such/folder"}}, "no/such/folder"),
        ({"train": {"weights": "nothing.pt"}}, "plain-s0: .*nothing.pt"),
        ({"train": {"augment": {"randaugment": "nonsense"}}}, "nonsense"),
        ({"depths": [2, 3], "train": {"model_args": {"heads": 3}}}, "plain-d2-s0: .*heads"),
    ],
)
def test_what_no_run_could_do_is_said_before_anything_is_written(
    recipe: Path, tmp_path: Path, options: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "train", lambda *_: pytest.fail("a run was started"))
    with pytest.raises(UserError, match=said):
        study(str(recipe), out=str(tmp_path / "out"), **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_mistake_leaves_the_study_that_was_to_be_replaced(
    recipe: Path, done: tuple[Path, dict[str, object]]
) -> None:
    out, _ = done
    before = sorted(path.name for path in (out / "runs").iterdir())
    with pytest.raises(UserError, match="no/such/folder"):
        study(str(recipe), out=str(out), overwrite=True, train={"data": "no/such/folder"})
    assert sorted(path.name for path in (out / "runs").iterdir()) == before
