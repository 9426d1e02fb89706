"""What is printed: tables break no words at 80 columns, what is to be copied stays on one line."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from deepvit import recipes
from deepvit.commands import find
from deepvit.commands.list import KINDS, Listing, listing, show
from deepvit.terminal import column_widths, print_table, say


def words_of(text: str) -> set[str]:
    return set(re.sub(r"[│┃┏┓┗┛└┘├┤┬┴┼─━┡┩╇┳╋]", " ", text).split())


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("what", KINDS)
def test_lists_break_no_word(
    what: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    found = listing(what)
    show(found)
    shown = capsys.readouterr().out
    expected = {word for row in [found.headings[1:], *found.rows] for cell in row for word in cell.split()}
    assert expected <= words_of(shown)
    if found.note:
        assert found.note in shown.splitlines()


@pytest.mark.parametrize("what", KINDS)
def test_a_pattern_that_nothing_contains_is_one_line(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(listing(what, "zzz"))
    shown = capsys.readouterr().out
    assert re.fullmatch(rf"no \w+( source)? contains 'zzz': deepvit list {what} shows all\n", shown), shown


ROWS = [["reattention+diversity", *["95.73 ± 1.37"] * 6], ["plain", *["84.77 ± 9.26"] * 6]]
HEADINGS = ["method", "top-1 accuracy %", "similar blocks", "cross-layer similarity", "patch similarity, last block",
            "s an epoch", "parameters (M)"]  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 200])
def test_tables_of_any_width_break_no_word(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    print_table(HEADINGS, ROWS, console)
    shown = console.file.getvalue()
    assert {w for row in [HEADINGS[1:], *ROWS] for cell in row for w in cell.split()} <= words_of(shown)
    assert max(map(len, shown.splitlines())) <= width


def test_columns_share_what_is_left() -> None:
    assert column_widths([["a", "bb bb bb"], ["a", "b"]], 80) == [1, 8]
    assert column_widths([["a", "bb bb bb"], ["a", "b"]], 15) == [1, 7]
    assert column_widths([["aaaa", "bbbbbbbbbb"]], 15) is None


def test_compared_runs_fit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    keys = ("top1", "similar_blocks", "cross_layer", "cross_layer_centred", "patch_similarity", "seconds_per_epoch",
            "parameters")  # fmt: skip
    names = [f"vit_small_patch16_224-run-{i}" for i in range(6)]
    runs = {name: dict.fromkeys(keys, 1.0) for name in names}
    found = {"runs": runs, "task": "classification", "warnings": [], "data": [], "report": "x" * 90}
    find("compare").show(found)
    shown = capsys.readouterr().out
    assert set(names) <= words_of(shown)
    assert f"report: {'x' * 90}" in shown.splitlines()


def test_a_line_to_copy_is_one_line() -> None:
    console = Console(file=io.StringIO(), width=20)
    command = "deepvit train --resume --out runs/[bold]a-long-name"
    say(command, console)
    assert console.file.getvalue() == command + "\n"


def test_recipes_are_listed_with_whole_sentences() -> None:
    for name in recipes.names():
        for fact, text in recipes.header(name).items():
            assert text.count("(") == text.count(")"), f"{name}: {fact} is cut: {text}"
            assert not text.endswith((",", ";", ":")), f"{name}: {fact} is cut: {text}"
    assert recipes.header("cures")["result"].endswith("(records/cures)")
    assert isinstance(listing("recipes"), Listing)
