"""The list to which workers push one client's replies and chunks."""

from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection

REPLIES = 1000  # taken by one blocking call


class ReplyBox:
    """Reads the list to which workers push this client's replies and chunks."""

    def __init__(self, blocking: Connection, client: str, keys: Keys | None = None) -> None:
        self.client = client
        self._key = (keys or Keys()).reply(client)
        self._connection = blocking

    async def take(self, *, timeout_s: float = 2.0) -> list[bytes]:
        """Return all messages that are there; wait up to `timeout_s` for the first one.

        The connection must be this box's alone. A message taken here is gone from Redis: one
        that is lost with the client is found again by id (ModuleQueue.attach).
        """
        answer = await self._connection.execute(
            "BLMPOP", timeout_s, 1, self._key, "LEFT", "COUNT", REPLIES, timeout_s=timeout_s + 5.0
        )
        return answer[1] if answer else []

    async def aclose(self) -> None:
        """Close the connection; the list expires by itself."""
        await self._connection.aclose()
