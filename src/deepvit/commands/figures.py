"""``deepvit figures``: the papers' figures from a study's records."""

from __future__ import annotations

from pathlib import Path

from deepvit.commands.command import Command
from deepvit.experiments.paper_figures import draw_paper_figures
from deepvit.terminal import say


def figures(study: str, out: str | None = None) -> list[Path]:
    """Draw what papers on deep ViTs draw: accuracy and similar blocks over depth, similarity over blocks, maps.

    Args:
        study: folder of a study that ended, or a record of one (study.json and profiles.json).
        out: folder for the PNG files; by default ``figures`` in the study's folder.

    Returns:
        the files that were written.

    Raises:
        UserError: the folder holds no study, or none with collapse reports.
    """
    return draw_paper_figures(study, out)


def show(files: list[Path]) -> None:
    """Print the paths."""
    for file in files:
        say(f"figure: {file}")


COMMAND = Command(
    figures,
    show,
    examples=("deepvit figures demo", "deepvit figures records/photographs --out figures"),
)
