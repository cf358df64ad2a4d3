"""A small asyncio client for Redis: every command of one loop tick leaves in one write.

redis.asyncio costs 57 us of CPU per concurrent command, this 2 (docs/decisions/0002). It does
what the kernel's hot path needs and no more: commands and replies in order on one connection,
a time limit on each, and a new connection when the old one is gone. Commands that were under
way when a connection broke fail with RedisUnavailable: whether they ran is not known, and every
function of ours may be sent again.

Of a master with replicas it talks to the master, whichever that is when it connects; of a
cluster, to the node that serves the keys it is asked for. All keys of one deployment lie in one
slot, so one node at a time is enough.
"""

import asyncio

from aios_broker.contract.errors import RedisUnavailable
from aios_broker.contract.urls import without_password
from aios_broker.redis.address import Address, parse_url
from aios_broker.redis.wire import FAILURES, Answer, Argument, Moved, NotHere, Wire, dial, seek

__all__ = ["CONNECT_TIMEOUT_S", "Address", "Answer", "Argument", "Connection", "parse_url"]

CONNECT_TIMEOUT_S = 5.0
HOME_TIMEOUT_S = 1.5  # of that, for the node that served us last
COMMAND_TIMEOUT_S = 15.0
MOST_MOVES = 5  # redirections of one command: more is a cluster that contradicts itself


class Connection:
    """One connection to Redis, opened when first used and opened again when it broke.

    For one event loop. Blocking commands need a connection of their own. Cancelling a
    coroutine that waits for a reply does not disturb the others; the reply is dropped.
    """

    def __init__(
        self, url: str, *, name: str = "aios", timeout_s: float = COMMAND_TIMEOUT_S
    ) -> None:
        self.url = url
        self._addresses = parse_url(url)
        self._home: Address | None = None  # the node of a cluster that has our keys
        self._name = name
        self._timeout_s = timeout_s
        self._protocol: Wire | None = None
        self._opening: asyncio.Lock = asyncio.Lock()
        self._refusals = 0  # attempts to open it that failed
        self._why = ""  # the last one did
        self._closed = False

    async def execute(self, *arguments: Argument, timeout_s: float | None = None) -> Answer:
        """Send one command and return its reply.

        Raises:
            RedisUnavailable: no connection, a broken one, or no reply in time.
            RedisFull: it has used up its memory; nothing was changed.
            hiredis.ReplyError: Redis refused the command.
        """
        for _ in range(MOST_MOVES):
            protocol = self._protocol
            if protocol is None or protocol.lost is not None:
                protocol = await self._open()
            future = protocol.send(arguments)
            limit_s = self._timeout_s if timeout_s is None else timeout_s
            try:
                async with asyncio.timeout(limit_s):
                    return await future
            except TimeoutError as error:
                protocol.close()  # replies come in order: one that is late would delay all others
                raise RedisUnavailable(
                    f"Redis did not answer {arguments[0]!r} within {limit_s:g} s",
                    remedy="see `aios doctor`; it may or may not have run",
                ) from error
            except Moved as moved:
                self._move(protocol, moved)
        raise RedisUnavailable(
            f"the cluster sent {arguments[0]!r} from node to node",
            retry_after_s=1.0,
            remedy="nothing was changed; send it again",
        )

    async def in_cluster(self) -> bool:
        """Tell whether this is a node of a cluster.

        Raises:
            RedisUnavailable: no connection.
        """
        protocol = self._protocol
        if protocol is None or protocol.lost is not None:
            protocol = await self._open()
        return protocol.clustered

    def _move(self, protocol: Wire, moved: Moved) -> None:
        """Let the next command go where this one was sent."""
        self._home = protocol.address.neighbour(moved.place)
        protocol.retire(ConnectionAbortedError(f"the keys moved to {self._home}"))

    async def _open(self) -> Wire:
        refusals = self._refusals
        async with self._opening:
            if self._closed:
                raise RedisUnavailable("this connection was closed", remedy="open a new client")
            if self._protocol is not None and self._protocol.lost is None:
                return self._protocol
            if self._refusals != refusals:  # all who waited for that attempt share its failure
                raise self._not_there()
            if self._protocol is not None and isinstance(self._protocol.lost, NotHere):
                self._home = None
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    protocol = await self._find()
            except FAILURES as error:
                self._refusals += 1
                self._why = str(error) or "no answer in time"
                raise self._not_there() from error
            if self._closed:
                protocol.close()
                raise RedisUnavailable("this connection was closed", remedy="open a new client")
            self._protocol = protocol
            return protocol

    async def _find(self) -> Wire:
        """Go to the node that has our keys; where it does not answer, ask the others for it."""
        home, self._home = self._home, None
        if home is not None:
            try:
                async with asyncio.timeout(HOME_TIMEOUT_S):
                    wire = await dial(home, self._name)
            except FAILURES as error:
                self._why = str(error)
            else:
                self._home = home
                return wire
        return await seek(self._addresses, self._name)

    def _not_there(self) -> RedisUnavailable:
        return RedisUnavailable(
            f"no Redis at {without_password(self.url)}: {self._why}",
            field="AIOS_REDIS_URL",
            remedy="start it, or correct the URL",
            retry_after_s=1.0,
        )

    async def aclose(self) -> None:
        """Close; what waits fails. Safe to call twice."""
        self._closed = True
        if self._protocol is not None:
            self._protocol.close()
            self._protocol = None
            await asyncio.sleep(0)  # the transport closes at the loop's next turn: let it come
