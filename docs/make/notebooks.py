"""Run the notebooks of the guides, in a folder of their own.

``python docs/make/notebooks.py`` runs them and says how long each took; ``--write`` keeps what they show.
tests/test_notebooks.py runs them too.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def run(path: Path, folder: str | Path) -> nbformat.NotebookNode:
    """The notebook with what its cells show now; an error in a cell is raised."""
    notebook = nbformat.read(path, 4)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    for cell in notebook.cells:  # when it ran is no result
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":  # nor are warnings of libraries, which name folders of this machine
            cell.outputs = [shown for shown in cell.outputs if shown.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


if __name__ == "__main__":
    for notebook_path in sorted(NOTEBOOKS.glob("*.ipynb")):
        began = time.time()
        with tempfile.TemporaryDirectory() as place:
            done = run(notebook_path, place)
        print(f"{notebook_path.name}: {time.time() - began:.0f} s")
        if "--write" in sys.argv:
            nbformat.write(done, notebook_path)
