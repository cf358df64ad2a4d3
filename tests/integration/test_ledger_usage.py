"""What was used ends up in the ledger, each figure once; and who changed which quota."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from aios_broker.contract.errors import Cancelled
from aios_broker.ledger.journal import read_entry
from aios_broker.ledger.ledger import (
    Ledger,
    UsageHistory,
    UsageRow,
    read_changes,
    read_usage,
    summed,
)
from aios_broker.postgres.database import Database
from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.quota import QuotaRow, Quotas, Subject
from aios_broker.queues.records import Ending, SliceUse, Suspension
from tests.queue_user import QueueUser

ADA = Subject.of_agent("ada")
ADA_AND_BOB = (
    "acme\tada\tmain\tqwen\tUSD\t5\t7\t100\t1\t0\t2\t900\nacme\tbob\tmain\t\t\t1\t1\t1\t0\t1\t0\t0"
)


def total(rows: list[UsageRow]) -> tuple[int, int, int, int, int]:
    sums = [
        sum(getattr(row, name) for row in rows)
        for name in ("tokens", "prompt_tokens", "ran_ms", "finished", "failed")
    ]
    return sums[0], sums[1], sums[2], sums[3], sums[4]


async def test_counters_ledger_and_syscalls_say_the_same(
    user: QueueUser, database: Database
) -> None:
    """A job that yields, one whose worker dies, one that is cancelled while it runs."""
    nothing = ClaimRequest(0, 30.0)
    ids = await user.submit(0, 0, 0)
    yields, dies, unwanted = await user.claim(3)
    uses = [SliceUse(lease, 1.0, 10, b"x", 100) for lease in (yields, dies, unwanted)]
    await user.queue.slice_end("worker", uses, nothing)
    await user.queue.slice_end("worker", uses, nothing)  # the first answer was lost
    await user.queue.suspend(
        "worker", [Suspension(yields, b"x", 1.5, 15, prompt_tokens=100)], nothing
    )
    await user.control.cancel([unwanted.job_id], Cancelled("no"), module="llm")
    await user.redis.execute(
        "ZADD", user.keys.own("leases:llm"), "XX", 1, f"{dies.job_id}:{dies.attempt}"
    )
    assert await user.order.reclaim(await user.lead()) == 1
    again = await user.claim(2)
    ends = [Ending(lease, "finished", b"{}", 0.5, 5, prompt_tokens=100) for lease in again]
    await user.queue.finish("worker", ends, nothing)

    ledger, history = Ledger(database), UsageHistory(database)
    await ledger.drain(user.redis)
    expected = (10 + 20 + 15, 300, 1000 + 2000 + 1500, 2, 1)
    assert total(await history.since(datetime.now(UTC) - timedelta(minutes=1))) == expected
    use = (await Quotas(user.functions).usage("llm")).of(ADA)
    assert (use.tokens, use.prompt_tokens, round(use.ran_s * 1000)) == expected[:3]
    assert (use.finished, use.failed) == expected[3:]
    rows = {row.job_id: row for row in await ledger.recent()}
    assert {rows[job_id].tokens for job_id in ids} == {20, 15, 10}
    assert sum(row.ran_ms for row in rows.values()) == expected[2]


async def test_usage_is_added_up_and_never_twice(user: QueueUser, database: Database) -> None:
    ledger, history = Ledger(database), UsageHistory(database)
    entry = ("q", "llm", "u", ADA_AND_BOB)
    began = datetime.now(UTC)
    for seq in range(3):  # all within one hour, however late in it this runs
        at = f"{began.timestamp() * 1000:.0f}-{seq}"
        await user.redis.execute("XADD", user.keys.journal, at, *entry)
        await ledger.drain(user.redis)
    await ledger.drain(user.redis)
    rows = await history.since(began - timedelta(hours=1))
    assert total(rows) == (18, 24, 303, 3, 3)
    assert {(row.agent, row.core, row.currency) for row in rows} == {
        ("ada", "qwen", "USD"),
        ("bob", "", ""),
    }
    assert {(row.agent, row.cached_tokens, row.cost_nano) for row in rows} == {
        ("ada", 6, 2700),
        ("bob", 0, 0),
    }
    assert await history.since(began + timedelta(hours=1)) == []


async def test_every_change_of_a_quota_is_kept(user: QueueUser, database: Database) -> None:
    quotas, history = Quotas(user.functions), UsageHistory(database)
    await quotas.set("llm", QuotaRow(ADA, max_queued=3), who="eve")
    await quotas.unset("llm", ADA, who="mallory")
    assert not await quotas.unset("llm", ADA)  # nothing was changed: nothing is told
    await Ledger(database).drain(user.redis)
    changes = [
        (each.module, each.subject, each.limits, each.who) for each in await history.changes()
    ]
    assert changes == [
        ("llm", "agent:default ada", "", "mallory"),
        ("llm", "agent:default ada", "3 - - - - - - - - -", "eve"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\tb\tc",
        "a\tb\tc\td\te\t1\t2\t3\t4\t5\t6\t-7",
        "a\tb\tc\td\te\t1\t2\t3\t4\t5\t6\tx",
        "a\tb\tc\td\t1\t2\t3\t4\t5\t6\t7",
        "a\tb\tc\td\te\t1\t2\t3\t4\t5\t6\t" + "9" * 30,
    ],
)
def test_a_line_that_is_none_is_left_out(text: str) -> None:
    entry = [b"1700000000000-0", [b"q", b"llm", b"u", text.encode(), b"s", text.encode()]]
    assert list(read_usage(entry)) == []
    assert list(read_changes(entry)) == []
    assert list(read_entry(entry)) == []  # no transition either


def test_rows_of_one_program_and_hour_become_one() -> None:
    line = "t\ta\tp\tc\tUSD\t1\t2\t3\t4\t5\t6\t7"
    entry = [b"1700000000000-0", [b"q", b"llm", b"u", f"{line}\n{line}".encode()]]
    [row] = summed(read_usage(entry))
    assert total([row]) == (2, 4, 6, 8, 10)
    assert (row.cached_tokens, row.cost_nano) == (12, 14)
