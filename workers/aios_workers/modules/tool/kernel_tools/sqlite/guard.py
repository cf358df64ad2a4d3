"""What a query may do: read. SQLite asks before each step of a statement that it prepares."""

import sqlite3
import time
from collections.abc import Callable

LOOK_EVERY = 10_000  # steps of SQLite's machine
MOST_CELL_BYTES = 16 * 1024 * 1024  # that a text or a blob has while it is worked on
_ALLOWED = frozenset(
    {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_RECURSIVE,
    }
)
# What tells of tables, and changes nothing.
_PRAGMAS = frozenset(
    {
        *("table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo"),
        *("foreign_key_list", "collation_list", "function_list", "user_version", "encoding"),
    }
)
# Functions that reach beyond the database, should a build have them.
_FUNCTIONS = frozenset(
    {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "lsdir", "fsdir"}
)
_LIMITS = (
    (sqlite3.SQLITE_LIMIT_LENGTH, MOST_CELL_BYTES),
    (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 100_000),
    (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200),
    (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 100),
    (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
    (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000),
    (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 1),
    (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
)


def guard(connection: sqlite3.Connection, limit_s: float) -> Callable[[], str]:
    """Let a connection read, so long; return what says which step was refused, or nothing."""
    refused: list[str] = []

    def ask(action: int, first: str | None, second: str | None, *_: object) -> int:
        if action in _ALLOWED:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in _FUNCTIONS:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_UPDATE and first == "sqlite_master":
            # So SQLite declares tables that are functions (json_each). A statement cannot do it:
            # it would need writable_schema, which is no pragma that may be set.
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_PRAGMA and (first or "").lower() in _PRAGMAS:
            return sqlite3.SQLITE_OK
        name = _NAMES.get(action, f"action {action}")
        named = second if action == sqlite3.SQLITE_FUNCTION else first
        refused.append(f"{name} {named}" if named else name)
        return sqlite3.SQLITE_DENY

    until = time.monotonic() + limit_s
    for limit, most in _LIMITS:
        connection.setlimit(limit, most)
    connection.set_progress_handler(lambda: time.monotonic() > until, LOOK_EVERY)
    connection.set_authorizer(ask)
    return lambda: refused[0] if refused else ""


_NAMES = {
    getattr(sqlite3, f"SQLITE_{name.upper()}"): name.replace("_", " ")
    for name in (
        *("attach", "detach", "pragma", "function", "insert", "update", "delete", "transaction"),
        *("create_table", "create_index", "create_view", "create_trigger", "create_temp_table"),
        *("create_temp_view", "create_vtable", "drop_table", "drop_index", "drop_view"),
        *("alter_table", "reindex", "analyze", "savepoint"),
    )
}
