"""A file as tables: an SQLite database as it is, a CSV file as the table `data`."""

import csv
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from aios_workers.modules.tool.kernel_tools.wrong import WrongArgument

MAGIC = b"SQLite format 3\x00"
TABLE = "data"
SNIFFED = 64 * 1024  # characters by which the kind of a CSV file is told
MOST_COLUMNS = 1_000
MOST_TABLES = 100  # that are told
BATCH = 1_000
_INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,17})\Z")
_REAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?\Z")


def opened(place: Path, path: str) -> sqlite3.Connection:
    """Return a connection that has a file's tables; nothing is written to the file.

    Raises:
        WrongArgument: It is neither a database nor a table of text.
    """
    if place.is_dir():
        raise WrongArgument("path", f"{path!r} is a directory: name a file in it")
    with place.open("rb") as file:
        is_database = file.read(len(MAGIC)) == MAGIC
    if is_database:
        uri = f"{place.absolute().as_uri()}?mode=ro&immutable=1"
        connection = sqlite3.connect(uri, uri=True, cached_statements=0)
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
    else:
        connection = sqlite3.connect(":memory:", cached_statements=0)
        _load(connection, place, path)
    connection.execute("PRAGMA query_only = ON")
    return connection


def described(connection: sqlite3.Connection) -> list[dict[str, object]]:
    """Return the tables and views, each with its columns."""
    sql = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') ORDER BY name LIMIT ?"
    names = [str(name) for (name,) in connection.execute(sql, (MOST_TABLES,))]
    found: list[dict[str, object]] = []
    for name in names:
        rows = connection.execute("SELECT name, type FROM pragma_table_info(?)", (name,)).fetchall()
        found.append({"table": name, "columns": [f"{row[0]} {row[1]}".strip() for row in rows]})
    return found


def _load(connection: sqlite3.Connection, place: Path, path: str) -> None:
    """Make the table of a CSV file; a column of nothing but numbers is one of numbers."""
    try:
        with place.open(encoding="utf-8-sig", newline="") as file:
            sample = file.read(SNIFFED)
            file.seek(0)
            rows = csv.reader(file, _dialect(sample))
            names = _names(next(rows, []))
            if not names:
                raise WrongArgument("path", f"{path!r} has no first line with names of columns")
            table = ", ".join(f'"{name}"' for name in names)
            connection.execute(f'CREATE TABLE "{TABLE}" ({table})')
            kinds = [set[str]() for _ in names]
            _insert(connection, names, _fitted(rows, kinds))
    except (UnicodeDecodeError, csv.Error) as error:
        raise WrongArgument(
            "path", f"{path!r} is neither an SQLite database nor a CSV file in UTF-8: {error}"
        ) from None
    _type(connection, names, kinds)


def _dialect(sample: str) -> type[csv.Dialect]:
    try:
        return csv.Sniffer().sniff(sample, delimiters=",;\t|")
    except csv.Error:
        return csv.excel


def _names(header: Sequence[str]) -> list[str]:
    if len(header) > MOST_COLUMNS:
        raise WrongArgument("path", f"it has {len(header)} columns, the limit is {MOST_COLUMNS}")
    found: list[str] = []
    for at, text in enumerate(header, 1):
        name = text.strip().replace('"', "'") or f"column_{at}"
        while name.lower() in {each.lower() for each in found}:
            name = f"{name}_{at}"
        found.append(name)
    return found


def _fitted(rows: Iterator[list[str]], kinds: list[set[str]]) -> Iterator[list[str | None]]:
    """Yield rows with as many cells as there are columns, and note of what kind the cells are."""
    width = len(kinds)
    for row in rows:
        if not row:
            continue
        cells: list[str | None] = [cell or None for cell in row[:width]]
        cells += [None] * (width - len(cells))
        for cell, seen in zip(cells, kinds, strict=True):
            if cell is not None and "text" not in seen:
                is_whole = _INTEGER.match(cell) is not None
                seen.add("integer" if is_whole else "real" if _REAL.match(cell) else "text")
        yield cells


def _insert(
    connection: sqlite3.Connection, names: Sequence[str], rows: Iterator[list[str | None]]
) -> None:
    places = ", ".join("?" * len(names))
    connection.executemany(f'INSERT INTO "{TABLE}" VALUES ({places})', rows)


def _type(connection: sqlite3.Connection, names: Sequence[str], kinds: list[set[str]]) -> None:
    types = [
        "TEXT" if "text" in seen or not seen else "REAL" if "real" in seen else "INTEGER"
        for seen in kinds
    ]
    columns = ", ".join(f'"{name}" {kind}' for name, kind in zip(names, types, strict=True))
    connection.execute(f'ALTER TABLE "{TABLE}" RENAME TO "loaded"')
    connection.execute(f'CREATE TABLE "{TABLE}" ({columns})')
    connection.execute(f'INSERT INTO "{TABLE}" SELECT * FROM "loaded"')
    connection.execute('DROP TABLE "loaded"')
    connection.commit()
