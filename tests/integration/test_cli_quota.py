"""`aios quota` and `aios usage`, as an operator types them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import QuotaExceeded
from aios_broker.contract.syscall import Need, new_id
from aios_broker.ledger.ledger import Ledger
from aios_broker.postgres.database import Database
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.records import Charge, Ending, JobMetadata, Submission, WorkerCard
from aios_cli.main import cli
from tests.queue_user import QueueUser, queue_user


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
        ["llm", "agent", "*", "-", "2", *"--------"],
        ["llm", "agent", "acme", "ada", "3", "-", "-", "0.5", *"------"],
        ["tool", "tenant", "acme", "-", "0", *"--------"],
    ]
    [anybody, _] = json.loads(run(environ, "quota", "show", "--json").stdout)["llm"]
    assert (anybody["subject"]["tenant"], anybody["max_running"]) == ("*", 2)
    assert "no quota any more" in run(environ, "quota", "unset", "*").stdout
    assert "every agent had no quota" in run(environ, "quota", "unset", "*").stdout


def test_the_right_to_go_before_others_is_given_with_a_quota(environ: dict[str, str]) -> None:
    given = run(environ, "quota", "set", "pager", "--min-nice", "-10", "--max-contexts", "7")
    assert given.exit_code == 0
    [row] = json.loads(run(environ, "quota", "show", "--json").stdout)["llm"]
    assert (row["min_nice"], row["max_contexts"], row["max_unread"]) == (-10, 7, None)
    assert run(environ, "quota", "set", "pager", "--min-nice", "3").exit_code == 2


def test_limits_of_what_is_kept_are_set_shown_and_unset(
    environ: dict[str, str], database_url: str
) -> None:
    environ["AIOS_DATABASE_URL"] = database_url

    def limits(*arguments: str) -> dict[tuple[str, str], int]:
        rows = json.loads(run(environ, "quota", *arguments, "--json").stdout)
        return {(row["tenant"], row["agent"]): row["most"] for row in rows}

    everybody = {("", ""): 100_000}
    assert limits("limit", "notes", "5", "--agent", "ada") == everybody | {("default", "ada"): 5}
    assert limits("limit", "notes", "9", "--tenant", "acme") == everybody | {
        ("acme", ""): 9,
        ("default", "ada"): 5,
    }
    assert limits("limit", "notes", "3")["", ""] == 3
    assert "notes" in run(environ, "quota", "limits").stdout
    for arguments in (("--agent", "ada"), ("--tenant", "acme"), ()):
        left = limits("limit", "notes", *arguments)
    assert left == everybody
    wrong = run(environ, "quota", "limit", "groups", "3", "--agent", "ada")
    assert (wrong.exit_code, "tenant's" in wrong.output) == (2, True)
    assert run(environ, "quota", "limit", "dreams", "3").exit_code == 2


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


CENT = 10_000_000  # billionths of a dollar
PAID = WorkerCard(
    "worker", "llm", 1, "here", 9, (CoreCard(name="paid", model="m", currency="USD"),)
)


async def spend(user: QueueUser, nano: int) -> None:
    """Let a worker register its core, and a syscall on it cost so much."""
    await user.queue.register(PAID)
    await user.submit(0)
    [lease] = await user.queue.claim("worker", ClaimRequest(1, 30.0, ("paid",)))
    charge = Charge("paid", nano * 1000, "USD", cached_tokens=3)
    ending = Ending(lease, "finished", b"{}", 0.25, 7, prompt_tokens=5, charge=charge)
    await user.queue.finish("worker", [ending], ClaimRequest(0, 30.0))


def test_a_budget_is_in_the_cores_currency(environ: dict[str, str], redis_url: str) -> None:
    result = run(environ, "quota", "set", "ada", "--budget-per-day", "2.50")
    assert result.exit_code == 2
    assert "no core has a price" in result.output

    async def register() -> None:
        async with queue_user(redis_url) as user:
            await user.queue.register(PAID)

    asyncio.run(register())
    wrong = run(environ, "quota", "set", "ada", "--budget-per-day", "2.50", "--currency", "EUR")
    assert "cores are paid in USD" in wrong.output
    no_amount = run(environ, "quota", "set", "ada", "--budget-per-day", "x")
    assert "no amount of money" in no_amount.output
    done = run(environ, "quota", "set", "ada", "--budget-per-day", "2.50", "--max-running", "3")
    assert done.exit_code == 0, done.output
    [shown] = [line.split() for line in run(environ, "quota", "show").stdout.splitlines()[1:]]
    assert shown == ["llm", "agent", "default", "ada", "-", "3", "-", "-", "2.50", "USD", *"-----"]
    [row] = json.loads(run(environ, "quota", "show", "--json").stdout)["llm"]
    assert row["budget_per_day"] == {"nano": 250 * CENT, "currency": "USD"}


@pytest.mark.usefixtures("far_from_midnight")
def test_cost_is_shown_by_core_and_day_and_survives_redis(
    environ: dict[str, str], redis_url: str, database_url: str
) -> None:
    environ["AIOS_DATABASE_URL"] = database_url

    async def use() -> None:
        async with queue_user(redis_url) as user:
            await spend(user, 2 * CENT)
            database = Database(database_url)
            await Ledger(database).drain(user.redis)
            await database.aclose()

    asyncio.run(use())
    lines = run(environ, "usage", "--by", "core").stdout.splitlines()
    assert lines[1].split() == ["llm", "paid", "7", "5", "3", "250", "ms", "1", "0", "0.02", "USD"]
    [line] = json.loads(run(environ, "usage", "--by", "day", "--json").stdout)
    assert line["day"] == f"{datetime.now(UTC):%Y-%m-%d}"
    assert line["use"]["cost_nano"] == {"USD": 2 * CENT}
    assert json.loads(run(environ, "usage", "--since", "2999-01-01", "--json").stdout) == []
    journal = run(environ, "journal").stdout
    assert "on paid, 0.02 USD" in journal

    async def lose_all() -> object:
        async with queue_user(redis_url) as user:
            await user.redis.execute("FLUSHALL")
            await user.queue.register(PAID)
            command = ["quota", "set", "ada", "--budget-per-day", "0.01"]
            done = await asyncio.to_thread(run, environ, *command)
            assert done.exit_code == 0, done.output
            job = Submission(
                new_id(), b"[]", JobMetadata("ada", "llm.chat"), "", needs=(Need("core", "paid"),)
            )
            return (await user.queue.submit([job]))[0]

    refusal = asyncio.run(lose_all())
    assert isinstance(refusal, QuotaExceeded)
    assert "has spent 0.02 USD this day" in str(refusal)


def test_what_the_ledger_does_not_have_yet_is_said(
    environ: dict[str, str], redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ["AIOS_DATABASE_URL"] = database_url
    monkeypatch.setattr("aios_broker.views.usage.DRAIN_LIMIT_S", 0.1)

    async def use() -> None:
        async with queue_user(redis_url) as user:
            await spend(user, CENT)

    asyncio.run(use())
    result = run(environ, "usage", "--by", "core", "--json")
    assert json.loads(result.stdout) == []
    assert "are not in the ledger yet" in result.stderr
