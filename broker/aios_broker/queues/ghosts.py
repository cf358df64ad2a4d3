"""Take off a long run queue what has left it, a piece at a time: see unlist.lua."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Answer, Argument, Connection

PIECE = 2000  # ids that are read in one step: under 1 ms of Redis' time
OVERLAP = 64  # by how many jobs near the tail may leave between two pieces
MOST = 10_000  # ghosts of one pass
REACH = 128  # by how many jobs the tail may move between reading and taking off

Unlist = Callable[[list[Argument]], Awaitable[Answer]]


async def unlist_ghosts(redis: Connection, keys: Keys, module: str, unlist: Unlist) -> None:
    """Go through the queue once, from its tail to its head, and take off what has left it."""
    key, queue = keys.own(f"ghosts:{module}"), keys.queue(module)
    ghosts = set(await redis.execute("SRANDMEMBER", key, MOST))
    last = -1
    while ghosts and (ids := await redis.execute("LRANGE", queue, last - PIECE + 1, last)):
        removed = 0
        if seen := ghosts.intersection(ids):
            first, behind = last - PIECE + 1 - REACH, min(-1, last + REACH)
            removed = int(await unlist([first, behind, *seen]))
            ghosts -= seen
        if len(ids) < PIECE:
            break
        last = min(-1, last + removed + OVERLAP - PIECE)  # what is in front has moved up
    rest = list(ghosts)  # a claim has dropped them
    for begin in range(0, len(rest), PIECE):
        await unlist([0, 0, *rest[begin : begin + PIECE]])
