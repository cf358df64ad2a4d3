"""Tables: with rich on a terminal, aligned plain lines everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import click
import msgspec
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

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


def rich_table(columns: Sequence[Column], rows: Sequence[Row], *, title: str = "") -> Table:
    """Return the table as rich draws it; a cell that is a state has the state's colour."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title or None,
                  title_justify="left", header_style="bold", show_edge=False)  # fmt: skip
    for column in columns:
        table.add_column(
            column.title,
            justify=column.align,
            no_wrap=True,
            overflow="ellipsis",
            min_width=4 if column.shrinks else len(column.title),
            ratio=None,
        )
    for row in rows:
        table.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in row))
    return table


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
        console.print(rich_table(columns, rows))
    else:
        for line in plain_lines(columns, rows):
            click.echo(line)


def show(renderable: RenderableType) -> None:
    """Print something that rich draws; without a terminal it has no colour."""
    Console(highlight=False, soft_wrap=not Console().is_terminal).print(renderable)


def show_json(value: object) -> None:
    """Print a value as indented JSON: dataclasses, structs, and what JSON knows."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
