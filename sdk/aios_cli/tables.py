"""Tables: with rich on a terminal, aligned plain lines everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import click
import msgspec
from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

MIN_WIDTH = 4  # of a column that shrinks

STATE_STYLES = {
    "running": "green",
    "suspended": "yellow",
    "queued": "",
    "held": "magenta",
    "parked": "magenta",
    "finished": "green",
    "failed": "red",
    "cancelled": "red",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `shrinks`: its cells may be cut short where the terminal is narrow."""

    title: str
    align: Literal["left", "right"] = "left"
    shrinks: bool = False


Row = Sequence[str]


def rich_table(columns: Sequence[Column], rows: Sequence[Row], *, width: int) -> Table:
    """Return the table as rich draws it in `width` columns of a terminal.

    A cell that is a state has the state's colour. Rich itself would take room from every column
    alike, so that one long name hides the numbers: here only columns that shrink give way.
    """
    # The box itself puts one space between columns.
    table = Table(
        box=box.SIMPLE_HEAD, padding=0, pad_edge=False, header_style="bold", show_edge=False
    )
    for column, column_width in zip(columns, fitted_widths(columns, rows, width), strict=True):
        table.add_column(
            column.title,
            justify=column.align,
            width=column_width,
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        table.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in row))
    return table


def fitted_widths(columns: Sequence[Column], rows: Sequence[Row], width: int) -> list[int]:
    """Return each column's width: what its cells need, less where they do not fit together."""
    widths = [
        max(cell_len(line[i]) for line in [[column.title for column in columns], *rows])
        for i in range(len(columns))
    ]
    room = width - (len(columns) - 1)
    shrinking = [i for i, column in enumerate(columns) if column.shrinks]
    while sum(widths) > room and shrinking:
        widest = max(shrinking, key=lambda i: widths[i])
        if widths[widest] <= MIN_WIDTH:
            break
        widths[widest] -= 1
    return widths


def plain_lines(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """Return the table as lines of text: columns aligned, nothing cut, no drawing."""
    titles = [column.title.upper() for column in columns]
    widths = [max(len(line[i]) for line in [titles, *rows]) for i in range(len(columns))]
    lines = []
    for line in [titles, *rows]:
        cells = [
            cell.rjust(width) if column.align == "right" else cell.ljust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def show_table(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Print a table the way the place that it goes to can show it."""
    console = Console()
    if console.is_terminal:
        console.print(rich_table(columns, rows, width=console.width))
    else:
        for line in plain_lines(columns, rows):
            click.echo(line)


def show(renderable: RenderableType) -> None:
    """Print something that rich draws; without a terminal it has no colour."""
    Console(highlight=False, soft_wrap=not Console().is_terminal).print(renderable)


def show_json(value: object) -> None:
    """Print a value as indented JSON: dataclasses, structs, and what JSON knows."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
