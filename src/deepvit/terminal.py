"""Tables and lines for the terminal: at any width no word is broken, and what is to be copied is one line."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

EDGE = 3  # a column's border and padding


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], console: Console | None = None
) -> None:
    """Print a table, its cells folded at blanks; where not even single words fit side by side, each row as lines below it.

    Args:
        headings: one a column; the first column names the row.
        rows: texts, as many in each as there are headings.
        console: where to; by default standard output.
    """
    screen = console or Console()
    widths = column_widths([headings, *rows], screen.width)
    if widths is None:
        print_blocks(headings, rows, screen)
        return
    folded = any(cell_len(cell) > width for row in rows for cell, width in zip(row, widths, strict=True))
    columns = [Column(Text(heading), width=width) for heading, width in zip(headings, widths, strict=True)]
    table = Table(*columns, show_lines=folded)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    screen.print(table)


def column_widths(rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """Widths of the columns of a table that is at most ``width`` wide, none below its longest word; None where none fit."""
    columns = list(zip(*rows, strict=True))
    least = [
        max((cell_len(word) for cell in column for word in cell.split()), default=1) for column in columns
    ]
    whole = [max(cell_len(cell) for cell in column) for column in columns]
    room = width - EDGE * len(columns) - 1
    if sum(least) > room:
        return None

    def capped(cap: int) -> list[int]:
        return [min(wanted, max(word, cap)) for word, wanted in zip(least, whole, strict=True)]

    # The columns that have most to say share what is left alike.
    return capped(max(cap for cap in range(max(whole) + 1) if sum(capped(cap)) <= room))


def print_blocks(headings: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Each row as its name and a line a column, folded at blanks."""
    left = max(len(heading) for heading in headings) + 4
    beside = (
        left + max(len(word) for row in rows for cell in row[1:] for word in cell.split() or [""])
        <= console.width
    )
    for row in rows:
        console.print(Text(row[0], style="bold"), soft_wrap=True)
        for heading, cell in zip(headings[1:], row[1:], strict=True):
            head, indent = f"  {heading}".ljust(left), " " * (left if beside else 4)
            if not beside:
                say(head.rstrip(), console)
                head = indent
            folded = textwrap.wrap(
                cell, console.width, initial_indent=head, subsequent_indent=indent, break_long_words=False,
                break_on_hyphens=False,
            )  # fmt: skip
            say("\n".join(folded or [head.rstrip()]), console)


def say(text: str, console: Console | None = None) -> None:
    """Print a line as it is, however long: paths and commands are copied from it."""
    (console or Console()).print(text, highlight=False, markup=False, soft_wrap=True)
