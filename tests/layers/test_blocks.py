"""The syntax that names blocks."""

from __future__ import annotations

import pytest

from deepvit.errors import UserError
from deepvit.layers import parse_blocks


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("none", []),
        (None, []),
        ([], []),
        ("last:2", [4, 5]),
        ("last:0", []),
        ("first:3", [0, 1, 2]),
        ("2-4", [2, 3, 4]),
        ("5", [5]),
        (3, [3]),
        ("4,0, 2-3", [0, 2, 3, 4]),
        ("first:1,last:1", [0, 5]),
        ([5, 1, 1], [1, 5]),
        ((0, 2), [0, 2]),
        (range(3), [0, 1, 2]),
    ],
)
def test_forms(spec, expected):
    assert parse_blocks(spec, 6) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("6", "no block 6 in a network of 6 blocks"),
        ("4-6", "no block 6"),
        ("9-12", "no block 9"),
        ("0-99999999999999", "no block 6"),
        (-1, "no block -1"),
        ([0, 7], "no block 7"),
        ("last:7", "has only 6 blocks"),
        ("4-2", "runs backwards; write 2-4"),
        ("some", "'some' is not understood"),
        ("last:-1", "not understood"),
        ("", "not understood"),
        ("1,,2", "not understood"),
        (True, "expected"),
        ([1.0], "expected"),
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_blocks(spec, 6)
    assert "\n" not in str(caught.value)
