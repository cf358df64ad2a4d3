"""What an operator gives agents and takes from them while a kernel runs: tokens, rights."""

import time

from aios_broker.access.audit import AuditLine, append_line
from aios_broker.access.rights import Right, set_right
from aios_broker.access.tokens import put_token, revoke_tokens
from aios_broker.contract.names import Owner
from aios_broker.contract.tokens import digest, new_token
from aios_broker.postgres.store import Store
from aios_broker.queues.tokens import Identity, Tokens

EVERYWHERE = "*"  # in place of a tenant in the audit log


async def issue_token(
    store: Store | None, tokens: Tokens, whose: Owner, *, who: str, ttl_s: float | None
) -> str:
    """Return a new token, which is shown this once: the kernel keeps its digest.

    Args:
        store: None where the kernel keeps no database: Redis alone has it then.
        tokens: Those that Redis has.
        whose: An agent; or an operator of the API (`operator:<name>`, of no tenant), whose token
            is in Redis alone.
        who: What the audit log says of who issued it.
        ttl_s: How long it is good; None: for ever.
    """
    issued = new_token()
    if store is not None:
        known = await store.vouched(whose.agent, whose.tenant) if whose.tenant else None
        async with store.as_steward() as cursor:
            if known is not None:
                await put_token(cursor, known.id, digest(issued), ttl_s)
            await append_line(cursor, _line("access.token", whose, who))
    expires_at = None if ttl_s is None else time.time() + ttl_s
    scope = "agent" if whose.tenant else "operator"
    await tokens.put(digest(issued), Identity(whose.agent, whose.tenant, expires_at, scope))
    return issued


async def take_tokens_back(store: Store | None, tokens: Tokens, whose: Owner, *, who: str) -> int:
    """Make all tokens of an agent or an operator worthless; return how many there were."""
    noted = 0
    if store is not None:
        known = await store.vouched(whose.agent, whose.tenant) if whose.tenant else None
        async with store.as_steward() as cursor:
            if known is not None:
                noted = len(await revoke_tokens(cursor, known.id))
            await append_line(cursor, _line("access.revoke_token", whose, who))
    return max(noted, await tokens.revoke_all(whose.agent, whose.tenant))


async def give_right(store: Store, whose: Owner, right: Right, *, who: str, given: bool) -> None:
    """Give an agent a right, or take it away; one that is not known yet becomes known."""
    known = await store.vouched(whose.agent, whose.tenant)
    async with store.as_steward() as cursor:
        await set_right(cursor, known, right, who, given=given)


def _line(action: str, whose: Owner, who: str) -> AuditLine:
    return AuditLine(whose.tenant or EVERYWHERE, who, action, f"agent {whose.agent}", "done")
