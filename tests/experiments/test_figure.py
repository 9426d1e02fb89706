"""The figure of a study with few methods has lines, with many a map whose rows are the methods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from deepvit import tasks
from deepvit.experiments import figure

RECORDS = sorted((Path(__file__).parents[2] / "records").glob("*/study.json"))


def test_every_method_with_values_has_a_row_of_its_own_values() -> None:
    methods = [f"cure{i}" for i in range(10)]
    curves: dict[str, list[float | None]] = {
        m: [None, 0.1 * i, -0.5] for i, m in enumerate(methods) if i != 3
    }
    axes = Figure().subplots()
    figure.draw_similarity_map(axes, curves, methods)
    assert [label.get_text() for label in axes.get_yticklabels()] == methods
    rows = {round(sum(image.get_extent()[2:]) / 2): image.get_array().tolist() for image in axes.images}
    assert sorted(rows) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert rows[7] == [[0.7000000000000001, -0.5]]


def test_lines_have_a_colour_each() -> None:
    axes = Figure().subplots()
    figure.draw_similarity(axes, {f"cure{i}": [None, 0.1 * i] for i in range(figure.MOST_LINES)})
    colours = [line.get_color() for line in axes.lines[:-1]]
    assert len(set(colours)) == len(colours) == figure.MOST_LINES


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.parent.name)
def test_a_record_is_drawn_anew_from_its_numbers_alone(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accuracy is called what tables and the terminal call it; the second half has marks, with and without profiles."""
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: (drawn.append(self), Path(file).touch()))
    result = json.loads(path.read_text())
    figure.draw_study(result, tmp_path, ("png",))
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]
    merit, similarity = drawn[0].axes[:2]
    heading = tasks.find(result.get("task", tasks.DEFAULT)).column().heading
    assert heading in (merit.get_xlabel(), merit.get_ylabel())
    assert heading in path.with_name("table.md").read_text()
    assert similarity.containers or similarity.lines or similarity.images
