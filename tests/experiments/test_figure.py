"""The figure of a study with few methods has lines, with many a map whose rows are the methods."""

from __future__ import annotations

from matplotlib.figure import Figure

from deepvit.experiments import figure


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
