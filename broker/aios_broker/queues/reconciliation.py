"""Compare a long queue with what is live, a part at a time: stock RQ tools may have changed it.

All that is live is compared with all that has a place. Both are read bit by bit, while jobs come,
go and move, so what does not match is only a question: `mend.lua` answers it, about one job, in
one step. No step keeps Redis busy for more than a few milliseconds, however long the queue is.

The run queue is read from its tail to its head: what is claimed or comes in meanwhile shifts no
piece past another. A job that moved from one that was still to be read to one that had been read is
taken for missing. That is harmless: it becomes a suspect, and the next pass finds it.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import islice

from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Answer, Argument, Connection

ALL_AT_ONCE = 2000  # live jobs that one step compares: about 4 ms of Redis' time
PIECE = 500  # ids that are read in one step
OVERLAP = 64  # by how many jobs near the tail may leave between two pieces
AT_ONCE = 100  # jobs that are mended in one step: 4 ms where all of them are ended
STALE_AT_ONCE = 4  # each is looked for in the whole queue
MOST_SEARCHED = 1000  # jobs that are looked for, one by one, in the whole queue: a second of Redis
GHOSTS_PIECE = 2000  # ids that are read in one step: under 1 ms of Redis' time
MOST_GHOSTS = 10_000  # ghosts of one pass
REACH = 128  # by how many jobs the tail may move between reading and taking off
NOTES = (1, 2, 3, 4)  # scores, suspects, suspending, control

Step = Callable[[list[Argument]], Awaitable[Answer]]
Unlist = Callable[[str, list[Argument]], Awaitable[Answer]]  # in this queue


class EpochOver(Exception):
    """Another scheduler leads; nothing was changed."""


class Reconciliation:
    """One pass. `stale`: what the last one found in the queue with nothing to run."""

    def __init__(
        self,
        redis: Connection,
        keys: Keys,
        module: str,
        mend: Step,
        stale: frozenset[bytes],
        queues: Sequence[str],
    ) -> None:
        self.uncounted = False  # the load of quotas is to be counted anew
        self.stale: frozenset[bytes] = frozenset()  # found by this one
        self._redis = redis
        self._queues = [keys.queue(name) for name in queues]
        self._live = keys.own(f"live:{module}")
        self._suspects = keys.own(f"suspects:{module}")
        self._mend = mend
        self._stale_before = stale

    async def run(self, all_at_once: int) -> int:
        """Make the pass; return how many jobs were put right.

        Raises:
            EpochOver: another scheduler leads.
        """
        suspects = await self._read_suspects()
        strangers: set[bytes] = set()
        for queue in self._queues:
            strangers |= await self._read_queue(queue)
        mended = await self._mend_live(strangers, suspects)
        mended += await self._mend_strangers(strangers)
        for place in NOTES:
            cursor = b"0"
            while (cursor := (await self._ask("leftovers", place, cursor))[1]) != b"0":
                pass
        self.uncounted = bool((await self._ask("end", all_at_once))[1])
        return mended

    async def _ask(self, kind: str, *arguments: Argument) -> list[Answer]:
        answer = await self._mend([kind, *arguments])
        if answer == 0:
            raise EpochOver
        rows: list[Answer] = answer
        return rows

    async def _read_queue(self, queue: str) -> set[bytes]:
        listed: set[bytes] = set()
        last = -1
        while ids := await self._redis.execute("LRANGE", queue, last - PIECE + 1, last):
            listed.update(ids)
            if len(ids) < PIECE:
                break
            last -= PIECE - OVERLAP
        return listed

    async def _read_suspects(self) -> set[bytes]:
        suspects: set[bytes] = set()
        cursor = b"0"
        while True:
            cursor, flat = await self._redis.execute(
                "ZSCAN", self._suspects, cursor, "COUNT", PIECE
            )
            suspects.update(flat[::2])
            if cursor == b"0":
                return suspects

    async def _mend_live(self, listed: set[bytes], suspects: set[bytes]) -> int:
        """Mend what is live and not listed; leave in `listed` what is listed and not live."""
        mended, searched = 0, 0
        cursor = b"0"
        while True:
            cursor, flat = await self._redis.execute("HSCAN", self._live, cursor, "COUNT", PIECE)
            unlisted, found = [], []
            for job_id in flat[::2]:
                if job_id not in listed:
                    unlisted.append(job_id)
                elif job_id in suspects:
                    found.append(job_id)
            listed.difference_update(flat[::2])
            for part in _parts(found, AT_ONCE):
                await self._ask("found", *part)
            searched += sum(job_id in suspects for job_id in unlisted)
            mended += await self._mend_unlisted(unlisted, search=searched <= MOST_SEARCHED)
            if cursor == b"0":
                return mended

    async def _mend_unlisted(self, ids: list[bytes], *, search: bool) -> int:
        mended = 0
        while ids:
            again: list[bytes] = []
            for part in _parts(ids, AT_ONCE):
                count, *rest = await self._ask("unlisted", int(search), *part)
                mended += count
                again += rest
            ids = again
        return mended

    async def _mend_strangers(self, strangers: Iterable[bytes]) -> int:
        mended, stale = 0, set[bytes]()
        for part in _parts(strangers, AT_ONCE):
            count, *nothing = await self._ask("listed", *part)
            mended += count
            stale.update(nothing)
        again = [*(stale & self._stale_before)][:MOST_SEARCHED]
        for part in _parts(again, STALE_AT_ONCE):
            mended += (await self._ask("stale", *part))[0]
        self.stale = frozenset(stale.difference(again))
        return mended


def _parts(ids: Iterable[bytes], size: int) -> Iterator[tuple[bytes, ...]]:
    rest = iter(ids)
    while part := tuple(islice(rest, size)):
        yield part


async def unlist_ghosts(
    redis: Connection, keys: Keys, module: str, queues: Sequence[str], unlist: Unlist
) -> None:
    """Go through long queues once, from their tails to their heads; take off what has left them."""
    ghosts = set(await redis.execute("SRANDMEMBER", keys.own(f"ghosts:{module}"), MOST_GHOSTS))
    for queue in queues:
        if ghosts:
            await _unlist_in(redis, keys, queue, ghosts, unlist)
    rest = list(ghosts)  # a claim has dropped them
    for begin in range(0, len(rest), GHOSTS_PIECE):
        await unlist(module, [0, 0, *rest[begin : begin + GHOSTS_PIECE]])


async def _unlist_in(
    redis: Connection, keys: Keys, queue: str, ghosts: set[bytes], unlist: Unlist
) -> None:
    """Take off one queue what is seen of the ghosts there, and off these."""
    key, last = keys.queue(queue), -1
    while ghosts and (ids := await redis.execute("LRANGE", key, last - GHOSTS_PIECE + 1, last)):
        removed = 0
        if seen := ghosts.intersection(ids):
            first, behind = last - GHOSTS_PIECE + 1 - REACH, min(-1, last + REACH)
            removed = int(await unlist(queue, [first, behind, *seen]))
            ghosts -= seen
        if len(ids) < GHOSTS_PIECE:
            break
        last = min(-1, last + removed + OVERLAP - GHOSTS_PIECE)  # what is in front has moved up
