"""Figures for papers: the right lines and cells, in each format; clear words when nothing can be drawn."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from report.example import example_measurements

from deepvit.errors import UserError
from deepvit.report import figures, palette, write_report
from deepvit.report.charts import shown_metrics


@pytest.fixture(scope="module")
def two():
    return {
        "plain": example_measurements("plain", depth=5, heads=2, grid=4, images=1, collapse_from=2),
        "cured": example_measurements(
            "cured", depth=5, heads=2, grid=4, images=1, collapse_from=None, mixed=True
        ),
    }


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look inside."""
    kept = []
    save = Figure.savefig

    def keep(self, *args, **kwargs):
        kept.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


def test_depth_profile_draws_every_model_and_the_threshold(two, tmp_path, drawn):
    path = figures.depth_profile(two, tmp_path / "deep" / "profile.png")
    assert Image.open(path).size[0] > 800
    axis = drawn[0].axes[0]
    lines = {line.get_label(): line for line in axis.get_lines()}
    for name, result in two.items():
        expected = [np.nan if v is None else v for v in result.series["attention_similarity"].values]
        np.testing.assert_allclose(lines[name].get_ydata(), expected)
    assert any(list(line.get_ydata()) == [0.9, 0.9] for line in axis.get_lines())
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["plain", "cured"]


def test_matrices_share_one_scale_and_show_the_values(two, tmp_path, drawn):
    figures.matrix_row(two, tmp_path / "m.svg", "cka")
    root = xml.etree.ElementTree.parse(tmp_path / "m.svg").getroot()
    assert root.tag.endswith("svg")
    images = [axis.get_images()[0] for axis in drawn[0].axes[:2]]
    np.testing.assert_allclose(images[0].get_array(), np.array(two["plain"].matrices["cka"], dtype=float))
    assert images[0].get_clim() == images[1].get_clim() == (0.0, 1.0)
    two["plain"].matrices["cka"][0][1] = -0.5
    figures.matrix_row(two, tmp_path / "m.png", "cka")
    assert drawn[1].axes[0].get_images()[0].get_clim() == (-1.0, 1.0)


def test_overview_and_film_strip(two, tmp_path, drawn):
    figures.overview(two, tmp_path / "o.png")
    assert [axis.get_title(loc="left") for axis in drawn[0].axes[1:3]] == ["plain", "cured"]
    figures.film_strip(two, tmp_path / "f.pdf", columns=3)
    frames = [axis for axis in drawn[1].axes if axis.get_images()]
    assert len(frames) == 10
    with pytest.raises(UserError, match="no maps of image 7"):
        figures.film_strip(two, tmp_path / "f.png", image=7)


def test_write_report_with_figures_draws_each_metric_twice(two, tmp_path):
    results = example_measurements(depth=3, heads=1, grid=2, images=1)
    write_report(results, tmp_path, figures=True)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    stems = (
        {f"profile-{key}" for key in shown_metrics([results])}
        | {f"matrix-{key}" for key in results.matrices}
        | {"maps"}
    )
    assert names == {f"{stem}{suffix}" for stem in stems for suffix in (".png", ".svg")}


def test_what_cannot_be_drawn_is_said(two, tmp_path):
    with pytest.raises(UserError, match="no metric 'nope'"):
        figures.depth_profile(two, tmp_path / "x.png", "nope")
    with pytest.raises(UserError, match="no matrix 'nope'"):
        figures.matrix_row(two, tmp_path / "x.png", "nope")
    with pytest.raises(UserError, match=r"\.png, \.svg or \.pdf"):
        figures.depth_profile(two, tmp_path / "x.bmp")
    bare = example_measurements(depth=3)
    bare.series["entropy"].values = [None] * 3
    with pytest.raises(UserError, match="measured for 'entropy'"):
        figures.depth_profile({"bare": bare}, tmp_path / "x.png", "entropy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_ramp_is_monotone_in_lightness_on_both_arms(mode):
    ramp = palette.ramp(mode)
    light = [palette._oklab(ramp[step])[0] for step in range(-palette.STEPS, palette.STEPS + 1)]
    middle = palette.STEPS
    sign = -1 if mode == "light" else 1
    for arm in (light[middle:], light[middle::-1]):
        assert all(sign * (b - a) > 0 for a, b in itertools.pairwise(arm))
    assert len(ramp) == 2 * palette.STEPS + 1
    assert palette.step_of(2.0) == palette.STEPS
    assert palette.step_of(-0.5) == -palette.STEPS // 2
