"""timm's train.py beside the engine: what it is asked for, and what its account is read as."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from deepvit.benchmarking.engine import ENGINE, make_photographs, run_engine_suite
from deepvit.benchmarking.run import benchmark
from deepvit.benchmarking.tables import table_of
from deepvit.benchmarking.timm_script import TIMM, arguments, rate_of, timm_loop
from deepvit.errors import UserError
from deepvit.training.config import TrainConfig

LOG = """
Train: 0 [  30/31 (100%)]  Loss: 2.30 (2.3)  Time: 0.100s,   640.00/s  (0.200s,  320.00/s)  LR: 1.000e-03  Data: 0.01 (0.01)
Train: 1 [   0/31 (  3%)]  Loss: 2.30 (2.3)  Time: 9.000s,     7.11/s  (9.000s,    7.11/s)  LR: 1.000e-03  Data: 0.01 (0.01)
Train: 1 [  30/31 (100%)]  Loss: 2.30 (2.3)  Time: 0.100s,   640.00/s  (0.160s,  400.00/s)  LR: 1.000e-03  Data: 0.01 (0.01)
Train: 2 [  30/31 (100%)]  Loss: 2.30 (2.3)  Time: 0.100s,   640.00/s  (0.640s,  100.00/s)  LR: 1.000e-03  Data: 0.01 (0.01)
"""
SCRIPT = f"""
# create_model
import pathlib, sys
pathlib.Path("words.txt").write_text("\\n".join(sys.argv[1:]))
print('''{LOG}''')
"""
SHAPE = {"depth": 1, "embed_dim": 16, "num_heads": 2, "img_size": 32, "patch_size": 16}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def test_the_rate_is_that_of_whole_epochs_but_the_first() -> None:
    assert rate_of(LOG) == pytest.approx(2 / (1 / 400 + 1 / 100))
    with pytest.raises(UserError, match="no images a second"):
        rate_of(LOG[: LOG.index("Train: 1")])


def test_it_is_asked_for_the_same_run(tmp_path: Path, script: Path) -> None:
    options = {"data": str(make_photographs(tmp_path / "photographs.tar", 8)), "batch_size": 4, "epochs": 2}
    shape = {"model": "deepvit_tiny_d16_patch4_32", "model_args": {"depth": 2}}
    found = timm_loop({**options, **shape}, str(script))
    assert found["steps_per_second"] == pytest.approx(2 / (1 / 400 + 1 / 100) / 4)
    words = (tmp_path / "words.txt").read_text().split("\n")
    given = arguments(TrainConfig(**options, **shape), tmp_path / "photographs", 32)
    assert words[: len(given)] == given
    asked = dict(pairwise(words))
    assert asked["--model"] == "deepvit_tiny_d16_patch4_32"
    assert asked["--model-kwargs"] == "depth=2"
    assert asked["--batch-size"] == "4"
    assert asked["--num-classes"] == "2"
    assert (tmp_path / "photographs" / "train" / "class0").is_dir()


@pytest.mark.slow
def test_the_suite_takes_it_in_turn(script: Path) -> None:
    result = run_engine_suite(
        images=64, batch_size=16, model_args=SHAPE, rounds=1, epochs=2, timm_script=str(script)
    )
    assert result["timm_ratios"] == [
        result["sides"][ENGINE]["steps_per_second"] / result["sides"][TIMM]["steps_per_second"]
    ]
    assert "times the steps of timm's train.py" in table_of(result)


def test_mistakes_are_told_before_anything_runs(tmp_path: Path, script: Path) -> None:
    with pytest.raises(UserError, match="belongs to suite engine"):
        benchmark("model", timm_script=str(script))
    with pytest.raises(UserError, match="is no file"):
        benchmark("engine", timm_script=str(tmp_path / "none.py"))
    (tmp_path / "other.py").write_text("print(1)")
    with pytest.raises(UserError, match=r"is not timm's train\.py"):
        benchmark("engine", timm_script=str(tmp_path / "other.py"))
    (tmp_path / "fails.py").write_text("create_model = None\nraise SystemExit('no such thing')")
    options = {"data": str(make_photographs(tmp_path / "photographs.tar", 8)), "batch_size": 4, "epochs": 2}
    with pytest.raises(UserError, match="no such thing"):
        timm_loop(options, str(tmp_path / "fails.py"))
