"""Imports point one way, and importing the SDK stays cheap enough for anybody's environment."""

import graphlib
import json
import subprocess
import sys
import tomllib
from copy import deepcopy
from pathlib import Path

import grimp
import pytest

from tests.import_rooms import RoomsContract

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 50.0
HEAVY = ("click", "hiredis", "matplotlib", "numpy", "psycopg", "redis", "rich", "rq", "sqlalchemy")
LINT = "from importlinter.cli import lint_imports_command as lint; lint()"


def run_python(code: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of Python that sees our packages by path and by nothing else of the checkout."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = [
        str(ROOT / name) for name in pyproject["tool"]["pytest"]["ini_options"]["pythonpath"]
    ]
    return subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path[:0] = {folders!r}\n{code}"],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def test_every_import_contract_is_kept() -> None:
    result = run_python(LINT, cwd=ROOT)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    """Return what each room may import, as pyproject.toml has it."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = pyproject["tool"]["importlinter"]["contracts"]
    [found] = [contract["may_import"] for contract in contracts if contract["type"] == "rooms"]
    return dict(found)


@pytest.fixture(scope="module")
def graph(table: dict[str, list[str]]) -> grimp.ImportGraph:
    packages = [room for room in table if "." not in room]
    return grimp.build_graph(*packages, include_external_packages=True, cache_dir=None)


def problems(graph: grimp.ImportGraph, table: dict[str, list[str]]) -> set[str]:
    contract = RoomsContract("rooms", {}, {"may_import": table})
    return set(contract.check(graph, verbose=False).metadata["problems"])


def test_the_command_reports_a_contract_that_is_broken(tmp_path: Path) -> None:
    package = tmp_path / "impure"
    package.mkdir()
    (package / "__init__.py").write_text("import json\nimport redis\n")
    (tmp_path / "pyproject.toml").write_text(
        """[tool.importlinter]
        root_package = "impure"
        include_external_packages = true
        contract_types = ["rooms: tests.import_rooms.RoomsContract"]
        [[tool.importlinter.contracts]]
        name = "pure"
        type = "rooms"
        [tool.importlinter.contracts.may_import]
        impure = []
        """
    )

    result = run_python(f"sys.path[:0] = {[str(tmp_path), str(ROOT)]!r}\n{LINT}", cwd=tmp_path)

    assert result.returncode == 1, result.stderr
    assert "impure:2 imports redis" in " ".join(result.stdout.split())
    assert "json" not in result.stdout


def test_every_package_is_checked(table: dict[str, list[str]]) -> None:
    packages = {path.parent.name for path in ROOT.glob("*/aios_*/__init__.py")}

    assert {room for room in table if "." not in room} == packages


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("aios_sdk", "aios_broker.metrics"),
        ("aios_sdk", "aios_broker.queues"),
        ("aios_sdk", "aios_broker.client.redis_transport"),
        ("aios_sdk", "aios_broker.log"),
        ("aios_sdk", "httpx"),
        ("aios_broker.contract", "aios_broker.config"),
        ("aios_broker.contract", "numpy"),
        ("aios_broker.client", "aios_broker.redis"),
        ("aios_broker.client", "hiredis"),
        ("aios_broker.queues", "rq"),
        ("aios_broker.scheduler", "aios_workers.config"),
        ("aios_workers.llm", "aios_workers.llm.cores.llama"),
        ("aios_workers.llm.cores.sglang", "aios_workers.llm.cores.llama"),
        ("aios_cli", "matplotlib"),
    ],
)
def test_an_import_that_no_line_names_is_refused(
    graph: grimp.ImportGraph, table: dict[str, list[str]], importer: str, imported: str
) -> None:
    assert {importer, imported} <= graph.modules
    wrong = deepcopy(graph)
    wrong.add_import(importer=importer, imported=imported, line_number=7, line_contents="import")

    assert problems(wrong, table) - problems(graph, table) == {
        f"{importer}:7 imports {imported}: the line of {importer} does not name {imported}"
    }


def test_a_line_that_names_too_much_is_reported(
    graph: grimp.ImportGraph, table: dict[str, list[str]]
) -> None:
    wrong = {**table, "aios_sdk": [*table["aios_sdk"], "httpx"], "aios_sdk.nowhere": []}

    assert problems(graph, wrong) - problems(graph, table) == {
        "no module stands in aios_sdk.nowhere",
        "aios_sdk names httpx, and does not import it",
    }


def test_the_sdk_reaches_the_contract_and_the_client_core_alone(
    table: dict[str, list[str]],
) -> None:
    """Through all lines together; the transport's is what the SDK loads only to reach a Redis."""
    reached, ahead = set[str](), ["aios_sdk"]
    while ahead:
        room = ahead.pop()
        reached.add(room)
        if room != "aios_broker.client.transport":
            ahead += [name for name in table.get(room, []) if name not in reached]

    assert reached - {"aios_broker.client.transport"} == {
        "aios_sdk",
        "aios_broker.client",
        "aios_broker.contract",
        "aios_broker.retry",
        "msgspec",
        "opentelemetry",
    }


@pytest.mark.parametrize("module", ["aios_sdk", "aios_broker.contract.syscall"])
def test_importing_it_loads_nothing_heavy(module: str, tmp_path: Path) -> None:
    code = f"import json, {module}; print(json.dumps([name for name in sys.modules]))"

    result = run_python(code, cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    loaded = {name.partition(".")[0] for name in json.loads(result.stdout)}
    assert module.partition(".")[0] in loaded
    assert sorted(loaded.intersection(HEAVY)) == []


def test_the_sdks_imports_have_no_circle_and_are_five_deep_at_most() -> None:
    """Imports for type checkers count, too."""
    graph = grimp.build_graph("aios_sdk", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    depth: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(imports).static_order():  # raises on a circle
        depth[name] = max((depth[imported] + 1 for imported in imports[name]), default=0)

    assert len(imports) <= 11
    assert depth["aios_sdk"] == max(depth.values())
    assert 0 < depth["aios_sdk"] <= 5
