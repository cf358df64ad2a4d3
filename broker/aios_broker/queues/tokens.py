"""Agents' tokens: who a job is from that no trusted door vouched for.

Redis holds the digest of each token, never the token: reading Redis gives nobody an identity.
"""

from collections.abc import Collection
from typing import Literal

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import AccessDenied
from aios_broker.contract.names import Owner
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection


class Identity(Struct, frozen=True, omit_defaults=True):
    """Whose a token is, and until when. An operator's is no agent's: it opens the API alone."""

    agent: str
    tenant: str = "default"
    expires_at: float | None = None  # Unix time, s
    scope: Literal["agent", "operator"] = "agent"


class Tokens:
    """Keeps, checks and revokes tokens."""

    def __init__(self, connection: Connection, keys: Keys | None = None) -> None:
        self._connection = connection
        self._key = (keys or Keys()).own("tokens")

    async def put(self, token_digest: str, identity: Identity) -> None:
        """Make the token of a digest this agent's."""
        await self._connection.execute(
            "HSET", self._key, token_digest, msgspec.json.encode(identity)
        )

    async def find(self, token_digest: str) -> Identity | None:
        """Return whose the token of a digest is, also of one that has expired; None: nobody's."""
        found = await self._connection.execute("HGET", self._key, token_digest)
        return None if found is None else msgspec.json.decode(found, type=Identity)

    async def restore(self, token_digest: str, identity: Identity) -> None:
        """Give a token back that Redis has lost; one that it has is left alone."""
        await self._connection.execute(
            "HSETNX", self._key, token_digest, msgspec.json.encode(identity)
        )

    async def digests(self) -> frozenset[str]:
        """Return the digests of all tokens, expired ones as well."""
        return frozenset(
            each.decode() for each in await self._connection.execute("HKEYS", self._key)
        )

    async def drop(self, digests: Collection[str]) -> None:
        """Make tokens worthless, by their digests."""
        if digests:
            await self._connection.execute("HDEL", self._key, *digests)

    async def revoke_all(self, agent: str, tenant: str) -> int:
        """Make all tokens of an agent worthless; return how many there were. Reads all tokens."""
        flat = await self._connection.execute("HGETALL", self._key)
        held = zip(flat[::2], flat[1::2], strict=True) if isinstance(flat, list) else flat.items()
        theirs = [key for key, value in held if _is_of(value, agent, tenant)]
        return int(await self._connection.execute("HDEL", self._key, *theirs)) if theirs else 0


def _is_of(value: bytes, agent: str, tenant: str) -> bool:
    identity = msgspec.json.decode(value, type=Identity)
    return (identity.agent, identity.tenant) == (agent, tenant)


def token_refused(owner: Owner) -> AccessDenied:
    """Return the error of a token that is not this agent's; it does not tell which ones exist."""
    return AccessDenied(
        f"the token is missing, has expired, or is not one of agent {owner.agent!r} of tenant "
        f"{owner.tenant!r}",
        field="token",
        remedy="put the agent's own token into the request",
    )
