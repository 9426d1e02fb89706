"""What a report writes: whole files, the numbers that were measured, and nobody's text as markup."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html.parser
import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from report.example import example_measurements

import deepvit
from deepvit.collapse.catalogue import MATRICES, METRICS
from deepvit.collapse.lesions.catalogue import LESIONS
from deepvit.collapse.lesions.effects import Effect, Lesions
from deepvit.collapse.results import (
    VERSION,
    BlockFacts,
    BlockMap,
    BlockPatches,
    Counts,
    Cure,
    Finding,
    ImageMaps,
    Measurements,
    Series,
    SimilarBlocks,
    Verdict,
)
from deepvit.collapse.verdict import decide
from deepvit.errors import UserError
from deepvit.report import compare_reports, diagnose, load, report_html, save, sentences, write_report
from deepvit.report.charts import profiles, shown_metrics, thresholds
from deepvit.report.compare import compare_html, curve_charts, distinct_names, outcome_table
from deepvit.report.cure_commands import command
from deepvit.report.diagnosis import Report
from deepvit.report.differences import differences, warnings
from deepvit.report.page import number
from deepvit.report.payload import numbers_csv, page_data
from deepvit.report.pictures import maps_payload
from deepvit.report.spoken import speak, spoken
from deepvit.report.words import finding_rows, lead, margins, measurement_facts, spoken_blocks

EVIL = "</script><script>window.ran=1</script><img src=x onerror=window.ran=1>\"'&"


class Tags(html.parser.HTMLParser):
    """Every start tag with its attributes, and the text of every script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.texts: list[str] = []
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = (dict(attrs).get("id") or "main") if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        else:
            self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._script = None


def embedded(page: bytes) -> dict:
    return json.loads(Tags(page.decode()).scripts["data"])


def test_write_report_writes_json_and_page(tmp_path):
    results = example_measurements("small", depth=6, heads=3, grid=4)
    path = write_report(results, tmp_path / "out")
    assert path == tmp_path / "out" / "report.html"
    assert sorted(p.name for p in path.parent.iterdir()) == ["collapse.json", "report.html"]
    assert load(path.parent) == spoken(results)
    assert load(path.parent / "collapse.json").to_dict() == results.to_dict()
    plain = json.loads((path.parent / "collapse.json").read_text())
    assert (plain["schema"], plain["version"]) == ("deepvit.collapse", 2)


def test_report_says_verdict_evidence_cure_and_command():
    results = example_measurements("vit_small", depth=12, collapse_from=8)
    results.provenance["train"] = {"options": ["--model", "vit_small", "--data", "digits"], "out": None}
    text = " ".join(Tags(report_html(results).decode()).texts)
    text = re.sub(r"\s+", " ", text)
    verdict = speak(results.verdict)
    assert verdict.headline in text
    assert verdict.findings[0].sentence in text
    assert "Attention like the block before, mean of these blocks" in text
    assert "0.970" in text
    assert "98%" in text
    assert results.similar.rule in text
    assert "deepvit train --model vit_small --data digits \\ --cures reattention --cure_blocks 8-11" in text
    for key in shown_metrics([results]):
        assert METRICS[key].source in text
        assert METRICS[key].formula in text


def test_every_number_of_the_table_is_the_measured_one():
    results = example_measurements(depth=5, heads=2, grid=3)
    rows = list(csv.DictReader(io.StringIO(numbers_csv([results], ["a, b"]))))
    assert [row["model"] for row in rows] == ["a, b"] * 5
    for key, series in results.series.items():
        for row, value, spread in zip(rows, series.values, series.spread, strict=True):
            assert row[key] == ("" if value is None else repr(value))
            assert row[f"{key}_spread"] == ("" if spread is None else repr(spread))
    cells = [
        attrs["data-value"]
        for tag, attrs in Tags(report_html(results).decode()).tags
        if tag == "td" and "data-value" in attrs
    ]
    width = 1 + len(shown_metrics([results]))
    first = results.series["entropy"].values
    place = 1 + shown_metrics([results]).index("entropy")
    assert [float(cells[width * block + place]) for block in range(5)] == first


def test_charts_hold_the_measured_values_thresholds_and_every_metric():
    results = example_measurements(depth=6, heads=2, grid=3, collapse_from=4)
    data = embedded(report_html(results))
    drawn = {key for chart in data["charts"] for key in chart["keys"]}
    assert drawn == set(METRICS) - {"softmax_similarity"}  # no block mixes heads: it would repeat a line
    model = data["models"][0]
    for key in drawn:
        for shown, value in zip(model["series"][key]["values"], results.series[key].values, strict=True):
            assert (shown is None) == (value is None)
            assert value is None or shown == pytest.approx(value, rel=1e-4)
    assert data["charts"][0]["thresholds"] == [{"value": 0.9, "label": "similar from 0.9"}]
    assert model["from"] == results.verdict.from_block == 4
    mixed = profiles([example_measurements(depth=4, mixed=True)], together=True)
    assert "softmax_similarity" in mixed[0].keys


def test_bands_stay_inside_the_range_of_their_metric():
    results = example_measurements(depth=4, heads=2, grid=3)
    results.series["entropy"].values = [0.99, 0.01, 0.5, None]
    results.series["entropy"].spread = [0.05, 0.05, 0.1, None]
    band = page_data([results], ["x"], profiles([results], together=True))["models"][0]["series"]["entropy"]
    assert band["low"] == [0.94, 0.0, 0.4, None]
    assert band["high"] == [1.0, 0.06, 0.6, None]


def test_nobodys_text_becomes_markup():
    results = example_measurements(EVIL, depth=3, heads=2, grid=3, collapse_from=1, labels=[EVIL, EVIL + "2"])
    results.provenance["unreadable"] = [EVIL]
    results.model["class"] = EVIL
    results.verdict.cures[0].why = EVIL
    results.blocks[0].name = EVIL
    curves = {EVIL: {EVIL: [[0, 1], [1, 2]]}}
    for page in (report_html(results), compare_html([results, results], curves, [{EVIL: EVIL}])):
        parsed = Tags(page.decode())
        assert sorted(parsed.scripts) == ["data", "main", "overlay-colors"]
        assert not [tag for tag, _ in parsed.tags if tag == "img"]
        assert not [attrs for _, attrs in parsed.tags if any(name.startswith("on") for name in attrs)]
        assert json.loads(parsed.scripts["data"])["models"][0]["name"] == EVIL
        assert EVIL in "".join(parsed.texts)


def test_page_asks_nobody_for_anything_and_runs_only_its_own_script():
    page = report_html(example_measurements(depth=3, heads=2, grid=3)).decode()
    parsed = Tags(page)
    policy = next(
        attrs["content"] for tag, attrs in parsed.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    for _, attrs in parsed.tags:
        assert "style" not in attrs  # the policy would drop it
        for name in ("src", "href", "action"):
            assert (attrs.get(name) or "#").startswith(("#", "data:"))


def test_names_that_are_not_unicode_survive(tmp_path):
    results = example_measurements("caf\udce9", depth=3, heads=2, grid=3, labels=["\udcff.jpg"])
    write_report(results, tmp_path)
    assert load(tmp_path).name == "caf\udce9"
    assert "caf?" in (tmp_path / "report.html").read_text("utf-8")


def test_not_a_number_is_refused_before_anything_is_written(tmp_path):
    results = example_measurements(depth=3, heads=2, grid=3)
    results.series["entropy"].values[1] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_report(results, tmp_path / "out")
    assert not list(tmp_path.rglob("*.*"))


def test_reports_stay_under_eight_megabytes_and_say_what_they_left_out():
    large = example_measurements("large", depth=40, heads=16, grid=37, images=6)
    page = report_html(large)
    assert len(page) < 8_000_000
    maps = maps_payload(large, 5_500_000)
    assert maps is not None
    assert maps["notes"]
    for note in maps["notes"]:
        assert note in page.decode()
    assert len(compare_html([large, large, large])) < 8_000_000


def test_averaged_heads_are_the_mean_of_the_heads():
    results = example_measurements(depth=2, heads=3, grid=4, images=1, mixed=True)
    maps = maps_payload(results, 1)
    assert maps is not None
    layer, entry = maps["layers"][0][0], results.maps[0].maps[0]
    assert layer["averaged"]
    assert maps["notes"] == [
        "Single heads are left out to keep the file small: every map is the mean of the heads."
    ]
    raw = base64.b64decode(layer["data"][0])
    low, high = layer["ranges"][0]
    keys = results.blocks[0].keys
    for cell in range(16):
        mean = sum(entry.bytes()[head * 16 + cell] for head in range(3)) / 3
        expected = keys * (entry.low + (entry.high - entry.low) * mean / 255)
        assert low + (high - low) * raw[cell] / 255 == pytest.approx(expected, abs=(high - low) / 250)


def test_blocks_of_two_shapes_and_gaps_are_drawn():
    data = embedded(report_html(example_measurements(depth=9, heads=2, grid=6, two_shapes=True)))
    matrix = data["models"][0]["matrices"]["attention_similarity"]["values"]
    assert matrix[0][8] is None
    assert {tuple(layer["grid"]) for layer in data["models"][0]["maps"]["layers"][0]} == {(6, 6), (3, 3)}


def test_healthy_report_names_no_block_and_no_cure():
    page = report_html(example_measurements(depth=4, heads=2, grid=3, collapse_from=None))
    assert embedded(page)["models"][0]["from"] is None
    assert "What to do about it" not in page.decode()


def test_command_of_a_cure_trains_the_same_network_on_the_same_data():
    results = example_measurements("a run")
    results.provenance["train"] = {"options": ["--config", "my runs/a/config.yaml"], "out": "my runs/a"}
    assert command(Cure("reattention", "7-11", ""), results) == (
        "deepvit train --config 'my runs/a/config.yaml' \\\n"
        "  --cures reattention --cure_blocks 7-11 \\\n"
        "  --out 'my runs/a-reattention'"
    )
    assert "--losses.patch_cosine 1 " in command(Cure("patch_cosine", "all", "", loss=True), results)
    assert "--cures layerscale \\" in command(Cure("layerscale", "all", ""), results)
    del results.provenance["train"]
    assert (
        command(Cure("layerscale", "all", ""), results)
        == "deepvit.cures.apply(model, 'layerscale', blocks='all')"
    )
    assert command(Cure("patch_cosine", "all", "", loss=True), results) == (
        "diversity = deepvit.losses.Diversity(model, {'patch_cosine': 1.0})"
    )


def test_compare_takes_measurements_files_and_folders(tmp_path):
    first = example_measurements("plain", depth=4, heads=2, grid=3, collapse_from=2)
    second = example_measurements("cured", depth=6, heads=2, grid=3, collapse_from=None)
    write_report(second, tmp_path / "cured")
    path = compare_reports(
        [SimpleNamespace(measurements=first), tmp_path / "cured", str(tmp_path / "cured" / "collapse.json")],
        curves={
            "plain": {"val_accuracy": [[1, 0.5], [0, 0.1]]},
            "other": {"loss": [(0, float("nan")), (1, 2.0)]},
        },
        table=[{"model": "plain", "top-1": 0.5}, {"model": "cured", "top-1": 0.75, "parameters": 1234567}],
        out=tmp_path / "both",
    )
    assert path == tmp_path / "both" / "report.html"
    page = path.read_bytes()
    data = embedded(page)
    assert [model["name"] for model in data["models"]] == ["plain", "cured", "cured (2)"]
    accuracy, loss = data["curves"]
    assert accuracy["series"][0]["x"] == [0.0, 1.0]
    assert accuracy["series"][0]["color"] == data["models"][0]["color"]
    assert loss["series"][0]["y"] == [None, 2.0]
    assert loss["series"][0]["color"] == 3
    text = page.decode()
    assert "plain collapses, the others do not" in text
    assert "1,234,567" in text
    assert 'data-value=""' in text  # a cell that its row does not have


def test_compare_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(UserError, match="nothing to compare"):
        compare_reports([], out=tmp_path)
    with pytest.raises(UserError, match="cannot compare a int"):
        compare_reports([3], out=tmp_path)
    with pytest.raises(UserError, match="no such file"):
        compare_reports([tmp_path / "none.json"], out=tmp_path)
    bad = tmp_path / "collapse.json"
    for text, message in (
        ("{", "is not a collapse report"),
        ("[]", "is not a collapse report"),
        ('{"schema": "other"}', "not a collapse report"),
        ('{"schema": "deepvit.collapse", "version": 99}', "version 99"),
        ('{"schema": "deepvit.collapse", "version": 1}', "damaged"),
    ):
        bad.write_text(text)
        with pytest.raises(UserError, match=message):
            compare_reports([bad], out=tmp_path)


def test_small_parts_of_the_comparison():
    same = example_measurements("x", depth=2, heads=1, grid=2)
    assert distinct_names([same, same, same]) == ["x", "x (2)", "x (3)"]
    assert outcome_table([]) is None
    assert curve_charts({}, [], "epoch") == []
    assert curve_charts({"a": {"m": []}}, [], "epoch") == []


def test_json_keeps_a_row_of_a_matrix_on_one_line(tmp_path):
    results = example_measurements(depth=4, heads=2, grid=3)
    text = save(results, tmp_path / "c.json", maps=False).read_text()
    assert any(line.count(",") >= 3 and line.strip().startswith("[") for line in text.splitlines())
    assert Measurements.from_dict(json.loads(text)).maps == []


def test_documented_schema_names_every_field_and_metric():
    text = (Path(__file__).parents[2] / "docs" / "collapse-json.md").read_text("utf-8")
    kinds = (
        Measurements, BlockFacts, Series, SimilarBlocks, Verdict, Finding, Cure, Counts, ImageMaps, BlockMap, BlockPatches,
        Lesions, Effect,
    )  # fmt: skip
    for kind in kinds:
        for entry in dataclasses.fields(kind):
            assert f"`{entry.name}`" in text, f"{kind.__name__}.{entry.name} is not documented"
    assert f"`version` is `{VERSION}`" in text
    for key, info in METRICS.items():
        row = next(
            line for line in text.splitlines() if line.startswith(f"| `{key}` | ") and info.alarm in line
        )
        assert info.formula.replace("|", "\\|") in row
    for key in MATRICES:
        assert f"`{key}`" in text
    for kind in LESIONS.values():
        assert f"| `{kind.key}` | {kind.done} | {kind.question} |" in text


def test_single_heads_are_drawn_where_they_were_measured():
    results = example_measurements(depth=3, heads=2, grid=3)
    results.per_head["entropy"][1] = None
    series = embedded(report_html(results))["models"][0]["series"]
    assert series["entropy"]["heads"][0] == pytest.approx(results.per_head["entropy"][0], rel=1e-4)
    assert series["entropy"]["heads"][1] == []
    assert series["token_rank"]["heads"] is None


def test_written_numbers_line_up_as_numbers():
    table = outcome_table(
        [{"run": "a", "top-1": "97.2 ± 0.4", "s": "–"}, {"run": "b", "top-1": "98.0", "s": "1.5"}]
    )
    assert table is not None
    assert [head["text"] for head in table["heads"]] == [True, False, False]


def judged(**options) -> Measurements:
    """An example with the verdict that its made-up numbers really get."""
    results = example_measurements(depth=10, heads=2, grid=3, **options)
    results.series["entropy"].values = [0.6] * 10
    results.series["patch_similarity"].values = [0.5] * 9 + [0.95]
    shares = {
        "alike": results.similar.images_share,
        "uniform": [0.0] * 10,
        "sharp": [0.0] * 10,
        "patches": [0.0] * 10,
    }
    results.verdict = speak(decide(results.blocks, results.series, shares))
    return results


def test_the_page_says_each_thing_of_a_real_verdict_once():
    results = judged(collapse_from=5)
    verdict = results.verdict
    assert verdict.kind == "maps_alike"
    assert len(verdict.findings) > 1
    told = lead(results)
    assert told.startswith(verdict.findings[0].sentence)
    assert "similarities lie between" in told
    for other in (
        verdict.headline,
        verdict.findings[1].sentence,
        verdict.sureness_text,
        "What answers it",
        "This is",
    ):
        assert other not in told
    rows = finding_rows(results)
    assert rows[0]["sentence"] is None
    assert rows[1]["sentence"] == verdict.findings[1].sentence
    assert "Entropy" not in told
    assert any(what.startswith("Attention like the block before, ") for what in rows[0]["evidence"])
    text = "".join(Tags(report_html(results).decode()).texts)
    for finding in verdict.findings:
        assert text.count(finding.sentence) == 1
    assert text.count("deepvit.cures.apply(model, ") == len(verdict.cures)


def test_healthy_verdict_leads_with_the_counts():
    results = judged(collapse_from=None)
    assert results.verdict.kind == "healthy"
    assert lead(results).startswith("0 of 9 blocks are similar")
    assert spoken_blocks(results) == []


def test_the_only_block_of_a_network_is_named_once():
    counted = Counts(patches=[[0, 0.16], [0, 0.16]])
    assert sentences.counts(counted) == "Patch similarity: 0.16 after block 0."
    counted.patches[1] = [3, 0.25]
    assert sentences.counts(counted) == "Patch similarity: 0.16 after block 0, 0.25 after block 3."


def test_the_bracket_marks_what_the_verdict_speaks_of():
    results = example_measurements(depth=10, heads=2, grid=3, collapse_from=4)
    results.verdict.findings[0].blocks = [4, 5, 6]
    strip = embedded(report_html(results))["models"][0]["strip"]
    assert (strip["from"], strip["to"]) == (4, 6)
    results.verdict.findings = []
    assert spoken_blocks(results) == [4, 5, 6, 7, 8, 9]


def test_thresholds_are_drawn_as_the_measurements_state_them():
    results = example_measurements(depth=3, heads=2, grid=14)
    assert thresholds(["entropy"], [results]) == []
    results.provenance["thresholds"] = {
        "alike_centred": 0.5, "uniform_share_of_keys": 0.95, "sharp_keys": 2.0, "patches_alike": 0.9,
    }  # fmt: skip
    sharp, even = thresholds(["entropy"], [results])
    assert sharp == {"value": pytest.approx(math.log(2) / math.log(197)), "label": "too sharp below"}
    assert even["value"] == pytest.approx(1 + math.log(0.95) / math.log(197))
    assert thresholds(["patch_similarity"], [results])[0]["value"] == 0.9
    drawn = embedded(report_html(results))["charts"][0]["thresholds"]
    assert [line["value"] for line in drawn] == [0.5, 0.9]


def test_what_is_beside_the_point_is_left_to_the_json():
    results = example_measurements(depth=3)
    results.provenance |= {"plan": {"attention_chunk": 8}, "shares_of_images": {"alike": [0.5]}}
    facts = measurement_facts(results)
    assert "plan" not in facts
    assert "shares_of_images" not in facts
    assert list(facts)[-1] == "notes"
    assert "plan" in json.loads(json.dumps(results.to_dict()))["provenance"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.12345, "0.123"),
        (-0.5, "−0.500"),
        (12.34, "12.3"),
        (1234, "1,234"),
        (2.5e-5, "2.5e−05"),
    ],
)
def test_numbers_for_reading(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("kinds", "title"),
    [
        (["maps_alike", "healthy"], "a collapses, the other does not"),
        (["healthy", "healthy"], "None of 2 networks collapses"),
        (["maps_alike", "sharp_maps"], "Both networks collapse"),
        (["maps_alike", "sharp_maps", "healthy"], "2 of 3 networks collapse"),
        (["healthy", "untrained_or_uniform", "healthy"], "None of 3 networks collapses; 1 looks untrained"),
    ],
)
def test_the_title_of_a_comparison_says_who_collapses(kinds, title):
    results = []
    for name, kind in zip("abc", kinds, strict=False):
        result = example_measurements(name, depth=2, heads=1, grid=2, images=0)
        collapsed = kind in ("maps_alike", "sharp_maps")
        found = [Finding(kind, "maps_alike", [1], to_end=True)] if kind != "healthy" else []
        result.verdict = Verdict(kind, collapsed, 1 if collapsed else None, found)
        results.append(result)
    assert f"<h1>{title}</h1>" in compare_html(results).decode()


def test_diagnose_hands_on_how_the_network_is_trained(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2
    )
    facts = {"data": "digits", "train": {"options": ["--model", "x"], "out": None}}
    diagnose(model, [torch.randn(2, 3, 32, 32)], out=tmp_path, progress=False, provenance=facts)
    results = load(tmp_path)
    assert results.provenance["data"] == "digits"
    results.verdict.cures = [Cure("reattention", "all", "")]
    text = "".join(Tags(report_html(results).decode()).texts)
    assert "deepvit train --model x \\\n  --cures reattention" in text
    queries = embedded((tmp_path / "report.html").read_bytes())["models"][0]["maps"]["images"][0]["queries"]
    assert [query["name"] for query in queries] == [
        "class token",
        "patch (1, 1)",
        "patch (2, 2)",
        "patch (3, 3)",
    ]
    assert queries[1]["at"] == [0.375, 0.375]


def test_files_of_words_only_are_judged_again_from_their_numbers(tmp_path):
    """The first files had sentences and no parts (their evidence named by words)."""
    results = judged(collapse_from=5)
    results.provenance["shares_of_images"] = {"alike": results.similar.images_share, "patches": [0.0] * 10}
    old = results.to_dict(maps=False)
    old["verdict"] = {
        "kind": "maps_alike", "collapsed": True, "from_block": 5, "headline": "Collapse", "text": "Collapse. So.",
        "findings": [
            {"kind": "maps_alike", "blocks": [5, 6], "sentence": "So.", "evidence": {"entropy, mean": 0.1},
             "images_share": 1.0},
        ],
        "cures": [{"name": "reattention", "blocks": "5-9", "why": "mixes"}],
        "sureness": "sure", "sureness_text": "98% of images",
    }  # fmt: skip
    for image in old["maps"]:
        for block in image["maps"]:
            del block["patch"]
    (tmp_path / "collapse.json").write_text(json.dumps(old))
    read = load(tmp_path)
    assert (read.verdict.kind, read.verdict.from_block) == ("maps_alike", 5)
    assert read.verdict.findings[0].number("attention_similarity") == pytest.approx(0.97, abs=0.02)
    assert read.verdict.headline == "Collapse: all maps alike from block 5 on"
    assert "all maps alike from block 5 on" in report_html(read).decode()


def test_the_json_has_the_words_beside_the_parts(tmp_path):
    results = spoken(example_measurements(depth=4, heads=1, grid=2, images=0, collapse_from=2))
    verdict = json.loads(save(results, tmp_path / "c.json").read_text())["verdict"]
    assert verdict["headline"] == results.verdict.headline == "Collapse: all maps alike from block 2 on"
    assert verdict["text"].startswith(verdict["headline"] + ". The maps of blocks 2 to 3 are alike")
    assert verdict["findings"][0]["sentence"] in verdict["text"]
    assert verdict["findings"][0]["evidence"]["attention_similarity, mean of these blocks"] == 0.97
    assert verdict["findings"][0]["numbers"]["attention_similarity"] == {"here": 0.97, "before": 0.4}


RUN = {
    "model": "vit_tiny_patch16_224", "arguments": {"depth": 16}, "cures": [{"name": "reattention", "blocks": [8, 9, 10]}],
    "losses": {"patch_cosine": 1.0}, "data": "digits", "images": 1437, "epochs": 20, "batch": 64, "seed": 3,
    "weights": "ema", "results": [{"name": "validation accuracy", "value": 97.25, "unit": "%"}],
    "curves": [
        {"name": "validation accuracy", "unit": "%", "points": [[2, 60.0], [1, 50.0]]},
        {"name": "validation accuracy", "unit": "%", "points": [[1, 1.0]]},
        {"name": "training loss", "points": [[1, 2.0], [2, float("nan")]]},
    ],
}  # fmt: skip


def words_of(page: bytes) -> str:
    return re.sub(r"\s+", " ", " ".join(Tags(page.decode()).texts))


def test_a_report_says_what_the_network_is_and_how_it_was_trained():
    results = example_measurements(depth=4, heads=1, grid=2, images=0)
    assert 'class="trained"' not in report_html(results).decode()
    results.provenance["run"] = RUN
    page = report_html(results)
    text = words_of(page)
    for words in (
        "Model vit_tiny_patch16_224 (depth 16)", "Cures reattention in blocks 8-10", "Losses patch_cosine × 1",
        "Data digits, 1,437 training images", "Trained 20 epochs, 64 images a step, seed 3, weights: ema",
        "Reached validation accuracy 97.2%",
    ):  # fmt: skip
        assert words in text, words
    curves = embedded(page)["curves"]
    assert [(curve["title"], curve["unit"]) for curve in curves] == [
        ("validation accuracy", "%"),
        ("training loss", ""),
    ]
    assert (curves[0]["series"][0]["x"], curves[0]["series"][0]["y"]) == ([1.0, 2.0], [50.0, 60.0])
    assert curves[1]["series"][0]["y"] == [2.0, None]
    assert "run" not in measurement_facts(results)


def test_random_weights_stand_in_the_header():
    results = example_measurements(depth=4, heads=1, grid=2, images=0)
    assert "andom weights" not in words_of(report_html(results))
    results.provenance["weights"] = "random"
    text = words_of(report_html(results))
    assert "random weights" in text[: text.index(speak(results.verdict).headline, 200)]
    assert "Random weights: nothing was loaded into this network" in text
    assert "Random weights in example" in words_of(compare_html([results, results]))


def test_a_comparison_says_what_differs_and_what_does_not_compare():
    one, two = (example_measurements(name, depth=4, heads=1, grid=2, images=0) for name in ("one", "two"))
    one.provenance |= {"run": RUN, "data": "digits"}
    two.provenance |= {
        "run": {**RUN, "epochs": 5, "cures": [], "data": "torch/cifar10"},
        "data": "torch/cifar10",
    }
    table = differences([one, two], ["one", "two"])
    assert table["rows"] == [
        ["Cures", "reattention in blocks 8-10", "none"],
        ["Data", "digits, 1,437 training images", "torch/cifar10, 1,437 training images"],
        ["Epochs", "20", "5"],
        ["Measured on", "digits", "torch/cifar10"],
    ]
    assert "seed 3" in table["same"]
    text = words_of(compare_html([one, two]))
    assert "Different budgets (20, 5 epochs)" in text
    assert "Trained on different data (digits, torch/cifar10): accuracies do not compare." in text
    assert "What differs" in text
    assert warnings([one, one]) == []
    assert differences([one], ["one"]) is None
    unknown = example_measurements("three", depth=4, heads=1, grid=2, images=0)
    assert "known of 1 of 2 networks" in warnings([one, unknown])[0]
    small = example_measurements("small", depth=4, heads=1, grid=3, images=0)
    assert any("input sizes (32×32, 48×48)" in each for each in warnings([unknown, small]))


def test_curves_have_the_names_that_people_use_and_no_line_twice():
    runs = {
        "a": {
            "val/top1": [[1, 2], [2, 3]],
            "train/loss": [[1, 2], [2, 1]],
            "train/loss_ce": [[1, 2], [2, 1]],
        },
        "b": {
            "val/top1": [[1, 2], [2, 5]],
            "train/loss": [[1, 3], [2, 1]],
            "train/loss_ce": [[1, 3], [2, 1]],
        },
    }
    charts = curve_charts(runs, ["a", "b"], "epoch", {"val/top1": "validation accuracy, %"})
    assert [(chart["title"], chart["unit"]) for chart in charts] == [
        ("validation accuracy", "%"),
        ("training loss", ""),
    ]
    runs["b"]["train/loss_ce"][0][1] = 2.5
    assert len(curve_charts(runs, ["a", "b"], "epoch")) == 3


def test_a_healthy_report_says_how_far_it_is_from_each_collapse():
    results = judged(collapse_from=None)
    results.provenance["thresholds"] = {
        "alike_centred": 0.5, "uniform_share_of_keys": 0.95, "sharp_keys": 2.0, "patches_alike": 0.9,
    }  # fmt: skip
    rows = margins(results)
    alike = results.series["attention_similarity"].values
    assert (rows[0]["what"], rows[0]["value"], rows[0]["rule"]) == (
        "all maps alike",
        max(alike[1:]),
        "from 0.90",
    )
    assert rows[0]["block"] == alike.index(max(alike[1:]))
    assert [row["what"] for row in rows] == [
        "all maps alike",
        "maps uniform",
        "maps too sharp",
        "patches alike",
    ]
    assert (rows[2]["value"], rows[2]["rule"]) == (0.6, "below 0.30")  # log 2 / log 10
    assert (rows[3]["block"], rows[3]["value"]) == (9, 0.95)
    assert "How far from a collapse" in words_of(report_html(results))
    assert margins(judged(collapse_from=5)) == []
    mixed = judged(collapse_from=None, mixed=True)
    mixed.provenance["thresholds"] = results.provenance["thresholds"]
    assert "contrast" in margins(mixed)[1]["metric"]


def test_the_scale_of_cka_starts_where_its_values_do():
    results = example_measurements(depth=4, heads=1, grid=2, images=0)
    assert embedded(report_html(results))["models"][0]["matrices"]["cka"]["zero"] == 0
    results.matrices["cka"] = [[1.0, 0.93, 0.91, None]] * 4
    data = embedded(report_html(results))["models"][0]["matrices"]
    assert data["cka"]["zero"] == 0.9
    assert data["attention_similarity"]["zero"] == 0


def test_the_paper_has_a_name():
    text = report_html(example_measurements(depth=4, heads=1, grid=2)).decode()
    assert "as in the paper" not in text
    assert "DeepViT (Zhou et al. 2021)" in text


def test_mixed_maps_are_no_shares():
    results = example_measurements(depth=3, heads=2, grid=3, mixed=True)
    layer = embedded(report_html(results))["models"][0]["maps"]["layers"][0][0]
    assert layer["mixed"]
    assert layer["even"] == pytest.approx(1 / results.blocks[0].keys, rel=1e-6)


def test_reports_in_three_lines_and_in_a_notebook():
    results = spoken(example_measurements(EVIL, depth=4, heads=1, grid=2, images=0, collapse_from=2))
    report = Report(results, [Path("out/report.html")])
    lines = repr(report).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("  Collapse: all maps alike from block 2 on (sure: 98% of 64 images show it")
    assert lines[2] == "  out/report.html"
    assert len(repr(results).splitlines()) == 3
    assert "maps_alike from block 2 (sure)" in repr(results)
    for piece in (report._repr_html_(), results._repr_html_()):
        parsed = Tags(piece)
        assert not [tag for tag, _ in parsed.tags if tag in ("script", "img")]
        assert EVIL in "".join(parsed.texts)
        assert "Collapse: all maps alike from block 2 on" in piece
        assert piece.count("<td title=") == 12


def test_patches_that_are_too_many_for_pairs_show_their_norms_only():
    few = embedded(report_html(example_measurements(depth=2, heads=1, grid=4)))["models"][0]["patches"]
    assert few["notes"] == []
    assert all(layer["similarity"] for layers in few["layers"] for layer in layers)
    many = report_html(example_measurements(depth=2, heads=1, grid=20))
    patches = embedded(many)["models"][0]["patches"]
    assert not any(layer["similarity"] for layers in patches["layers"] for layer in layers)
    assert patches["notes"][0] in many.decode()
    both = example_measurements(depth=2, heads=1, grid=4)
    assert embedded(compare_html([both, both]))["models"][0]["patches"] is None


def test_nothing_reads_our_own_prose():
    """Words are joined last: no expression takes them apart again (files: collapse, report, monitor, diagnosing)."""
    root = Path(deepvit.__file__).parent
    files = [*root.glob("collapse/**/*.py"), *root.glob("report/**/*.py"), root / "training" / "monitor.py"]
    assert len(files) > 40
    for file in files:
        text = file.read_text()
        assert not re.search(
            r"^\s*(import re\b|from re import)|\.removeprefix\(|\.partition\(\"\. ", text, re.M
        ), file
