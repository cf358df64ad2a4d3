"""What the command line says: its own words, any text in UTF-8, whatever the terminal."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from aios_broker.contract.errors import InvalidSyscall, NotFound
from aios_broker.contract.syscall import EXPECTED
from aios_cli.error_words import command_of, in_commands, option_of_field, spoken
from aios_cli.main import COMMANDS, cli
from aios_cli.text import argument, utf8

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("*/aios_*/__init__.py"))
BROKEN = "caf\udce9"  # the byte E9 of Latin 1, as Python has it among the arguments
LIMIT_S = 30


def command(*words: str) -> tuple[click.Command, str]:
    return command_of(cli, click.Context(cli, info_name="aios"), words)


@pytest.mark.parametrize(
    ("words", "field", "said"),
    [
        (("submit", "--temperature", "9"), "body.temperature", "--temperature"),
        (("submit",), "body.messages[0].content", "PROMPT"),
        (("submit",), "body.format.pattern", "--schema, --regex or --grammar"),
        (("submit",), "body.stop[1]", "--stop 1"),
        (("memory", "add", "x"), "body.content", "CONTENT"),
        (("memory", "search", "x"), "body.k", "-k"),
        (("files", "mv"), "body.to", "TO"),
        (("files", "mv"), "agent", "agent"),
    ],
)
def test_a_field_is_named_as_it_is_typed(words: tuple[str, ...], field: str, said: str) -> None:
    assert option_of_field(field, command(*words)[0]) == said


def test_a_remedy_names_commands_and_not_the_kernels_operations() -> None:
    error = NotFound(
        "no such file", field="body.path", remedy="look at what is there: storage.list"
    )
    assert spoken(error, *command("files", "read", "x")) == (
        "PATH: no such file (look at what is there: `aios files ls`)"
    )
    assert (
        in_commands("see memory.list, memory.alloc")
        == "see `aios memory list`, `aios memory alloc`"
    )
    assert (
        in_commands("clear some (context.clear)") == "clear some (`me.context.clear()` of the SDK)"
    )
    ranged = InvalidSyscall("Expected `int` >= 1", field="body.max_tokens", remedy=EXPECTED)
    assert spoken(ranged, *command("submit", "x")) == (
        "--max-tokens: Expected `int` >= 1 (see `aios submit --help`)"
    )


def test_a_wrong_value_is_told_so_before_a_kernel_is_looked_for() -> None:
    done = CliRunner().invoke(cli, ["submit", "--max-tokens", "0", "x"])
    assert (done.exit_code, done.stderr) == (
        4,
        "invalid-syscall: --max-tokens: Expected `int` >= 1 (see `aios submit --help`)\n",
    )
    [error] = json.loads(
        CliRunner().invoke(cli, ["submit", "--max-tokens", "0", "x", "--json"]).stdout
    ).values()
    assert error["field"] == "body.max_tokens"  # for programs: as the contract has it


def texts(package: Path) -> Iterator[tuple[str, str]]:
    """Yield every text of a package's code that is no docstring, with its file."""
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                body[0].value = ast.Constant(None)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path.name, node.value


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_nobody_is_sent_to_a_page_that_only_a_checkout_has(package: Path) -> None:
    assert [found for found in texts(package) if "docs/" in found[1]] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_an_argument_that_is_no_text_is_a_typed_error_in_every_command(name: str) -> None:
    done = CliRunner().invoke(cli, [name, BROKEN])
    assert done.exit_code == 4
    assert done.stderr.startswith("invalid-syscall: argument: byte 3 is not of a text in UTF-8")


def test_what_is_read_from_a_pipe_is_text_too() -> None:
    for command_line in (["submit", "-"], ["memory", "add", "-"]):
        done = CliRunner().invoke(cli, command_line, input=b"caf\xe9")
        assert (done.exit_code, done.stderr.partition(":")[0]) == (4, "invalid-syscall")
    assert utf8("café".encode(), "x") == "café"


def test_bytes_that_the_locale_has_no_character_for_are_read_as_utf_8() -> None:
    typed = "café".encode().decode("ascii", "surrogateescape")
    assert argument(typed) == "café"


@pytest.mark.parametrize(
    "locale",
    [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["C", "ASCII alone"],
)
def test_a_c_locale_works(locale: dict[str, str], tmp_path: Path) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environ = {**kept, "HOME": str(tmp_path), **locale}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "aios_cli", "ps", "--module", "café"],
        env=environ,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    said = done.stderr.decode().replace("\\xe9", "é")  # as it is shown where it is no character
    assert (done.returncode, said.partition(" (")[0]) == (
        4,
        "unknown-module: module: there is no module 'café'",
    )
