"""`tools.toml`: read with what is wrong of each tool, changed with what a person wrote left."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.tools import ToolEntry
from aios_broker.tool_catalogue import FILE_NAME, parse_tools, read_folder, read_tools, settings_of
from aios_local.tools_file import ToolsFile

ADD = ToolEntry(function="mymodule:add", path="/home/ada")
TEXT = """# mine
[tools."me/add"]  # the first
function = "mymodule:add"
path = "/home/ada"

[tools."me/report"]
folder = "/opt/report"
"""


@pytest.fixture
def file(tmp_path: Path) -> ToolsFile:
    return ToolsFile(tmp_path / FILE_NAME)


def test_a_file_that_is_not_there_has_no_tools(tmp_path: Path) -> None:
    assert read_tools(tmp_path / FILE_NAME).tools == {}


def test_what_a_file_says() -> None:
    found = parse_tools(TEXT)

    assert found.tools == {"me/add": ADD, "me/report": ToolEntry(folder="/opt/report")}
    assert found.problems == {}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[tools", FILE_NAME),
        ("tool = 1", FILE_NAME),
        ("tools = 1", FILE_NAME),
        ('[tools."add"]\nfolder = "/a"', "tools.add"),
        ('[tools."a/b"]', "tools.a/b"),
        ('[tools."a/b"]\nfolder = "/a"\nfunction = "a:b"', "tools.a/b"),
        ('[tools."a/b"]\nfolder = "a"', "tools.a/b.folder"),
        ('[tools."a/b"]\nfunction = "a:b"\npath = "a"', "tools.a/b.path"),
        ('[tools."a/b"]\nfunction = "a b"', "tools.a/b.function"),
        ('[tools."a/b"]\nfunction = "os.system; x"', "tools.a/b.function"),
        ('[tools."a/b"]\nfolder = "/a"\nwings = 2', "tools.a/b.wings"),
        ('[tools."aios/calculator"]\nfunction = "a:b"', "tools.aios/calculator"),
        ('[tools."aios/calculator"]\nfolder = "/a"', "tools.aios/calculator"),
        ('[tools."aios/calculator"]\nenabled = 1', "tools.aios/calculator.enabled"),
    ],
)
def test_what_is_wrong_is_named_and_the_other_tools_stay(text: str, field: str) -> None:
    alone = parse_tools(text).problems.values()
    assert [problem.field for problem in alone] == [field]
    if field != FILE_NAME:
        both = parse_tools(f'{text}\n[tools."c/d"]\nfolder = "/d"\n')
        assert list(both.tools) == ["c/d"]


def test_a_tool_is_added_and_removed_and_the_rest_stays(file: ToolsFile) -> None:
    file.path.write_text(TEXT)
    file.add("me/more", ADD)
    assert file.path.read_text().startswith(TEXT)
    assert file.read().tools["me/more"] == ADD
    file.remove("me/more")
    file.remove("me/report")

    assert "# the first" in file.path.read_text()
    assert list(file.read().tools) == ["me/add"]


def test_a_name_that_is_taken_is_refused_unless_it_is_to_be_replaced(file: ToolsFile) -> None:
    file.add("me/add", ADD)
    before = file.path.read_text()
    with pytest.raises(InvalidConfig, match="of this name"):
        file.add("me/add", ToolEntry(folder="/opt/x"))
    assert file.path.read_text() == before

    file.add("me/add", ToolEntry(folder="/opt/x"), replace=True)
    assert file.read().tools == {"me/add": ToolEntry(folder="/opt/x")}


@pytest.mark.parametrize("name", ["add", "me/add/x", "", "me/a b"])
def test_what_would_be_wrong_is_not_written(file: ToolsFile, name: str) -> None:
    file.add("me/add", ADD)
    before = file.path.read_text()
    with pytest.raises(InvalidConfig, match="name"):
        file.add(name, ADD)
    assert file.path.read_text() == before


def test_a_tool_that_is_not_there_is_not_removed(file: ToolsFile) -> None:
    with pytest.raises(InvalidConfig, match="no tool"):
        file.remove("me/add")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "tool.toml.entry"),
        ("entry = 1", "tool.toml.entry"),
        ('entry = "main"', "tool.toml.entry"),
        ('entry = "main:run"\nlimits = {timeout_s = 0}', "tool.toml.limits.timeout_s"),
        ('entry = "main:run"\nparallel = {tool = -1}', "tool.toml.parallel.tool"),
        ('entry = "main:run"\nwings = 2', "tool.toml.wings"),
        ("entry =", "tool.toml"),
    ],
)
def test_what_is_wrong_in_a_folder_is_named(tmp_path: Path, text: str, field: str) -> None:
    (tmp_path / "tool.toml").write_text(text)
    with pytest.raises(InvalidConfig) as caught:
        read_folder(tmp_path)
    assert str(caught.value.field).startswith(field.removesuffix(".entry"))


def test_a_decorator_that_was_written_by_hand_is_checked() -> None:
    assert settings_of({"name": "me/add", "idempotent": True}).idempotent
    with pytest.raises(InvalidConfig, match="wings"):
        settings_of({"wings": 2})


def test_one_that_comes_with_the_kernel_is_switched_and_what_is_set_of_it_stays(
    file: ToolsFile,
) -> None:
    file.path.write_text('[tools."aios/shell"]  # mine\nlimits = { timeout_s = 5.0 }\n')
    file.switch("aios/shell", on=False)
    file.switch("aios/python", on=False)
    assert file.read().off == {"aios/shell", "aios/python"}
    assert "# mine" in file.path.read_text()

    file.switch("aios/shell", on=True)
    file.switch("aios/python", on=True)
    found = file.read()
    assert (found.off, list(found.tools)) == (frozenset(), ["aios/shell"])
    limits = found.tools["aios/shell"].limits
    assert limits is not None
    assert limits.timeout_s == 5.0
