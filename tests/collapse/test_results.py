import json

import pytest
from report.example import example_measurements

from deepvit.collapse.catalogue import MATRICES, METRICS
from deepvit.collapse.lesions.effects import Effect, Lesions
from deepvit.collapse.results import Measurements


@pytest.mark.parametrize(
    "options", [{}, {"collapse_from": None, "mixed": True}, {"two_shapes": True, "depth": 9}]
)
def test_measurements_survive_json(options):
    made = example_measurements(**options)
    plain = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert Measurements.from_dict(plain) == made
    assert Measurements.from_dict(plain).to_dict() == plain


def test_example_fills_every_metric_and_matrix():
    made = example_measurements(two_shapes=True)
    assert set(made.series) == set(METRICS)
    assert set(made.matrices) == set(MATRICES)
    depth = len(made.blocks)
    assert all(len(s.values) == len(s.spread) == depth for s in made.series.values())
    assert made.matrices["cka"][0][depth - 1] is None  # blocks of different shapes are not compared
    block_map = made.maps[0].maps[0]
    assert len(block_map.bytes()) == block_map.shape[0] * block_map.shape[1] * block_map.shape[2]
    assert len(made.maps[0].bytes()) == 64 * 64 * 3


def test_maps_can_be_left_out():
    assert example_measurements().to_dict(maps=False)["maps"] == []


@pytest.mark.parametrize(("field", "value"), [("schema", "other"), ("version", 3)])
def test_foreign_or_newer_files_are_refused(field, value):
    plain = {**example_measurements().to_dict(), field: value}
    with pytest.raises(ValueError, match="collapse report"):
        Measurements.from_dict(plain)


def test_files_of_version_1_are_still_read_and_have_no_lesions():
    plain = example_measurements().to_dict()
    old = {key: value for key, value in plain.items() if key != "lesions"} | {"version": 1}
    read = Measurements.from_dict(old)
    assert read.lesions is None
    assert read.verdict.unjudged == "off"
    assert read.series == example_measurements().series


def test_lesions_are_written_and_read_back():
    results = example_measurements()
    results.lesions = Lesions(
        images=64, available=128, told_apart=2.2, score_name="accuracy", score=98.0, control=1e-7,
        effects=[Effect("block", [3], 0.5, 0.1, 0.2, 90.0, 0.4, 0.05), Effect("blocks", [3, 4], 0.9, 0.2)],
        refused=[["attention", "blocks.0: no"]], left_out=["map_mean"],
    )  # fmt: skip
    again = Measurements.from_dict(json.loads(json.dumps(results.to_dict())))
    assert again.lesions == results.lesions
    assert again.lesions.of("blocks", [4, 3]).value == 0.9
    assert again.lesions.single("block")[3].score == 90.0
    assert again.lesions.of("block", 7) is None
