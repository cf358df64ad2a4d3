"""`aios policy` and `aios migrate`, as an operator types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aios_broker.postgres.migrate import head
from aios_cli.main import cli


@pytest.fixture
def environ(redis_url: str, tmp_path: Path) -> dict[str, str]:
    return {"AIOS_REDIS_URL": redis_url, "AIOS_STATE_DIR": str(tmp_path)}


def run(environ: dict[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, env=environ)


def test_the_policy_is_shown_and_changed(environ: dict[str, str]) -> None:
    assert json.loads(run(environ, "policy", "--json").stdout)["llm"]["name"] == "rr"
    changed = run(environ, "policy", "priority", "--module", "llm", "--quantum-s", "0.25", "--json")
    row = json.loads(changed.stdout)["llm"]
    assert (row["name"], row["preempt"], row["quantum_s"]) == ("priority", "score", 0.25)
    rows = json.loads(run(environ, "policy", "--json").stdout)
    assert (rows["llm"], rows["tool"]["name"]) == (row, "rr")
    assert "lower scores" in run(environ, "policy").stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "told"),
    [
        (("policy", "lottery"), 2, "fifo, rr, priority"),
        (("policy", "rr", "--module", "gpu"), 4, "llm, memory"),
        (("policy", "--quantum-s", "0"), 2, "quantum-s"),
    ],
)
def test_wrong_input_is_refused_by_name(
    environ: dict[str, str], arguments: tuple[str, ...], exit_code: int, told: str
) -> None:
    result = run(environ, *arguments)
    assert result.exit_code == exit_code
    assert told in result.output


def test_migrate_says_where_the_database_stands(environ: dict[str, str], database_url: str) -> None:
    result = run({**environ, "AIOS_DATABASE_URL": database_url}, "migrate", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"revision": head(), "applied": []}


def test_migrate_without_postgres_ends_with_a_typed_error(
    environ: dict[str, str], tmp_path: Path
) -> None:
    url = f"postgresql://me:secret@/db?host={tmp_path}"
    result = run({**environ, "AIOS_DATABASE_URL": url}, "migrate")
    assert result.exit_code == 3
    assert "database-unavailable" in result.output
    assert "secret" not in result.output


def test_migrate_with_a_wrong_url_names_the_variable(environ: dict[str, str]) -> None:
    result = run({**environ, "AIOS_DATABASE_URL": "mysql://db"}, "migrate")
    assert result.exit_code == 2
    assert "AIOS_DATABASE_URL" in result.output
