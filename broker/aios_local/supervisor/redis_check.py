"""Whether a Redis that is somebody else's will do: asked before anything is started on it."""

import asyncio
import ssl

import hiredis

from aios_broker.contract.errors import InvalidConfig, RedisUnavailable
from aios_broker.queues.functions import LIBRARY
from aios_broker.redis.address import Address, parse_url
from aios_broker.redis.connection import Connection

KEEPS_ALL = "noeviction"  # the one maxmemory-policy that never drops a key by itself
NEEDED = (("TIME",), ("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY))
FIELD = "AIOS_REDIS_URL"
PLAIN_S = 2.0  # so long a port may take to answer in plain text; one with TLS closes it


async def check_redis(url: str, *, may_evict: bool) -> None:
    """Return where the server will do, and where none answers: it may come yet.

    Raises:
        InvalidConfig: it refuses our login or what every step needs, or it drops keys when full.
    """
    for address in parse_url(url):
        if address.tls and await _is_plain(address):
            raise InvalidConfig(
                f"{address.host}:{address.port} speaks no TLS, and the URL begins with rediss://",
                field=FIELD,
                remedy="correct its scheme (redis://) or its port",
            )
    connection = Connection(url, name="aios-check")
    try:
        await _check_login(connection)
        if not may_evict:
            await check_eviction(connection)
    except RedisUnavailable as error:
        if isinstance(error.__cause__, hiredis.ReplyError | ssl.SSLError):
            raise InvalidConfig(
                error.message, field=FIELD, remedy="correct its user, password or scheme"
            ) from None
    finally:
        await connection.aclose()


async def _is_plain(address: Address) -> bool:
    """Whether a port answers as a Redis without TLS: it would wait for the end of a handshake."""
    try:
        async with asyncio.timeout(PLAIN_S):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            try:
                writer.write(b"PING\r\n")
                return await reader.read(1) in (b"+", b"-")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def _check_login(connection: Connection) -> None:
    for command in NEEDED:
        try:
            await connection.execute(*command)
        except hiredis.ReplyError as error:
            raise InvalidConfig(
                f"its Redis refuses {command[0]}: {error}",
                field=FIELD,
                remedy=f"allow its user {command[0]}, or name another one",
            ) from None


async def check_eviction(connection: Connection) -> None:
    """Return where the server keeps what it has, or does not say.

    Raises:
        InvalidConfig: it drops keys when it is full.
        RedisUnavailable: none answers.
    """
    try:
        said = await connection.execute("INFO", "memory")
    except hiredis.ReplyError:
        return  # its user may not ask
    facts = dict(line.split(":", 1) for line in said.decode().splitlines() if ":" in line)
    policy = facts.get("maxmemory_policy", KEEPS_ALL)
    if policy != KEEPS_ALL:
        raise InvalidConfig(
            f"its Redis drops keys when it is full (maxmemory-policy {policy}): syscalls are lost",
            field=FIELD,
            remedy="CONFIG SET maxmemory-policy noeviction, or AIOS_REDIS_EVICTION=allow",
        )
