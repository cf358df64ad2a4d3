"""Imports point one way, and importing the SDK stays cheap enough for anybody's environment."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

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


def test_a_contract_that_is_broken_is_reported(tmp_path: Path) -> None:
    """The check above can fail: a pure package that imports redis breaks its contract."""
    package = tmp_path / "impure"
    package.mkdir()
    (package / "__init__.py").write_text("import redis\n")
    (tmp_path / "pyproject.toml").write_text(
        """[tool.importlinter]
        root_package = "impure"
        include_external_packages = true
        [[tool.importlinter.contracts]]
        name = "pure"
        type = "forbidden"
        source_modules = ["impure"]
        forbidden_modules = ["redis"]
        """
    )

    result = run_python(f"sys.path.insert(0, {str(tmp_path)!r})\n{LINT}", cwd=tmp_path)

    assert result.returncode == 1
    assert "impure is not allowed to import redis" in result.stdout


@pytest.mark.parametrize("module", ["aios_sdk", "aios_broker.contract.syscall"])
def test_importing_it_loads_nothing_heavy(module: str, tmp_path: Path) -> None:
    code = f"import json, {module}; print(json.dumps([name for name in sys.modules]))"

    result = run_python(code, cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    loaded = {name.partition(".")[0] for name in json.loads(result.stdout)}
    assert module.partition(".")[0] in loaded
    assert sorted(loaded.intersection(HEAVY)) == []
