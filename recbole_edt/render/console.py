"""Tables and pages at the terminal, or as plain text in a pipe. No text in them is obeyed."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from recbole_edt.cleaning import harmless
from recbole_edt.render.sections import Listing, Page
from recbole_edt.render.tables import Column, ResultTable, groups_of

_TONES = {"good": "green", "pale": "dim", "": ""}


def print_result(table: ResultTable, subtitle: str = "", file: IO[str] | None = None) -> None:
    """Print any table of results.

    The best are bold, or starred where there is no bold. A terminal too narrow for all groups of columns side by side
    gets them one below the other.

    Args:
        table: what to print; its note comes last.
        subtitle: a second line below the title.
        file: where to print; None is the standard output.
    """
    console = _console(file)
    for line in filter(None, (table.title, subtitle)):
        console.print(_text(console, line))
    _print_table(console, table, _fitting(console, table))


def print_page(page: Page, file: IO[str] | None = None) -> None:
    """Print a page's texts, tables, whose cells may take several lines, and listings; pictures are left out."""
    console = _console(file)
    console.print(_text(console, page.title, "bold"))
    for line in page.lines:
        console.print(_text(console, line))
    for section in page.sections:
        console.print("\n", _text(console, section.title, "bold"), sep="")
        for part in section.parts:
            if isinstance(part, str):
                console.print(_text(console, part))
            elif isinstance(part, ResultTable):
                _print_table(console, part, [_block(console, part, 0, len(part.columns), folds=True)])
            elif isinstance(part, Listing):
                heading = [_text(console, part.title, "underline")] if part.title != section.title else []
                body = Padding(_text(console, part.text or "none"), (0, 0, 1, 2), expand=False)
                console.print(*heading, body, sep="\n")


def _console(file: IO[str] | None) -> Console:
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = 1000
    return console


def _print_table(console: Console, table: ResultTable, parts: Sequence[Table]) -> None:
    for part in parts:
        console.print(part, end="\n\n")
    if console.color_system is None and table.best().any():
        console.print(Text("* best of its " + table.best_of))
    if table.note:
        console.print(_text(console, table.note), soft_wrap=True)


def _text(console: Console, text: str, style: str = "") -> Text:
    """Text whose marks this terminal can show."""
    if not console.encoding.lower().startswith("utf"):
        text = text.replace("†", "+").replace("±", "+-")
    return Text(harmless(text), style)


def _fitting(console: Console, table: ResultTable) -> list[Table]:
    """One table with all groups side by side if the terminal is wide enough, else one table per group."""
    groups = [(first, first + width) for first, width in _spans(table.columns[1:])]
    whole = _rich_table(console, table, groups)
    wide = console.options.update(max_width=10_000)
    if console.measure(whole, options=wide).maximum <= console.width:
        return [whole]
    return [_rich_table(console, table, [group]) for group in groups]


def _spans(columns: Sequence[Column]) -> Iterator[tuple[int, int]]:
    """First place and width of each group, among all columns of the table; what has no group stands together."""
    place = 1
    for _, several in groupby(groups_of(columns), key=lambda group: group[0]):
        width = sum(width for _, width in several)
        yield place, width
        place += width


def _rich_table(console: Console, table: ResultTable, groups: Sequence[tuple[int, int]]) -> Table:
    """A block per group under its name; blocks are tables of their own, so that a heading can span columns."""
    outer = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    outer.add_column("")
    blocks = [_block(console, table, 0, 1)]
    for first, end in groups:
        outer.add_column(Text(table.columns[first].group), justify="center")
        blocks.append(_block(console, table, first, end))
    outer.add_row(*blocks)
    return outer


def _block(console: Console, table: ResultTable, first: int, end: int, folds: bool = False) -> Table:
    """The columns from ``first`` to before ``end``; ``folds`` lets long cells take several lines."""
    normal, star = ("", "") if console.color_system is not None else (" ", "*")
    look = box.SIMPLE_HEAD if folds else None
    block = Table(box=look, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="")
    columns = table.columns[first:end]
    for place, column in enumerate(columns, first):
        ending = normal if column.best else ""
        right = table.is_numeric(place) if folds else place > 0
        layout: Any = {"justify": "right" if right else "left", "no_wrap": not folds, "overflow": "fold"}
        block.add_column(_text(console, column.name + ending), **layout)
    for row, row_best, tone in zip(table.shown(), table.best(), table.tones or [""] * len(table.rows), strict=True):
        cells = []
        for text, best, column in zip(row[first:end], row_best[first:end], columns, strict=True):
            ending = (star if best else normal) if column.best else ""
            cells.append(_text(console, text + ending, "bold" if best else ""))
        block.add_row(*cells, style=_TONES[tone])
    return block


def printed(table: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=1000, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())
