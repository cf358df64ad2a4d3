"""Keep the head of a run queue in the order of turns (policy rr), see `turns.py`.

What is known is the beginning of the queue: what has come since the last look is taken in from the
oldest on, and what is not known yet is as if it came later. Of what one program had when it was
alone, however much that is, only the ends are: it stands in its order, and is taken in as it comes
to the head.

Nothing here is kept in Redis: a scheduler that takes over reads who waits, and begins a new round.
A queue that is too long to be read at once it reads from the tail, beside its decisions; until it
has, nobody has a turn: others may have waited for longer.
"""

import asyncio
from collections.abc import Sequence
from itertools import chain, takewhile

from aios_broker.queues.order import Order
from aios_broker.scheduler.ranking import LeadershipLost
from aios_broker.scheduler.turns import Turn, Turns, first_wrong, wanted_at_head

TURNS = 64  # that are brought to the head at a time; what is taken faster goes by arrival
WHOLE_QUEUE = 500  # up to this many waiting jobs the whole queue is written anew where it changes
SLACK = 32  # by how many jobs the ends may move between a tick's look and its change
LEAST_WAIT_MS = 50  # where the first one waits for less, nobody is kept from anything
READ_AT_ONCE = 250  # jobs in one call: under 1 ms of Redis' time
PIECE = 1_000  # jobs that are read by calls that are under way together
PIECES = 4  # one after the other: 100,000 jobs are read within a second or two
NEW_AT_ONCE = 4_000  # that a tick takes in at most: a burst is no reason to decide nothing
MOST_NEW = 20_000  # since the last tick; where more is, the queue is read before anybody has a turn
OVERLAP = 32  # by how many jobs what was read may have moved between two pieces
MIDDLE_PLACES = 200_000  # that are passed to find jobs in the middle of the queue: up to 2 ms


class TurnOrder:
    """Keeps the head of one run queue in the order of turns."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.forget()

    def forget(self) -> None:
        """Know of nobody."""
        self._turns = Turns()
        self._placed: list[str] = []  # at the head, in this order, after the last look
        self._is_asked = False  # somebody waits for another: it is to be read
        self._is_read = False  # so far that nobody is left out
        self._num_new = 0  # at the tail, not known yet, at the last look
        self._extent = 0  # until it is read: how far it was, back from the last known one
        # The last one that waited at the last look, if all that was live then was of one program.
        self._last_alone = ""
        self._behind_gap = ""  # what stands before this and was not at the head yet is not read

    async def step(self, epoch: int) -> bool:
        """Bring those to the head whose turn is next; return whether there are any who take turns.

        Raises:
            LeadershipLost: another scheduler leads.
        """
        # Of a long queue that is known the first has often just come: who has just been put there.
        is_long = len(self._turns) > TURNS + SLACK
        ends = await self._order.turns(TURNS + SLACK, 0 if is_long else LEAST_WAIT_MS)
        if isinstance(ends, str):
            self.forget()
            self._last_alone = ends
            return False
        length, head, tail = ends
        self._settle(head)
        is_whole = length <= len(head) + len(tail)
        seen = (*head, *tail[len(head) + len(tail) - length :]) if is_whole else tail
        await self._take_in(seen, is_whole=is_whole)
        self._is_asked = True
        await self.read_on()
        if not self._is_read:
            return True
        await self._take_in_first(head)
        changed = await self._put_in_order(epoch, length, head, tail)
        return changed or self._num_new > 0 or self._turns.are_shared

    def _settle(self, head: Sequence[str]) -> None:
        """Take note of those who were at the head and are not there any more."""
        standing = set(head)
        for job_id in self._placed:
            if job_id not in standing:
                self._turns.had_turn(job_id)
        self._placed = [job_id for job_id in self._placed if job_id in standing]
        self._turns.forget_idle()

    async def _take_in(self, tail: Sequence[str], *, is_whole: bool) -> None:
        """Take in what has come to the tail since the last look.

        The oldest goes first: what is left for the next look is as if it came later. `is_whole`:
        the tail is all of the queue.
        """
        fresh, known = await self._unknown(tail, is_whole=is_whole)
        if len(fresh) == MOST_NEW:
            self.forget()  # to be read from the beginning
            return
        if not self._is_asked:
            await self._begin(known)
        taken, most = 0, len(self._turns) + NEW_AT_ONCE
        while taken < len(fresh) and len(self._turns) < most:
            part = fresh[taken : taken + PIECE]
            for turn in await self._turns_of(part):
                self._turns.add(turn)
            taken += len(part)
        self._num_new = len(fresh) - taken
        self._extent += taken

    async def _begin(self, known: Sequence[str]) -> None:
        """Begin with the last ones of the program that was alone, or with the first that waits."""
        for turn in await self._turns_of(known):
            self._turns.add(turn)
        self._is_read = True
        self._behind_gap = known[0] if known else ""

    async def _take_in_first(self, head: Sequence[str]) -> None:
        """Take in what has come to the head from the gap."""
        if not self._behind_gap:
            return
        # What came there by another way stands before what was placed.
        first = head.index(self._placed[0]) if self._placed else 0
        unknown = [job_id for job_id in head[first:] if job_id not in self._turns]
        for turn in await self._turns_of(unknown):
            self._turns.add_first(turn)
        if self._behind_gap in head:
            self._behind_gap = ""

    async def read_on(self) -> bool:
        """Read a piece of what waits, from the tail to the head; return whether there is more."""
        if not self._is_asked or self._is_read:
            return False
        ids = await self._order.before_tail(self._num_new + self._extent, PIECE)
        known = [place for place, job_id in enumerate(ids) if job_id in self._turns]
        if self._turns and not known:
            # So much has moved since the last look that it does not join on to what is known.
            self._extent = max(0, self._extent - PIECE)
            return True
        # Behind the last known one stands what has come since.
        older = [job_id for job_id in ids[: max(known, default=PIECE)] if job_id not in self._turns]
        for turn in await self._turns_of(older[::-1]):
            self._turns.add_older(turn)
        self._extent += len(ids) - OVERLAP
        self._is_read = len(ids) < PIECE
        return not self._is_read

    async def _unknown(
        self, tail: Sequence[str], *, is_whole: bool
    ) -> tuple[Sequence[str], Sequence[str]]:
        """Return the tail from the first new id on, and up to this one some that stand before.

        Among the new ones may be known ones that have come back. Of more than `MOST_NEW` the last
        ones; else these are all that the scheduler has not seen.
        """
        ids, count = tail, TURNS + SLACK
        if self._num_new:  # behind what was left over may be known ones that have come back
            count = min(self._num_new + 2 * count, MOST_NEW)
            ids = await self._order.before_tail(0, count)
            is_whole = len(ids) < count
        while True:
            at = self._first_new(ids, is_whole=is_whole)
            if at or is_whole or count == MOST_NEW:
                return ids[at:], ids[max(0, at - READ_AT_ONCE) : at]
            count = min(8 * count, MOST_NEW)
            ids = await self._order.before_tail(0, count)  # at once: more comes meanwhile
            is_whole = len(ids) < count

    def _first_new(self, ids: Sequence[str], *, is_whole: bool) -> int:
        """Return the place from which on the tail is new.

        All before the last known one is known, too, where it did not come back from a slice behind
        newcomers. What may stand before a known one and be old is what came to the head by another
        way, what is in the gap, and what is still to be read.
        """
        if not self._is_read:
            return len(ids) - sum(1 for _ in takewhile(self._is_unknown, reversed(ids)))
        first = 0
        if self._behind_gap in ids:
            first = ids.index(self._behind_gap)
        elif is_whole:
            first = sum(1 for _ in takewhile(self._is_unknown, ids)) % len(ids) if ids else 0
        return first + self._turns.num_known(ids[first:])

    def _is_unknown(self, job_id: str) -> bool:
        return job_id not in self._turns and job_id != self._last_alone

    async def _turns_of(self, job_ids: Sequence[str]) -> list[Turn]:
        """Read whose jobs these are; those that are gone are left out."""
        found: list[Turn] = []
        for first in range(0, len(job_ids), PIECE):
            piece = job_ids[first : first + PIECE]
            parts = [piece[at : at + READ_AT_ONCE] for at in range(0, len(piece), READ_AT_ONCE)]
            if len(parts) == 1:  # as at nearly all looks: no task is made for it
                answers = [await self._order.owners(parts[0])]
            else:
                answers = await asyncio.gather(*map(self._order.owners, parts))
            owners = chain.from_iterable(answers)
            found += [
                Turn.of(job_id, metadata)
                for job_id, metadata in zip(piece, owners, strict=True)
                if metadata is not None
            ]
        return found

    async def _put_in_order(
        self, epoch: int, length: int, head: Sequence[str], tail: Sequence[str]
    ) -> bool:
        """Return whether anything had to be changed."""
        # What came to the head by another way (its worker died, a person has decided) stays there.
        ahead = [job_id for job_id in head[:TURNS] if job_id not in self._turns]
        is_short = length <= WHOLE_QUEUE
        near = None if is_short else {*head, *tail}
        turns = self._turns.next(TURNS - len(ahead))
        self._placed, searched = wanted_at_head(turns, near, max(1, MIDDLE_PLACES // length))
        wanted = ahead + self._placed
        count = first_wrong(wanted, head)
        if not count:
            return False
        ends = 0 if is_short else TURNS + 2 * SLACK
        lost = await self._order.put_first(epoch, wanted[:count], ends=ends, middle=searched)
        if lost is None:
            raise LeadershipLost
        # More has come since the look than the slack is for: they have their turn at the next one.
        self._placed = [job_id for job_id in self._placed if job_id not in lost]
        return True
