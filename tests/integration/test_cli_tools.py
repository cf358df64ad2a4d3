"""`aios tools`, without a kernel: added when it can be loaded, tried out, removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aios_cli.main import cli

MODULE = '''
from aios_sdk import tool

@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    print("adding")
    return a + b

@tool(name="acme/named")
def named() -> str:
    return "named"

def positional(a, /):
    return a
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mymodule_of_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def aios(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["--state-dir", str(folder / "state"), "tools", *words])


def test_a_function_is_added_tried_out_and_removed(folder: Path) -> None:
    added = aios(folder, "add", "mymodule_of_test:add")
    assert added.exit_code == 0, added.output
    assert "tool local/add (version " in added.output
    assert """aios tools call local/add '{"a": 1, "b": 1}'""" in added.output

    card = aios(folder, "test", "local/add", "--json")
    assert json.loads(card.stdout)["card"]["description"] == "Add two numbers."
    tried = aios(folder, "test", "local/add", '{"a": "40", "b": 2}')
    assert (tried.exit_code, tried.stdout) == (0, "42\n")
    assert "adding" in tried.stderr

    assert aios(folder, "remove", "local/add").exit_code == 0
    assert aios(folder, "test", "local/add").exit_code == 2
    assert aios(folder, "remove", "local/add").exit_code == 2


def test_its_decorator_names_it_unless_it_is_named(folder: Path) -> None:
    assert "tool acme/named" in aios(folder, "add", "mymodule_of_test:named").output
    assert (
        "tool me/other"
        in aios(folder, "add", "mymodule_of_test:named", "--name", "me/other").output
    )


def test_a_folder_is_added(folder: Path) -> None:
    report = folder / "report"
    report.mkdir()
    (report / "main.py").write_text("def run(word: str) -> str:\n    return word * 2\n")
    (report / "tool.toml").write_text('entry = "main:run"\n')

    assert "tool local/report" in aios(folder, "add", "./report").output
    assert aios(folder, "test", "local/report", '{"word": "a"}').stdout == "aa\n"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("mymodule_of_test:nothing", "no function"),
        ("mymodule_of_test:positional", "by its name"),
        ("no_module_of_test:f", "no_module_of_test"),
        ("mymodule_of_test", "MODULE:FUNCTION"),
        ("./nowhere", "MODULE:FUNCTION"),
    ],
)
def test_one_that_cannot_be_loaded_is_not_added(folder: Path, what: str, words: str) -> None:
    added = aios(folder, "add", what)

    assert added.exit_code != 0
    assert words in added.output
    assert not (folder / "state" / "tools.toml").exists()


def test_a_name_that_is_taken_needs_replace(folder: Path) -> None:
    assert aios(folder, "add", "mymodule_of_test:add").exit_code == 0
    again = aios(folder, "add", "mymodule_of_test:add")
    assert (again.exit_code, "of this name" in again.output) == (2, True)
    assert aios(folder, "add", "mymodule_of_test:add", "--replace").exit_code == 0


def test_wrong_arguments_are_told_all_at_once(folder: Path) -> None:
    aios(folder, "add", "mymodule_of_test:add")
    wrong = aios(folder, "test", "local/add", '{"a": "x", "c": 1}')

    assert wrong.exit_code == 4
    assert all(f"- /{name}:" in wrong.output for name in "abc")
    assert aios(folder, "test", "local/add", "[1]").exit_code == 2


def test_one_that_comes_with_the_kernel_is_tried_and_switched(folder: Path) -> None:
    asked = '{"expression": "0.1 + 0.2"}'
    tried = aios(folder, "test", "aios/calculator", asked)
    assert json.loads(tried.stdout) == {"exact": "3/10", "decimal": "0.3"}
    card = aios(folder, "test", "aios/sqlite", "--json")
    assert json.loads(card.stdout)["card"]["files"] == ["{path}"]
    without = aios(folder, "test", "aios/sqlite", '{"path": "a"}')
    assert "only a kernel has" in without.output

    off = aios(folder, "remove", "aios/calculator")
    assert (off.exit_code, "switched off" in off.output) == (0, True)
    assert "switched off" in aios(folder, "test", "aios/calculator", asked).output
    assert aios(folder, "add", "aios/calculator").exit_code == 0
    assert aios(folder, "test", "aios/calculator", asked).exit_code == 0

    taken = aios(folder, "add", "mymodule_of_test:add", "--name", "aios/add")
    assert (taken.exit_code, "come with the kernel" in taken.output) == (2, True)
    assert aios(folder, "test", "aios/wings").exit_code == 2
