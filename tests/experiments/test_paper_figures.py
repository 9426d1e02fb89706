"""The papers' figures: what is drawn is what the records say, block by block and over depth."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from deepvit.commands.figures import figures
from deepvit.errors import UserError
from deepvit.experiments import paper_figures
from deepvit.experiments.profiles import write_profiles
from deepvit.report import diagnose, load

LEVELS = {"plain": 0.9, "reattention": 0.1}


def run_of(method: str, depth: int, seed: int) -> dict[str, Any]:
    level = LEVELS[method] + 0.02 * seed
    return {
        **{"method": method, "depth": depth, "seed": seed, "blocks": depth},
        "similar": [b for b in range(1, depth) if level > 0.85],
        "series": {
            "attention_similarity": [None, *(level + 0.01 * b for b in range(1, depth))],
            "patch_similarity": [level] * depth,
        },
        "lesions": {"block": [0.5] * depth},
        "score_after": [],
    }


@pytest.fixture
def record(tmp_path: Path) -> Path:
    grid = [(method, depth) for method in LEVELS for depth in (2, 4)]
    runs = [run_of(method, depth, seed) for method, depth in grid for seed in (0, 1)]
    groups = [
        {"method": m, "depth": d, "diverged": 0, "top1": {"mean": 10.0 * d, "std": 1.0, "runs": 2}}
        for m, d in grid
    ]
    maps = {"block": 0, "query": "class token", "shape": [2, 2, 2], "low": 0.0, "high": 1.0}
    picture = {
        "shape": [8, 8, 3],
        "pixels": base64.b64encode(bytes(range(192))).decode(),
        "maps": [{**maps, "data": base64.b64encode(bytes(8)).decode()}],
    }
    (tmp_path / "study.json").write_text(json.dumps({"task": "classification", "groups": groups}))
    (tmp_path / "profiles.json").write_text(
        json.dumps({"format": "deepvit-profiles/1", "runs": runs, "pictures": {"plain": picture}})
    )
    return tmp_path


def test_one_command_draws_all_that_the_record_allows(record: Path) -> None:
    files = figures(str(record))
    assert [f.name for f in files] == ["depth.png", "blocks.png", "maps.png"]
    assert all(Image.open(f).width > 300 for f in files)
    assert files[0].parent == record / "figures"


def test_lines_are_means_over_seeds_of_the_deepest(record: Path) -> None:
    runs = json.loads((record / "profiles.json").read_text())["runs"]
    figure = paper_figures.over_blocks(runs)
    similarity = figure.axes[0].get_lines()[0]
    assert list(similarity.get_xdata()) == [1, 2, 3]  # block 0 has none before it
    assert np.allclose(similarity.get_ydata(), [0.92, 0.93, 0.94])
    titles = [axes.get_title() for axes in figure.axes]
    assert len([t for t in titles if t]) == 3  # no axes for measures that nothing has


def test_similar_blocks_over_depth(record: Path) -> None:
    runs = json.loads((record / "profiles.json").read_text())["runs"]
    result = json.loads((record / "study.json").read_text())
    _, similar = paper_figures.over_depth(result, runs).axes
    plain, cured = similar.containers
    assert list(plain[0].get_xdata()) == [2, 4]
    assert list(plain[0].get_ydata()) == [1.0, 3.0]
    assert list(cured[0].get_ydata()) == [0.0, 0.0]


def test_profiles_are_the_reports_of_the_runs(tmp_path: Path, report_folder: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(report_folder)
    run = {"method": "plain", "depth": None, "seed": 0, "run": "a"}
    lost = {"method": "plain", "depth": None, "seed": 1, "run": "b", "diverged": "at step 3"}
    write_profiles({"runs": [run, lost], "seeds": [0, 1]}, tmp_path)
    told = json.loads((tmp_path / "profiles.json").read_text())
    (entry,), found = told["runs"], load(report_folder)
    assert entry["blocks"] == len(found.blocks)
    for name, series in found.series.items():
        assert entry["series"][name] == [
            v if v is None else pytest.approx(v, rel=1e-4) for v in series.values
        ]
    assert found.lesions is not None
    effects = found.lesions.single("block")
    assert entry["lesions"]["block"] == [pytest.approx(effects[b].value, rel=1e-4) for b in sorted(effects)]
    maps = told["pictures"]["plain"]["maps"]
    assert [m["block"] for m in maps] == sorted({m["block"] for m in maps})
    assert maps[0]["data"] == found.maps[0].maps[0].data


@pytest.mark.parametrize("missing", ["study.json", "profiles.json"])
def test_a_folder_without_a_study_is_refused(record: Path, missing: str) -> None:
    (record / missing).unlink()
    with pytest.raises(UserError, match=f"has no {missing}"):
        figures(str(record))


@pytest.mark.parametrize("gone", ["pictures", "blocks", "series", "groups"])
def test_a_damaged_record_is_one_line(record: Path, gone: str) -> None:
    name = "study.json" if gone == "groups" else "profiles.json"
    told = json.loads((record / name).read_text())
    for each in (told, *told.get("runs", ())):
        each.pop(gone, None)
    (record / name).write_text(json.dumps(told))
    with pytest.raises(UserError, match="is damaged"):
        figures(str(record))
    assert not (record / "figures").exists()


@pytest.fixture(scope="module")
def report_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", **shape)
    out = tmp_path_factory.mktemp("report")
    diagnose(model, [torch.randn(6, 3, 32, 32)], out=str(out))
    return out
