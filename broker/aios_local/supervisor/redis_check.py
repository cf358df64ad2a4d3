"""Whether a Redis that is somebody else's will do: asked before anything is started on it."""

import ssl

import hiredis

from aios_broker.contract.errors import InvalidConfig, RedisUnavailable
from aios_broker.queues.functions import LIBRARY
from aios_broker.redis.connection import Connection

KEEPS_ALL = "noeviction"  # the one maxmemory-policy that never drops a key by itself
NEEDED = (("TIME",), ("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY))
FIELD = "AIOS_REDIS_URL"


async def check_redis(url: str, *, may_evict: bool) -> None:
    """Return where the server will do, and where none answers: it may come yet.

    Raises:
        InvalidConfig: it refuses our login or what every step needs, or it drops keys when full.
    """
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
