"""How things look: tables, times, numbers with their unit.

Tables are drawn with rich on a terminal and are aligned plain lines everywhere else.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import click
import msgspec
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aios_broker.contract.printable import printable
from aios_broker.views.words import seconds

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
T = TypeVar("T")


class Listing(Generic[T]):
    """The table of things of one kind: its columns, and what of a thing stands in each."""

    def __init__(self, *parts: tuple[Column, Callable[[T], object]]) -> None:
        self.columns = tuple(column for column, _ in parts)
        self._cells = tuple(cell for _, cell in parts)

    def rows(self, things: Sequence[T]) -> list[list[str]]:
        """Return the cells, a row per thing."""
        return [[str(cell(thing)) for cell in self._cells] for thing in things]

    def show(self, things: Sequence[T]) -> None:
        """Print the table."""
        show_table(self.columns, self.rows(things))


def rich_table(
    columns: Sequence[Column], rows: Sequence[Row], widths: Sequence[int], *, header: bool = True
) -> Table:
    """Return the table as rich draws it, with columns of these widths (`fitted_widths`).

    A cell that is a state has the state's colour. Rich itself would take room from every column
    alike, so that one long name hides the numbers: here only columns that shrink give way.
    """
    # The box itself puts one space between columns.
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        header_style="bold",
        show_edge=False,
        show_header=header,
    )
    for column, column_width in zip(columns, widths, strict=True):
        table.add_column(
            column.title,
            justify=column.align,
            width=column_width,
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in _plain(rows):
        table.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in row))
    return table


def _plain(rows: Sequence[Row]) -> list[list[str]]:
    """Return rows whose cells are text of one line, whoever wrote it."""
    return [[printable(cell, one_line=True) for cell in row] for row in rows]


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
    shown = _plain(rows)
    widths = [max(len(line[i]) for line in [titles, *shown]) for i in range(len(columns))]
    lines = []
    for line in [titles, *shown]:
        cells = [
            cell.rjust(width) if column.align == "right" else cell.ljust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def show_table(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Print a table the way the place that it goes to can show it."""
    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
        console.print(rich_table(columns, rows, fitted_widths(columns, rows, console.width)))
    else:
        for line in plain_lines(columns, rows):
            say(line)


def show_json(value: object, *, on_one_line: bool = False) -> None:
    """Print a value as JSON: dataclasses, structs, and what JSON knows."""
    text = msgspec.json.encode(value).decode()
    if not on_one_line:
        text = msgspec.json.format(text, indent=2)
    click.echo(text if text.isascii() else "".join(map(_json_escape, text)))


def _json_escape(character: str) -> str:
    """Return a character of JSON so that no terminal obeys it: the value stays the same."""
    if printable(character) == character:
        return character
    return json.dumps(character)[1:-1]


def say(text: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print a text for a person: whatever an agent wrote in it is shown, and does nothing."""
    click.echo(printable(text), nl=nl, err=err)


def write_content(text: str) -> None:
    """Write what somebody keeps: as it is into a file or a pipe, as `say` does on a terminal."""
    if sys.stdout.isatty():
        sys.stdout.write(printable(text))
    else:
        sys.stdout.buffer.write(text.encode())  # whatever the locale's character set
    sys.stdout.flush()


def narrow_seconds(value_s: float) -> str:
    """Return a time in at most six characters, for a column: `340ms`, `12.3s`, `5m20s`, `3d04h`."""
    narrow = seconds(value_s).replace(" ", "")
    return narrow.replace("min", "m").replace("days", "d").replace("day", "d")


def first_words(text: str, limit: int) -> str:
    """Return the beginning of a text on one line, cut at a word where there is one."""
    flat = " ".join(text.split())
    if len(flat) <= limit:
        return flat
    cut = flat[: limit - 1].rpartition(" ")[0]
    return f"{cut or flat[: limit - 1]}…"
