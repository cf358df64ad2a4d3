"""What `aios journal` and `aios strace` read: the kernel's history, and what comes as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import hiredis

from aios_broker.config import KernelConfig
from aios_broker.contract.errors import InvalidConfig, KernelNotRunning
from aios_broker.ledger.history import History, HistoryEvent
from aios_broker.ledger.journal import Position, read_use
from aios_broker.postgres.database import Database
from aios_cli.human import narrow_seconds, plural
from aios_cli.operator import Operator
from aios_cli.settings import current_config
from aios_local.supervisor.record import find_kernel, read_record

POLL_S = 0.2


@asynccontextmanager
async def open_history(operator: Operator) -> AsyncIterator[History]:
    """Lend a reader of the kernel's history: its journal, and its ledger where it keeps one.

    Raises:
        InvalidConfig: It keeps one, and where it is was not said.
    """
    url = _database_url(current_config())
    async with AsyncExitStack() as stack:
        if url is None:
            await _refuse_half_a_history(operator)
            yield History(operator.connection, operator.keys)
            return
        database = Database(url, name="aios-cli")
        stack.push_async_callback(database.aclose)
        yield History(operator.connection, operator.keys, database)


def _database_url(config: KernelConfig) -> str | None:
    """Return where the ledger is: as set, else as the kernel on this machine has it."""
    kernel = find_kernel(config)
    if kernel.database_url is None and config.redis_url is not None:
        with suppress(KernelNotRunning):
            local = read_record(config.state_dir)
            return local.database_url if local.redis_url == config.redis_url else None
    return kernel.database_url


async def _refuse_half_a_history(operator: Operator) -> None:
    """Raise where entries have left the journal: a scheduler has entered them in a ledger."""
    try:
        told = await operator.connection.execute("XINFO", "STREAM", operator.keys.journal)
    except hiredis.ReplyError:
        return  # nothing has happened yet
    stream = dict(zip(told[::2], told[1::2], strict=True))
    if stream[b"entries-added"] > stream[b"length"]:
        raise InvalidConfig(
            "the kernel keeps a ledger, and what is in it cannot be read without its address",
            field="AIOS_DATABASE_URL",
            remedy="set it to the URL of the kernel's Postgres",
        )


async def follow(history: History, position: Position) -> AsyncIterator[list[HistoryEvent]]:
    """Yield what happens behind a position, for ever; an empty list where nothing did."""
    while True:
        found = await history.after(position)
        if found:
            position = found[-1].transition.position
        yield found
        if not found:
            await asyncio.sleep(POLL_S)


def told(happening: HistoryEvent) -> str:
    """Return what a transition says beside its event: who did it, and what was used so far."""
    change, metadata = happening.transition, happening.metadata
    if change.event in ("submit", "adopt"):
        return metadata.kind
    if change.event == "claim":
        return f"by {change.who}, attempt {change.attempt}"
    tokens, ran_ms, code = read_use(change.detail)
    parts = [code] if code else []
    if tokens or ran_ms:
        parts.append(f"{plural(tokens, 'token')}, ran {narrow_seconds(ran_ms / 1000)}")
    return ", ".join(parts)
