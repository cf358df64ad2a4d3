"""The effect ledger: what a syscall changed is changed once, however often it is run.

A state syscall reads its own entry and writes it in the transaction of its change. Its worker may
die after the commit and before the answer: the next one finds the result here and changes nothing.
"""

from __future__ import annotations

import msgspec

from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Syscall
from aios_broker.postgres.session import AgentRow, Cursor

_decoder: msgspec.json.Decoder[Result] = msgspec.json.Decoder(Result)


async def earlier_effect(cursor: Cursor, syscall: Syscall) -> Result | None:
    """Return what this syscall came to when it ran before; None: it has changed nothing yet.

    The transaction holds the lock of the syscall's id: who runs it at the same time waits.
    """
    await cursor.execute("SELECT result FROM effect WHERE syscall_id = %s", (syscall.id,))
    found = await cursor.fetchone()
    return None if found is None else _decoder.decode(found.result)


async def enter_effect(cursor: Cursor, agent: AgentRow, syscall: Syscall, result: Result) -> None:
    """Note what this syscall came to, in the transaction that changes it."""
    await cursor.execute(
        "INSERT INTO effect (syscall_id, agent_id, kind, result) VALUES (%s, %s, %s, %s)",
        (syscall.id, agent.id, syscall.kind, msgspec.json.encode(result)),
    )
