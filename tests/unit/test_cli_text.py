"""What agents say is text wherever the command line shows it."""

import ast
import json
from pathlib import Path

import pytest

from aios_cli.tables import Column, plain_lines, rich_table, say, show_json, write_content
from tests.unit.test_printable import EVIL

CLI = Path(__file__).resolve().parents[2] / "sdk" / "aios_cli"


def test_nothing_is_printed_but_through_one_door() -> None:
    """`click.echo` and `print` write what they are given; `say` writes text.

    `main.py` prints ASCII JSON, and does not wait for tables to be imported.
    """
    found = [
        f"{path.name}:{node.lineno}"
        for path in CLI.rglob("*.py")
        if path.name not in ("main.py", "tables.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in ("echo", "secho", "style"))
        or (isinstance(node, ast.Name) and node.id == "print")
    ]
    assert found == [], "print by aios_cli.tables: say, show_json, write_content"


def test_a_line_a_cell_and_a_value_do_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"it says {EVIL}")
    for line in plain_lines((Column("What"), Column("Then")), [(f"{EVIL}\nforged row", "x")]):
        say(line)
    show_json({"said": EVIL})
    show_json([EVIL], on_one_line=True)
    shown = capsys.readouterr().out
    assert not [each for each in EVIL if each in shown and not each.isprintable()]
    assert len(shown.splitlines()) == 1 + 2 + 3 + 1
    assert json.loads(shown.splitlines()[-1]) == [EVIL]


def test_a_table_of_a_terminal_is_text() -> None:
    [cells] = [list(column.cells) for column in rich_table((Column("A"),), [(EVIL,)], [40]).columns]
    assert "\x1b" not in str(cells)


def test_content_is_itself_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    write_content(EVIL)
    assert capsys.readouterr().out == EVIL
