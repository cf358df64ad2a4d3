"""`aios quota` and `aios usage`, as an operator types them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aios_broker.ledger.ledger import Ledger
from aios_broker.postgres.database import Database
from aios_cli.main import cli
from tests.queue_user import queue_user


@pytest.fixture
def environ(redis_url: str, tmp_path: Path) -> dict[str, str]:
    return {"AIOS_REDIS_URL": redis_url, "AIOS_STATE_DIR": str(tmp_path)}


def run(environ: dict[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, env=environ)


def test_quotas_are_set_shown_and_unset(environ: dict[str, str]) -> None:
    limits = ("--max-queued", "3", "--slot-seconds-per-minute", "0.5")
    assert run(environ, "quota", "set", "ada", "--tenant", "acme", *limits).exit_code == 0
    assert run(environ, "quota", "set", "*", "--max-running", "2").exit_code == 0
    run(environ, "quota", "set", "--tenant", "acme", "--module", "tool", "--max-running", "0")
    shown = [line.split() for line in run(environ, "quota", "show").stdout.splitlines()[1:]]
    assert shown == [
        ["llm", "agent", "*", "-", "2", "-", "-", "-", "-"],
        ["llm", "agent", "acme", "ada", "3", "-", "-", "0.5", "-", "-"],
        ["tool", "tenant", "acme", "-", "0", "-", "-", "-", "-"],
    ]
    [anybody, _] = json.loads(run(environ, "quota", "show", "--json").stdout)["llm"]
    assert (anybody["subject"]["tenant"], anybody["max_running"]) == ("*", 2)
    assert "no quota any more" in run(environ, "quota", "unset", "*").stdout
    assert "every agent had no quota" in run(environ, "quota", "unset", "*").stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "told"),
    [
        (("quota", "set"), 2, "name an agent"),
        (("quota", "set", "a b"), 4, "is no name"),
        (("quota", "set", "ada", "--module", "gpu"), 4, "llm, memory"),
        (("quota", "set", "ada", "--max-queued", "-1"), 2, "max-queued"),
    ],
)
def test_wrong_input_is_refused_by_name(
    environ: dict[str, str], arguments: tuple[str, ...], exit_code: int, told: str
) -> None:
    result = run(environ, *arguments)
    assert result.exit_code == exit_code
    assert told in result.output


def test_usage_is_the_same_in_redis_and_in_the_ledger(
    environ: dict[str, str], redis_url: str, database_url: str
) -> None:
    async def use() -> None:
        async with queue_user(redis_url) as user:
            await user.submit(0)
            await user.finish(*await user.claim(), tokens=7)
            database = Database(database_url)
            await Ledger(database).drain(user.redis)
            await database.aclose()

    asyncio.run(use())
    environ["AIOS_DATABASE_URL"] = database_url
    for options in ((), ("--hours", "1")):
        [line] = json.loads(run(environ, "usage", "--by", "program", *options, "--json").stdout)
        assert line["subject"] == {
            "scope": "program",
            "tenant": "default",
            "agent": "ada",
            "program": "main",
        }
        assert line["use"] == {
            "tokens": 7,
            "prompt_tokens": 0,
            "ran_s": 0.25,
            "finished": 1,
            "failed": 0,
            "cached_tokens": 0,
            "cost_nano": {},
        }
    text = run(environ, "usage").stdout.splitlines()[1].split()
    assert text == ["llm", "default", "ada", "7", "0", "0", "250", "ms", "1", "0", "-"]


def test_without_a_ledger_its_usage_is_refused(environ: dict[str, str]) -> None:
    result = run(environ, "usage", "--hours", "1")
    assert result.exit_code == 2
    assert "AIOS_DATABASE_URL" in result.output
