"""What was used, and what it cost: what the ledger has of every hour."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

from aios_broker.ledger.ledger import UsageHistory, UsageRow
from aios_broker.postgres.database import Database
from aios_broker.queues.keys import Keys
from aios_broker.queues.quota import Scope, Subject, Use
from aios_broker.redis.connection import Connection
from aios_broker.views.counters import ANYBODYS, OwnerFilter, UsageLine

By = Literal["tenant", "agent", "program", "core", "day"]
SCOPES: dict[By, Scope] = {"tenant": "tenant", "agent": "agent", "program": "program"}
ALL = datetime(2000, 1, 1, tzinfo=UTC)  # before any ledger begins
DRAIN_LIMIT_S = 3.0  # how long it is waited for what the journal still holds
DRAIN_POLL_S = 0.05


async def history(
    database: Database, keys: Keys, by: By, since: datetime, whose: OwnerFilter = ANYBODYS
) -> list[UsageLine]:
    """Return what the ledger says was used since then.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    rows = await UsageHistory(database, keys).since(since)
    return grouped([row for row in rows if whose.has(row.tenant, row.agent)], by)


async def undrained(connection: Connection, keys: Keys) -> int:
    """Wait until the ledger has what the journal holds now; return how many entries it lacks."""
    last = await connection.execute("XREVRANGE", keys.journal, "+", "-", "COUNT", 1)
    deadline_s = asyncio.get_running_loop().time() + DRAIN_LIMIT_S
    while last and await connection.execute("XRANGE", keys.journal, "-", last[0][0], "COUNT", 1):
        if asyncio.get_running_loop().time() > deadline_s:
            return int(await connection.execute("XLEN", keys.journal))
        await asyncio.sleep(DRAIN_POLL_S)
    return 0


def grouped(rows: Iterable[UsageRow], by: By) -> list[UsageLine]:
    """Return one line per module and tenant, agent, program, core or day."""
    found: dict[_Key, list[UsageRow]] = {}
    for row in rows:
        found.setdefault(_key(row, by), []).append(row)
    return [
        UsageLine(module, subject, _sum(of), core, day)
        for (module, subject, core, day), of in found.items()
    ]


_Key = tuple[str, Subject | None, str, str]  # module, subject, core, day


def _key(row: UsageRow, by: By) -> _Key:
    match by:
        case "tenant":
            return row.module, Subject.of_tenant(row.tenant), "", ""
        case "agent":
            return row.module, Subject.of_agent(row.agent, row.tenant), "", ""
        case "program":
            return row.module, Subject.of_program(row.program, row.agent, row.tenant), "", ""
        case "core":
            return row.module, None, row.core, ""
        case "day":
            return row.module, None, "", f"{row.hour.astimezone(UTC):%Y-%m-%d}"


def _sum(rows: Sequence[UsageRow]) -> Use:
    total = rows[0]
    for row in rows[1:]:
        total = total.plus(row)
    costs: dict[str, int] = {}
    for row in rows:
        if row.currency:
            costs[row.currency] = costs.get(row.currency, 0) + row.cost_nano
    return Use(
        total.tokens,
        total.prompt_tokens,
        total.ran_ms / 1000,
        total.finished,
        total.failed,
        total.cached_tokens,
        costs,
    )
