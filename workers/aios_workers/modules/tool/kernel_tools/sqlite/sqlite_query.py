"""Runs one query and tells its rows, within bounds."""

import base64
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from aios_workers.modules.tool.kernel_tools.sqlite.guard import guard
from aios_workers.modules.tool.kernel_tools.sqlite.tables import described, opened
from aios_workers.modules.tool.kernel_tools.stored import place_of
from aios_workers.modules.tool.kernel_tools.wrong import WrongArgument

LIMIT_S = 10.0
MOST_BYTES = 512 * 1024  # of all rows together
MOST_CELL = 20_000  # characters or bytes of one
MOST_TOLD_TABLES = 1_500  # characters of the tables that an error tells


def query(
    path: str,
    query: str = "",
    parameters: Sequence[Any] | Mapping[str, Any] = (),
    max_rows: int = 100,
) -> dict[str, Any]:
    """Return the columns and rows of a query; without one the tables."""
    try:
        connection = opened(place_of(path), path)
        refused = guard(connection, LIMIT_S)
        tables = described(connection)
    except sqlite3.Error as error:
        raise WrongArgument("path", f"{path!r} cannot be read as a database: {error}") from None
    if not query.strip():
        return {"tables": tables}
    try:
        cursor = connection.execute(query, _values(parameters))
        return _rows(cursor, max_rows)
    except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
        raise WrongArgument("query", _why(error, refused(), tables)) from None


def _values(given: Sequence[Any] | Mapping[str, Any]) -> Any:  # noqa: ANN401
    return dict(given) if isinstance(given, Mapping) else tuple(given)


def _rows(cursor: sqlite3.Cursor, most: int) -> dict[str, Any]:
    columns = [column[0] for column in cursor.description or ()]
    rows: list[list[Any]] = []
    size, more = 0, False
    for row in cursor:
        cells = [_cell(cell) for cell in row]
        size += sum(len(str(cell)) for cell in cells)
        if len(rows) == most or size > MOST_BYTES:
            more = True
            break
        rows.append(cells)
    told: dict[str, Any] = {"columns": columns, "rows": rows}
    if more:
        told["more"] = True
    return told


def _cell(value: object) -> object:
    """Return a value as JSON has it; a long one by its beginning, bytes in base64."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value[:MOST_CELL]).decode(), "bytes": len(value)}
    if isinstance(value, str) and len(value) > MOST_CELL:
        return f"{value[:MOST_CELL]}[... {len(value) - MOST_CELL} characters left out ...]"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value


def _why(error: Exception, refused: str, tables: list[dict[str, object]]) -> str:
    if refused:
        return f"a query may only read: {refused} is not allowed"
    if "interrupted" in str(error):
        return f"it ran for longer than {LIMIT_S:g} s: read fewer rows, or join by what is indexed"
    told = "; ".join(f"{each['table']}({', '.join(each['columns'])})" for each in tables)  # type: ignore[arg-type]
    return f"{error}; the tables are {told[:MOST_TOLD_TABLES] or 'none'}"
