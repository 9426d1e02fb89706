"""The attention suite at a tiny size: every row is there, measured, and the floor is itself."""

from __future__ import annotations

import json
import math

import pytest
import torch

from deepvit.benchmarking import attention
from deepvit.benchmarking.attention import FLOOR, OFFICIAL, Case, prepare, run_attention_suite
from deepvit.errors import UserError

TINY = {"rounds": 2, "heads": 3, "head_width": 8, "images": 2}


def test_tiny_run():
    result = run_attention_suite((9, 18), dtypes=("float32", "float16"), memory=False, **TINY)
    assert json.loads(json.dumps(result, allow_nan=False)) == json.loads(json.dumps(result))
    cases = [(row["tokens"], row["dtype"], row["mode"]) for row in result["rows"]]
    assert cases == [(n, d, m) for n in (9, 18) for d in ("float32", "float16") for m in ("eval", "train")]
    for row in result["rows"]:
        able = {"streaming", "native"} if row["dtype"] == "float32" else {"streaming"}
        assert set(row["sides"]) == {FLOOR, OFFICIAL} | able | ({"triton"} & set(row["sides"]))
        assert row["sides"][FLOOR]["ratio"] == 1
        for side in row["sides"].values():
            assert side["rounds"] == 2
            assert 0 < side["min_s"] <= side["median_s"] <= side["max_s"]
    for growth in result["growth_with_tokens"].values():
        assert growth["tokens"] == [9, 18]
        assert math.isfinite(growth["exponent"])


def test_memory_is_that_of_the_side_alone():
    """At this size the official formulation holds several maps of 9.4 MB, and streaming one small block."""
    case = Case(1, 640, "float32", True, heads=6, head_width=16)
    used = {side: attention.isolated(attention.memory_of, case, side) for side in (OFFICIAL, "streaming")}
    assert used[OFFICIAL] > 3 * 4 * 6 * 640**2
    assert used["streaming"] < 0.5 * used[OFFICIAL]


@pytest.mark.parametrize("train", [False, True])
def test_sides_do_the_same_work(train):
    case = Case(2, 9, "float32", train, heads=2, head_width=8)
    reference, streaming = (prepare(side, case)() for side in (OFFICIAL, "streaming"))
    torch.testing.assert_close(streaming, reference, rtol=1e-4, atol=1e-4)
    plain = prepare(FLOOR, case)()
    assert len(plain) == 1 if train else plain.shape == (2, 2, 9, 8)


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"'float8'.*float32, bfloat16"):
        run_attention_suite((9,), dtypes=("float8",), memory=False, **TINY)
    with pytest.raises(UserError, match="2 or more"):
        run_attention_suite((1,), memory=False, **TINY)
    with pytest.raises(UserError, match="'nvidia' is not"):
        run_attention_suite((9,), backends=("nvidia",), memory=False, **TINY)
