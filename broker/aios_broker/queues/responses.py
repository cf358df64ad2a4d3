"""Answers that are kept for the agent that asked, each under its id: of APIs that keep them.

They live in Redis beside the contexts that they stand in, and as long: until nobody kept another
one for CONTEXT_TTL_S. Of each agent the newest ones are kept, within limits.
"""

from aios_broker.contract.names import Owner
from aios_broker.contract.syscall import name_digest
from aios_broker.queues.contexts import CONTEXT_TTL_S
from aios_broker.queues.functions import Steps
from aios_broker.queues.rows import ResponseRow
from aios_broker.redis.connection import Answer

MOST_KEPT = 500  # of one agent
MOST_KEPT_BYTES = 64 * 1024 * 1024


class Responses(Steps):
    """Keeps, finds and drops answers. May be called again after RedisUnavailable."""

    async def put(
        self, owner: Owner, response_id: str, record: bytes, *, context: str = "", known: bool
    ) -> tuple[str, ...] | None:
        """Keep an answer, or keep it anew.

        Args:
            owner: Whose it is.
            response_id: Its id.
            record: What is kept.
            context: The context it stands in; told when it is kept for the first time.
            known: Only where it is kept already: it may have been deleted meanwhile.

        Returns:
            The contexts in which none of those kept stands any more: older ones had to go. None: it
            is not kept.
        """
        row = ResponseRow(
            owner=_key(owner),
            id=response_id,
            record=record,
            context=context,
            known=int(known),
            ttl_s=CONTEXT_TTL_S,
            most=MOST_KEPT,
            most_bytes=MOST_KEPT_BYTES,
        )
        return _freed(await self._call("response_put", "llm", row))

    async def find(self, owner: Owner, response_id: str) -> bytes | None:
        """Return what was kept; None: there is no such answer of this agent's."""
        key = self.keys.own(f"responses:{_key(owner)}")
        found: bytes | None = await self._execute("HGET", key, response_id)
        return found

    async def claim(self, owner: Owner, response_id: str, by: str) -> bool:
        """Let `by` go on with an answer in its context; False: another one does already."""
        answer = await self._call("response_claim", "llm", [_key(owner), response_id, by])
        return bool(answer)

    async def drop(self, owner: Owner, response_id: str) -> tuple[str, ...] | None:
        """Forget an answer; return as `put` does."""
        return _freed(await self._call("response_drop", "llm", [_key(owner), response_id]))


def _key(owner: Owner) -> str:
    return name_digest(owner.tenant, owner.agent, "responses")


def _freed(answer: Answer) -> tuple[str, ...] | None:
    if answer[0] == b"gone":
        return None
    return tuple(each.decode() for each in answer[1:])
