"""The kernel's secret, which makes the ids that only their agent can have."""

import secrets

from aios_broker.contract.ids import IdMaker
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection

SECRET_BYTES = 32


class KernelSecret:
    """Made by whoever needs it first; where there is a database, it gives back what Redis lost."""

    def __init__(self, connection: Connection, keys: Keys | None = None) -> None:
        self._connection = connection
        self._key = (keys or Keys()).own("secret")

    async def read(self) -> bytes:
        """Return it; make it where there is none."""
        found: bytes | None = await self._connection.execute("GET", self._key)
        if found is None:
            made = secrets.token_bytes(SECRET_BYTES)
            await self._connection.execute("SET", self._key, made, "NX")
            found = await self._connection.execute("GET", self._key)  # another's, if it was first
        assert found is not None
        return found

    async def restore(self, secret: bytes) -> None:
        """Put the one back that there was before."""
        await self._connection.execute("SET", self._key, secret)

    async def id_maker(self) -> IdMaker:
        """Return what makes ids with it."""
        return IdMaker(await self.read())
