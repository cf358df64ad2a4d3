"""What one can read in a sitting: functions of 60 lines, files of 500, held over all our code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT_FOLDERS = ("adapters", "broker", "kernel_api", "sdk", "workers")
OTHER_FOLDERS = ("benchmarks", "deploy", "examples", "migrations", "tests")
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 500
TABLES = ROOT / "tests" / "mutants"  # data, looked up and never read through
SECOND_PACKAGES = {"broker": {"aios_local"}, "sdk": {"aios_cli"}}  # they stand above the first


def python_files(root: Path) -> list[Path]:
    """List every Python file of ours below `root`."""
    return [
        path
        for folder in (*PROJECT_FOLDERS, *OTHER_FOLDERS)
        for path in sorted((root / folder).rglob("*.py"))
    ]


def too_long_functions(source: str) -> Iterator[str]:
    """Yield "name: lines" for each function over the limit, decorators and docstring included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first_line = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            lines = (node.end_lineno or node.lineno) - first_line + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{node.name}: {lines}"


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in python_files(ROOT)]
)
def test_file_and_its_functions_are_within_the_limits(path: Path) -> None:
    source = path.read_text(encoding="utf-8")

    if TABLES not in path.parents:
        assert len(source.splitlines()) <= MAX_FILE_LINES, "split it by noun"
    assert list(too_long_functions(source)) == []


def test_a_function_one_line_over_the_limit_is_found() -> None:
    body = "    pass\n" * (MAX_FUNCTION_LINES - 1)

    assert list(too_long_functions(f"def fits():\n{body}")) == []
    assert list(too_long_functions(f"async def grew():\n{body}    pass\n")) == ["grew: 61"]


@pytest.mark.parametrize("folder", PROJECT_FOLDERS)
def test_no_module_lies_directly_in_a_project_folder(folder: str) -> None:
    """These folders are on the import path of a checkout; only our packages may be found there."""
    assert [path.name for path in (ROOT / folder).glob("*.py")] == []
    packages = {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
    assert packages == {f"aios_{folder}"} | SECOND_PACKAGES.get(folder, set())
