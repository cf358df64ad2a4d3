"""The kernel's secret, which makes the ids that only their agent can have."""

import secrets

import hiredis

from aios_broker.contract.errors import RedisUnavailable
from aios_broker.contract.ids import IdMaker
from aios_broker.queues.functions import NOT_ALLOWED
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection

SECRET_BYTES = 32


class KernelSecret:
    """Made by whoever needs it first; where there is a database, it gives back what Redis lost."""

    def __init__(self, connection: Connection, keys: Keys | None = None) -> None:
        self._connection = connection
        self._key = (keys or Keys()).own("secret")

    async def read(self) -> bytes:
        """Return it; make it where there is none.

        Raises:
            RedisUnavailable: there is none, and this process's user may not make it.
        """
        found: bytes | None = await self._connection.execute("GET", self._key)
        if found is None:
            made = secrets.token_bytes(SECRET_BYTES)
            try:
                await self._connection.execute("SET", self._key, made, "NX")
            except hiredis.ReplyError as error:
                if not str(error).startswith(NOT_ALLOWED):
                    raise
                raise RedisUnavailable(
                    "Redis has not the kernel's secret yet, and this user may not make it",
                    remedy="start a scheduler: it does",
                    retry_after_s=1.0,
                ) from error
            found = await self._connection.execute("GET", self._key)  # another's, if it was first
        assert found is not None
        return found

    async def restore(self, secret: bytes) -> None:
        """Put the one back that there was before."""
        await self._connection.execute("SET", self._key, secret)

    async def id_maker(self) -> IdMaker:
        """Return what makes ids with it."""
        return IdMaker(await self.read())
