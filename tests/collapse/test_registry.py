"""A metric is one record: measured, drawn, written and compared wherever the others are."""

import re
from pathlib import Path

import pytest
import torch
from collapse.constructed import images, network

from deepvit.capturing import capture
from deepvit.collapse import METRICS, Metric, measure, register
from deepvit.collapse.catalogue import table
from deepvit.collapse.metrics.metric import NEEDS
from deepvit.report import compare_reports, load, write_report


def record(**changes):
    made = {
        "key": "made_up", "title": "Made up", "unit": "ratio", "low": 0.0, "high": None, "alarm": "none",
        "formula": "max", "meaning": "nothing", "source": "a test", "needs": ("maps",),
        "compute": lambda maps: maps.amax((-2, -1)), **changes,
    }  # fmt: skip
    return Metric(**made)


@pytest.fixture
def registered():
    """Registers records, and forgets them afterwards."""
    known = dict(METRICS)
    yield lambda **changes: register(record(**changes))
    for key in METRICS.keys() - known.keys():
        del METRICS[key]


def test_a_registered_metric_of_maps_is_measured_per_head_and_drawn(registered, tmp_path):
    registered()
    model, data = network(depth=3, start=9), images(5)
    found = measure(model, [data[:2], data[2:]])
    with torch.no_grad(), capture(model) as seen:
        model(data)
    maps = seen.attention["blocks.1"].double().amax((-2, -1))
    assert found.series["made_up"].values[1] == pytest.approx(maps.mean().item(), abs=1e-6)
    assert found.series["made_up"].spread[1] == pytest.approx(maps.mean(1).std(correction=0).item(), abs=1e-6)
    assert found.per_head["made_up"][1] == pytest.approx(maps.mean(0).tolist(), abs=1e-6)
    page = write_report(found, tmp_path).read_text()
    assert page.count("Made up") >= 3  # chart, table of numbers, definitions
    assert load(tmp_path).series["made_up"] == found.series["made_up"]
    assert "Made up" in compare_reports([found, found], out=tmp_path / "c.html").read_text()


def test_a_file_with_a_metric_that_is_not_known_here_opens(registered, tmp_path):
    registered()
    write_report(measure(network(depth=2, start=9), [images(2)]), tmp_path)
    del METRICS["made_up"]
    again = write_report(load(tmp_path), tmp_path / "again")
    assert "Made up" not in again.read_text()


def test_needs_of_every_stage_are_met_and_none_is_left_out(registered):
    asked = {}

    def asks(stage, name):
        def compute(value):
            asked[stage, name] = value
            return None

        return compute

    for stage, names in NEEDS.items():
        for name in names:
            registered(key=f"{stage}_{name}", needs=(name,), compute=asks(stage, name))
    registered(key="both", needs=("some_patches", "last_patches"), compute=lambda a, b: a.mean((1, 2)))
    found = measure(network(depth=2, start=9), [images(3)])
    missing = {(stage, name) for stage, names in NEEDS.items() for name in names} - asked.keys()
    # One that is met at two stages is asked for at the first.
    assert missing == set()
    assert "both" in found.series


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"needs": ("maps", "patches")}, "not of one stage"),
        ({"needs": ("map",)}, "not of one stage"),
        ({"needs": ()}, "not of one stage"),
        ({"alarm": "loud"}, "alarm='loud'"),
        ({"key": "entropy"}, "there is a metric 'entropy' already"),
    ],
)
def test_mistakes_of_a_record_are_named(registered, changes, words):
    with pytest.raises(ValueError, match=words):
        registered(**changes)


def test_every_metric_says_what_it_is():
    for metric in METRICS.values():
        assert metric.formula
        assert metric.meaning.endswith(".")
        assert metric.source
        assert metric.title[0].isupper()
    assert [key for key, metric in METRICS.items() if metric.compute is None] == [
        "attention_similarity", "attention_similarity_centred", "softmax_similarity", "image_similarity",
    ]  # fmt: skip


def test_the_documented_table_is_the_registry():
    text = (Path(__file__).parents[2] / "docs" / "collapse-json.md").read_text()
    assert "\n".join(table()) in text, "\n".join(table())


def test_the_stages_are_documented():
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    rows = re.findall(r"^\| [a-z ,]+ \| (`.*`) \|$", text, flags=re.MULTILINE)
    assert [row.replace("`", "").split(", ") for row in rows][-3:] == [
        list(names) for names in NEEDS.values()
    ]
