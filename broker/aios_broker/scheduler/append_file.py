"""What stock RQ producers wrote is taken out of Redis' append-only file, too.

A token leaves the record of such a job when it is claimed; the file has it until it is rewritten.
"""

import logging

import hiredis

from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection

logger = logging.getLogger(__name__)

LOOK_S = 1.0
TOGETHER_S = 2.0  # jobs that come together are waited for
REWRITE_EVERY_S = 600.0  # at most: Redis writes all that it holds


async def rewrite_where_tokens_were(connection: Connection, keys: Keys) -> float:
    """Have the file rewritten where a token was taken out of a record; return the pause, in s."""
    noted = keys.own("rewrite")
    since_ms = await connection.execute("GET", noted)
    seconds, _ = await connection.execute("TIME")
    if since_ms is None or int(seconds) - int(since_ms) / 1000 < TOGETHER_S:
        return LOOK_S
    await connection.execute("DEL", noted)  # what is noted from here on is for the next time
    if b"aof_enabled:1" not in await connection.execute("INFO", "persistence"):
        return REWRITE_EVERY_S
    try:
        await connection.execute("BGREWRITEAOF")
    except hiredis.ReplyError as error:  # one is under way; or it may not be asked for
        logger.warning("tokens of stock jobs stay in the append-only file for now: %s", error)
        await connection.execute("SET", noted, since_ms, "NX")
    return REWRITE_EVERY_S
