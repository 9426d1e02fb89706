"""The words and the page of what each block is worth."""

from __future__ import annotations

import json

import pytest
from collapse.lesioned import images_of, working, zeroed
from report.example import example_measurements
from report.test_report import embedded

import deepvit
from deepvit.collapse.lesions.effects import Effect, Lesions
from deepvit.collapse.results import Finding, Verdict
from deepvit.report import compare_html, load, report_html
from deepvit.report.lesion_words import span
from deepvit.report.worth import shade


def with_lesions(depth=6, idle=(4, 5), score=98.0, name="made"):
    """The example, with lesions of which the last blocks do nothing."""
    results = example_measurements(name, depth=depth, collapse_from=None)
    effects = []
    for block in range(depth):
        value = 0.001 if block in idle else 1.0 / (1 + block)
        for lesion in ("block", "attention", "patch_mean"):
            effects.append(Effect(lesion, [block], value, 0.1, 0.0, score))
        if block < depth - 1:
            effects.append(Effect("exit", [block], value, 0.1, 0.1, 50.0 + 8 * block))
    results.lesions = Lesions(
        images=64,
        available=64,
        told_apart=2.2,
        score_name="accuracy" if score else "",
        score=score,
        effects=effects,
    )
    return results


def test_blocks_are_listed_as_people_do():
    assert span([3]) == "block 3"
    assert span([3, 4]) == "blocks 3 and 4"
    assert span([9, 3, 5, 6, 7]) == "blocks 3, 5 to 7 and 9"


def test_the_page_has_the_strip_the_exit_curve_the_columns_and_the_csv():
    results = with_lesions()
    data = embedded(report_html(results))
    model = data["models"][0]
    strip = {row["name"]: row for row in model["worth"]["rows"]}
    assert strip["block removed"]["values"] == pytest.approx([1.0, 0.5, 1 / 3, 0.25, 0.001, 0.001], rel=1e-4)
    assert strip["block removed"]["shades"][0] == 1.0
    assert strip["block removed"]["shades"][4:] == [0.0, 0.0]
    assert model["series"]["exit:score"]["values"] == [50.0, 58.0, 66.0, 74.0, 82.0, 98.0]
    assert data["charts"][0]["keys"] == ["exit:score"]
    assert {"lesion:block", "lesion:attention"} == set(data["charts"][1]["keys"])
    head, row, *_ = data["csv"].splitlines()
    place = head.split(",").index("lesion_block")
    assert float(row.split(",")[place]) == 1.0
    assert float(row.split(",")[head.split(",").index("lesion_exit_score")]) == 50.0
    text = report_html(results).decode()
    assert "What each block is worth" in text
    assert "Accuracy if the network ended here" in text
    assert "What each block is worth" not in report_html(example_measurements()).decode()


def test_a_comparison_draws_the_lesions_of_several_networks_with_one_line_each():
    page = compare_html([with_lesions(name="a"), with_lesions(name="b", idle=())])
    data = embedded(page)
    assert [chart["keys"] for chart in data["charts"][:2]] == [["exit:score"], ["lesion:block"]]
    assert all("lesion:block" in model["series"] and model["worth"] for model in data["models"])


def test_the_title_of_a_comparison_names_who_has_blocks_to_spare():
    spare, full = with_lesions(name="a"), with_lesions(name="b", idle=())
    spare.verdict = Verdict(
        "idle", False, 4, [Finding("idle", "idle", [4, 5], {"changed": {"here": 0.0}}, to_end=True)]
    )
    assert (
        "<h1>None of 2 networks collapses; a has blocks to spare</h1>" in compare_html([spare, full]).decode()
    )


def test_shades_begin_at_the_line_and_grow_with_the_logarithm():
    found = Lesions(told_apart=2.2)
    assert shade(0.02, found, 2.0) == 0.0
    assert shade(2.0, found, 2.0) == 1.0
    assert shade(0.2, found, 2.0) == pytest.approx(0.15 + 0.85 / 2)
    assert shade(0.5, found, 0.001) == 1.0


def test_from_a_network_to_its_page(tmp_path):
    model = zeroed(working(depth=5), [4])
    data = images_of(model, 40)
    labels = model(data).argmax(1)
    report = deepvit.diagnose(model, [(data, labels)], out=tmp_path, progress=False, images=40)
    assert report.verdict.headline == "Idle from block 4 on: 100.0% without it, as with it"
    assert report.verdict.cures[0].name == "cut"
    kept = load(tmp_path)
    assert kept.lesions == report.measurements.lesions
    assert kept.verdict == report.verdict
    told = json.loads((tmp_path / "collapse.json").read_text())
    assert told["verdict"]["kind"] == "idle"
    assert any(
        note.startswith("Lesions were done on 40 of 40 images") for note in told["provenance"]["notes"]
    )
    assert any(note.startswith("Control:") for note in told["provenance"]["notes"])
