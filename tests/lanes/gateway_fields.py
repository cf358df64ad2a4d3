"""Write what becomes of each field of a request into docs/reference-gateway.md, from the tables.

`./aios python tests/lanes/gateway_fields.py` does it; a test holds the page to it.
"""

from collections.abc import Iterator
from pathlib import Path

from aios_kernel_api.gateway.fields import Fields, rows
from aios_kernel_api.gateway.tables import TABLES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference-gateway.md"
HEADING = "## Every field\n"
INTRODUCTION = """
Made from the gateway's own tables by `./aios python tests/lanes/gateway_fields.py`.
"""


def section() -> str:
    """Return the whole section: a table for each route."""
    tables = [line for path, fields in TABLES.items() for line in table_of(path, fields)]
    return "\n".join((HEADING + INTRODUCTION, *tables)).rstrip() + "\n"


def table_of(path: str, fields: Fields) -> Iterator[str]:
    """Yield the lines of a route's table."""
    yield f"### `POST {path}`\n"
    yield "| field | | |"
    yield "| --- | --- | --- |"
    for name, one in rows(fields):
        words = one.words.replace("|", "\\|")
        if one.harmless:
            usual = ", ".join(f"`{each!r}`" for each in one.harmless)
            words = f"{words} (not for {usual})"
        yield f"| `{name}` | {one.fate} | {words} |"
    yield ""


def written() -> str:
    """Return the page as it stands."""
    return PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    PAGE.write_text(written().partition(HEADING)[0] + section(), encoding="utf-8")
