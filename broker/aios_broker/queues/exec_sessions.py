"""Which exec sessions there are, where they live, and the way to there; written by tool workers.

A session lives in one worker, its host. A host says that it lives by a key that ends by itself:
where it has ended, its sessions are lost, and who looks first writes that down. Whoever runs a
syscall of a session that lives elsewhere sends it into the host's inbox, and hears by its own.
"""

from typing import Any

import msgspec
from msgspec import Struct

from aios_broker.contract.exec import ExecSession
from aios_broker.contract.names import Owner
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection

HOST_MS = 4_000  # how long a host is believed to live that says nothing
INBOX_S = 60  # how long messages are kept that nobody takes
KEPT_LOST_S = 3_600.0  # how long it is known why a session was lost, if nobody asks
# And where its agent has heard it: what was under way then hears the same, also where the worker
# that was about to answer it has died, and another one answers after its lease.
KEPT_TOLD_S = 120.0
KEPT_LOST = 200  # of a tenant


class SessionRecord(Struct, frozen=True):
    """A session as the fleet knows it. Fields of a newer release are read past."""

    session: ExecSession
    agent: str
    host: str
    changed_at: float  # Unix time, s, by Redis
    told_at: float = 0.0  # when its agent first heard that it is lost

    def is_spare(self, now: float) -> bool:
        """Whether it is lost and need not be known any longer."""
        if self.session.state != "lost":
            return False
        if self.told_at:
            return now - self.told_at > KEPT_TOLD_S
        return now - self.changed_at > KEPT_LOST_S


_decoder = msgspec.json.Decoder(SessionRecord)


class SessionRecords:
    """The sessions of one deployment."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._keys = keys

    async def now(self) -> float:
        """Return the time by Redis' clock."""
        seconds, microseconds = await self._connection.execute("TIME")
        return int(seconds) + int(microseconds) / 1e6

    async def of_tenant(self, tenant: str) -> list[SessionRecord]:
        """Return all of a tenant, those that are lost among them; oldest first."""
        found = await self._connection.execute("HGETALL", self._of(tenant))
        records = map(_decoder.decode, found[1::2])
        return sorted(records, key=lambda one: (one.session.opened_at, one.session.id))

    async def all(self) -> dict[str, list[SessionRecord]]:
        """Return those of all tenants that have any."""
        names = await self._connection.execute("SMEMBERS", self._tenants)
        found = {name: await self.of_tenant(name) for name in sorted(map(bytes.decode, names))}
        return {tenant: records for tenant, records in found.items() if records}

    async def one(self, owner: Owner, session_id: str) -> SessionRecord | None:
        """Return a session of this agent; None: it has none of that id."""
        found = await self._connection.execute("HGET", self._of(owner.tenant), session_id)
        record = None if found is None else _decoder.decode(found)
        return record if record is not None and record.agent == owner.agent else None

    async def write(self, tenant: str, record: SessionRecord) -> None:
        """Write a session down."""
        await self._connection.execute(
            "HSET", self._of(tenant), record.session.id, msgspec.json.encode(record)
        )
        await self._connection.execute("SADD", self._tenants, tenant)

    async def forget(self, tenant: str, *session_ids: str) -> None:
        """Take sessions away."""
        if session_ids:
            await self._connection.execute("HDEL", self._of(tenant), *session_ids)
            # In this order: a session that is written down meanwhile is found in any case.
            await self._connection.execute("SREM", self._tenants, tenant)
            if await self._connection.execute("EXISTS", self._of(tenant)):
                await self._connection.execute("SADD", self._tenants, tenant)

    async def living(self, host: str) -> None:
        """Say that a host lives."""
        await self._connection.execute("SET", self._host(host), "1", "PX", str(HOST_MS))

    async def has_left(self, host: str) -> None:
        """Say that a host lives no more."""
        await self._connection.execute("DEL", self._host(host))

    async def lives(self, host: str) -> bool:
        """Tell whether a host lives."""
        return bool(await self._connection.execute("EXISTS", self._host(host)))

    async def send(self, host: str, message: Any) -> None:  # noqa: ANN401  what JSON has
        """Put a message into a host's inbox."""
        key = self._inbox(host)
        await self._connection.execute("RPUSH", key, msgspec.json.encode(message))
        await self._connection.execute("EXPIRE", key, str(INBOX_S))

    async def received(self, host: str, waiting: Connection, wait_s: float) -> Any | None:  # noqa: ANN401
        """Return the next message of an inbox; None: none came. `waiting`: a connection for it."""
        found = await waiting.execute(
            "BLPOP", self._inbox(host), str(wait_s), timeout_s=wait_s + HOST_MS / 1000
        )
        return None if found is None else msgspec.json.decode(found[1])

    @property
    def _tenants(self) -> str:
        return self._keys.own("exec_tenants")  # Set: tenants that have sessions

    def _of(self, tenant: str) -> str:
        return self._keys.own(f"exec_sessions:{tenant}")  # Hash: id -> JSON of its record

    def _host(self, host: str) -> str:
        return self._keys.own(f"exec_host:{host}")  # String: there while the host lives

    def _inbox(self, host: str) -> str:
        return self._keys.own(f"exec_inbox:{host}")  # List: messages to it


def spare(records: list[SessionRecord], now: float) -> list[str]:
    """Return the ids of lost sessions that need not be known any longer."""
    lost = [one for one in records if one.session.state == "lost"]
    lost.sort(key=lambda one: one.changed_at, reverse=True)
    return [one.session.id for at, one in enumerate(lost) if at >= KEPT_LOST or one.is_spare(now)]
