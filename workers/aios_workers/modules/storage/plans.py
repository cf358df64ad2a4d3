"""Plans of file operations, kept as soon as they are made: what runs is what was shown."""

from __future__ import annotations

import msgspec

from aios_broker.contract.files import Plan
from aios_broker.contract.syscall import Syscall
from aios_broker.postgres.session import AgentRow, Cursor

_decoder = msgspec.json.Decoder(Plan)
_KEEP = """
    INSERT INTO effect (syscall_id, agent_id, kind, result) VALUES (%s, %s, 'plan', %s)
    ON CONFLICT (syscall_id) DO NOTHING
"""


async def kept_plan(cursor: Cursor, syscall: Syscall) -> Plan | None:
    """Return the plan that this syscall made when it ran before."""
    await cursor.execute("SELECT result FROM effect WHERE syscall_id = %s", (_key(syscall),))
    row = await cursor.fetchone()
    return None if row is None else _decoder.decode(row.result)


async def keep_plan(cursor: Cursor, agent: AgentRow, syscall: Syscall, plan: Plan) -> Plan:
    """Keep a plan, or return the one that another run of this syscall has kept meanwhile."""
    await cursor.execute(_KEEP, (_key(syscall), agent.id, msgspec.json.encode(plan)))
    return await kept_plan(cursor, syscall) or plan


def _key(syscall: Syscall) -> str:
    return f"{syscall.id}.plan"
