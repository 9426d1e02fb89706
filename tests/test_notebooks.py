"""The notebooks of the guides run from the first cell to the last, and show what they are kept with."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from deepvit import cures

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "make"))


def printed(notebook: object) -> str:
    """All text that the cells print."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]  # type: ignore[index]
    return "\n".join("".join(output.get("text", "")) for output in outputs)


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["cure", "diagnose"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_kept_with_results_and_nothing_of_the_machine(path: Path) -> None:
    kept = json.loads(path.read_text("utf-8"))
    cells = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    assert all(output["output_type"] != "error" for cell in cells for output in cell["outputs"])
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    text = path.read_text("utf-8")
    assert not re.search(r"/(work|root|home|tmp|usr)/", text)
    assert len(text) < 600_000


@pytest.mark.parametrize("name", ["diagnose", pytest.param("cure", marks=pytest.mark.slow)])
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebooks = pytest.importorskip("notebooks", reason="needs nbclient, of deepvit[dev]")
    path = next(path for path in NOTEBOOKS if path.stem == name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    shown = printed(notebooks.run(path, tmp_path))
    if path.stem == "cure":
        assert f"{len(cures.CURES)} in all" in shown
        plain, cured = re.findall(r"([\d.]+)% top-1", shown)
        assert float(cured) > float(plain)
        assert (tmp_path / "side-by-side" / "compare.html").exists()
    else:
        assert (tmp_path / "report" / "report.html").exists()
        intact = int(re.search(r"accuracy on the last 360 digits: (\d+)%", shown).group(1))  # type: ignore[union-attr]
        assert intact > 50
        assert len(re.findall(r"\d+% right", shown)) == 3
