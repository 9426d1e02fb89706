"""What a study looks at before it writes anything or takes long: its data, and one network of every kind."""

from __future__ import annotations

from pathlib import Path

from deepvit.errors import UserError
from deepvit.experiments.grid import StudyConfig, cells, config_of
from deepvit.training.devices import Devices
from deepvit.training.parts import opened_data, prepared


def rehearse(config: StudyConfig, done: Path | None) -> None:
    """Open the data, and build each method at each depth once with its loss, without decoding an image.

    Args:
        config: the study.
        done: folder of runs; those that lie there finished are not built again. None: there are none.

    Raises:
        UserError: what the first run of a kind would have said, after its name.
    """
    grid = [
        (cell, config_of(config, cell)) for cell in cells(config)
    ]  # all options first: that costs nothing
    Devices.read(config.train.run.devices).check(config.train.run.devices)
    data, seen = None, set()
    for cell, options in grid:
        kind = (cell.method, cell.depth)
        if kind in seen or (done is not None and (done / cell.label / "run.json").exists()):
            continue
        seen.add(kind)
        data = opened_data(options) if data is None else data
        try:
            prepared(options, data).loaders.check()
        except UserError as error:
            raise UserError(f"{cell.label}: {error}") from None
