"""Agents' tokens: who a job is from that no trusted door vouched for.

Redis holds the digest of each token, never the token: reading Redis gives nobody an identity.
"""

from __future__ import annotations

import hashlib
import secrets

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import AccessDenied
from aios_broker.queues.connection import Connection
from aios_broker.queues.keys import Keys

TOKEN_BYTES = 32  # of randomness
PREFIX = "aios_"  # lets secret scanners and people recognise one


class Identity(Struct, frozen=True):
    """Whose a token is."""

    agent: str
    tenant: str = "default"


class Tokens:
    """Issues, checks and revokes tokens."""

    def __init__(self, connection: Connection, keys: Keys | None = None) -> None:
        self._connection = connection
        self._key = (keys or Keys()).own("tokens")

    async def issue(self, identity: Identity) -> str:
        """Return a new token of this agent; it is shown once and kept only as a digest."""
        token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        await self._connection.execute(
            "HSET", self._key, digest(token), msgspec.json.encode(identity)
        )
        return token

    async def verify(self, token: str, *, agent: str, tenant: str) -> None:
        """Return when the token is this agent's.

        Raises:
            AccessDenied: no token, an unknown one, or another agent's. One message for all
                three: it does not tell which tokens exist.
        """
        held = await self._connection.execute("HGET", self._key, digest(token)) if token else None
        if held is None or msgspec.json.decode(held, type=Identity) != Identity(agent, tenant):
            raise AccessDenied(
                f"the token is missing, or is not one of agent {agent!r} of tenant {tenant!r}",
                field="token", remedy="put the agent's own token into the request",
            )  # fmt: skip

    async def revoke(self, token: str) -> bool:
        """Make a token worthless; False if it already was."""
        return bool(await self._connection.execute("HDEL", self._key, digest(token)))


def digest(token: str) -> str:
    """Return what Redis keeps of a token: BLAKE2b-256 in hex."""
    return hashlib.blake2b(token.encode(), digest_size=32).hexdigest()
