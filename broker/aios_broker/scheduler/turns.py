"""Who has the next turn: tenants take turns, in each its agents, their programs, and their jobs.

Whoever sends more gets no more turns for it, and neither does who splits what it sends among many
agents or programs. A job that takes several places of a core (several answers, beams) counts as so
many turns. Who comes back after a while is next, and has saved up nothing.

Nothing here is kept in Redis: a scheduler that takes over reads who waits, and begins a new round.
"""

import heapq
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from aios_broker.queues.order import Order
from aios_broker.queues.records import JobMetadata
from aios_broker.scheduler.ranking import LeadershipLost

TURNS = 64  # that are brought to the head at a time; what is taken faster goes by arrival
WHOLE_QUEUE = 500  # up to this many waiting jobs the whole queue is written anew where it changes
SLACK = 32  # by how many jobs the ends may move between a tick's look and its change
LEAST_WAIT_MS = 50  # where the first one waits for less, nobody is kept from anything
READ_AT_ONCE = 250  # jobs in one call: under 1 ms of Redis' time
PIECES = 16  # such calls one after the other: 100,000 jobs are read within a second or two
MOST_NEW = 20_000  # since the last tick; of more the whole queue is read anew
OVERLAP = 32  # by how many jobs what was read may have moved between two pieces
MIDDLE_PLACES = 200_000  # that are passed to find jobs in the middle of the queue: up to 2 ms


@dataclass(frozen=True, slots=True)
class Turn:
    """One job that waits."""

    job_id: str
    path: tuple[str, str, str]  # tenant, agent, tree of programs
    width: int = 1  # places of a core that it takes at a time

    @classmethod
    def of(cls, job_id: str, metadata: JobMetadata) -> "Turn":
        """Return the turn of a job."""
        path = (metadata.tenant, metadata.agent, metadata.tree)
        return cls(job_id, path, max(1, metadata.width))


@dataclass(slots=True, eq=False)
class _Group:
    """Those who take turns with each other: all tenants, a tenant's agents, an agent's programs."""

    start: int = 0  # its next turn, by the count of the group that it is in
    came: int = 0  # when it began to wait, among its equals
    now: int = 0  # the start of whoever of its members had a turn last
    waiting: int = 0
    members: "dict[str, _Group]" = field(default_factory=dict)
    order: "list[_Place]" = field(default_factory=list)  # of the members that wait, sorted
    jobs: "deque[Turn]" = field(default_factory=deque)  # of a program

    def enter(self, member: "_Group") -> None:
        """Give a member its place among those that wait."""
        insort(self.order, (member.start, member.came, member))

    def leave(self, member: "_Group") -> None:
        """Take a member from its place."""
        del self.order[bisect_left(self.order, (member.start, member.came))]


_Place = tuple[int, int, _Group]  # start, came: no two of a group have both alike


@dataclass(slots=True)
class _Planned:
    """A group while turns are planned ahead: nothing of it is changed."""

    left: int
    again: list[_Place] = field(default_factory=list)  # a heap: of those that have had one in it
    next_place: int = 0
    next_job: int = 0


class Turns:
    """The jobs that wait, and whose turn it is. Pure."""

    def __init__(self) -> None:
        self._root = _Group()
        self._known: dict[str, Turn] = {}
        self._newest = self._oldest = 0
        self._idle: list[tuple[_Group, str]] = []  # groups, and whom of them to forget when due

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._known)

    def __contains__(self, job_id: object) -> bool:
        """Tell whether a job waits."""
        return job_id in self._known

    @property
    def are_shared(self) -> bool:
        """Whether jobs of more than one program wait."""
        group = self._root
        while len(group.order) == 1:
            group = group.order[0][2]
        return bool(group.order)

    def add(self, turn: Turn) -> None:
        """Let a job wait that came after all that are known."""
        if turn.job_id not in self._known:
            self._newest += 1
            for group, member in self._line(turn):
                if not member.waiting:
                    member.start, member.came = max(member.start, group.now), self._newest
                    group.enter(member)
                member.waiting += 1
            member.jobs.append(turn)

    def add_older(self, turn: Turn) -> None:
        """Let a job wait that came before all that are known."""
        if turn.job_id not in self._known:
            self._oldest -= 1
            for group, member in self._line(turn):
                if member.waiting:
                    group.leave(member)
                else:
                    member.start = max(member.start, group.now)
                member.came = self._oldest
                group.enter(member)
                member.waiting += 1
            member.jobs.appendleft(turn)

    def _line(self, turn: Turn) -> list[tuple[_Group, _Group]]:
        """Return the groups that a new job is in, each after the one whose member it is."""
        self._known[turn.job_id] = turn
        group = self._root
        group.waiting += 1
        line = []
        for name in turn.path:
            member = group.members.setdefault(name, _Group())
            line.append((group, member))
            group = member
        return line

    def had_turn(self, job_id: str) -> None:
        """Take note that a job waits no more: its owners have had their turn."""
        turn = self._known.pop(job_id, None)
        if turn is None:
            return
        group = self._root
        group.waiting -= 1
        for name in turn.path:
            member = group.members[name]
            group.now = max(group.now, member.start)
            group.leave(member)
            member.start += turn.width
            member.waiting -= 1
            if member.waiting:
                group.enter(member)
            else:
                self._idle.append((group, name))
            group = member
        group.jobs.remove(turn)

    def forget_idle(self) -> None:
        """Drop what is known of those who have nothing that waits and whose turn is over."""
        kept = []
        for group, name in self._idle:
            member = group.members.get(name)
            if member is None or member.waiting:
                continue
            if member.start <= group.now:
                del group.members[name]
            else:
                kept.append((group, name))
        self._idle = kept

    def next(self, count: int) -> list[Turn]:
        """Return the jobs of the next turns, in their order."""
        plans: dict[_Group, _Planned] = {}
        return [_take(self._root, plans) for _ in range(min(count, len(self._known)))]


def _take(group: _Group, plans: dict[_Group, _Planned]) -> Turn:
    """Return the next job of a group that has any left in this plan."""
    plan = plans.get(group)
    if plan is None:
        plan = plans[group] = _Planned(group.waiting)
    plan.left -= 1
    if group.jobs:
        plan.next_job += 1
        return group.jobs[plan.next_job - 1]
    start, came, member = _next_member(group, plan)
    turn = _take(member, plans)
    if plans[member].left:
        heapq.heappush(plan.again, (start + turn.width, came, member))
    return turn


def _next_member(group: _Group, plan: _Planned) -> _Place:
    """Take the one whose turn it is: of those that had none in this plan, or of the others."""
    order, place = group.order, plan.next_place
    if place == len(order) or (plan.again and plan.again[0] < order[place]):
        return heapq.heappop(plan.again)
    plan.next_place += 1
    return order[place]


def wanted_at_head(
    turns: Sequence[Turn], near: Collection[str] | None, middle: int
) -> tuple[list[str], int]:
    """Return the ids to bring to the head, in order, and how many are to be searched for.

    Those that stand near an end of the queue (None: all) cost nothing; of the others up to
    `middle`. Where one is left out, so are those behind it of its program: they keep their order.
    """
    wanted: list[str] = []
    left_out: set[tuple[str, str, str]] = set()
    searched = 0
    for turn in turns:
        far = near is not None and turn.job_id not in near
        if turn.path in left_out or (far and searched == middle):
            left_out.add(turn.path)
            continue
        searched += far
        wanted.append(turn.job_id)
    return wanted, searched


def first_wrong(wanted: Sequence[str], standing: Sequence[str]) -> int:
    """Return how many of the wanted ids have to be put in order; those behind stand right."""
    wrong = [
        place
        for place, job_id in enumerate(wanted)
        if place >= len(standing) or standing[place] != job_id
    ]
    return max(wrong, default=-1) + 1


class TurnOrder:
    """Keeps the head of one run queue in the order of turns."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.forget()

    def forget(self) -> None:
        """Know of nobody."""
        self._turns = Turns()
        self._placed: list[str] = []  # at the head, in this order, after the last look
        self._is_read = False  # all of the queue is known
        self._is_asked = False  # somebody waits for another: it is to be read
        self._offset = 0  # until then: how far it was read, from the tail

    async def step(self, epoch: int) -> bool:
        """Bring those to the head whose turn is next; return whether there are any who take turns.

        Raises:
            LeadershipLost: another scheduler leads.
        """
        # Of a long queue that is known the first has often just come: who has just been put there.
        is_long = len(self._turns) > TURNS + SLACK
        ends = await self._order.turns(TURNS + SLACK, 0 if is_long else LEAST_WAIT_MS)
        if ends is None:
            self.forget()
            return False
        length, head, tail = ends
        self._settle(head)
        if self._is_asked:
            await self._take_in(tail)
        self._is_asked = True
        await self._read_piece()
        if not self._is_read:
            return True
        return await self._put_in_order(epoch, length, head, tail) or self._turns.are_shared

    def _settle(self, head: Sequence[str]) -> None:
        """Take note of those who were at the head and are not there any more."""
        standing = set(head)
        for job_id in self._placed:
            if job_id not in standing:
                self._turns.had_turn(job_id)
        self._placed = []
        self._turns.forget_idle()

    async def _take_in(self, tail: Sequence[str]) -> None:
        """Take in what has come to the tail since the last look."""
        fresh = await self._unknown(tail)
        if len(fresh) >= MOST_NEW:
            self.forget()  # to be read from the beginning
            return
        for turn in reversed((await self._turns_of(fresh)).values()):
            self._turns.add(turn)

    async def read_on(self) -> bool:
        """Read some pieces of what waits, beside the decisions; return whether there is more.

        Nobody has a turn before all is read: others may have waited for longer.
        """
        for _ in range(PIECES):
            if not self._is_asked or self._is_read:
                return False
            await self._read_piece()
        return not self._is_read

    async def _read_piece(self) -> None:
        """Read a piece, from the tail to the head."""
        if self._is_read:
            return
        ids = await self._order.before_tail(self._offset, READ_AT_ONCE)
        older = [job_id for job_id in reversed(ids) if job_id not in self._turns]
        for turn in (await self._turns_of(older)).values():
            self._turns.add_older(turn)
        self._offset += len(ids) - OVERLAP
        self._is_read = len(ids) < READ_AT_ONCE

    async def _unknown(self, tail: Sequence[str]) -> list[str]:
        """Return the ids behind the last known one, newest first."""
        fresh: dict[str, None] = {}
        ids, seen = tail, 0
        while ids and len(fresh) < MOST_NEW:
            new = list(takewhile(lambda job_id: job_id not in self._turns, reversed(ids)))
            fresh |= dict.fromkeys(new)
            if len(new) < len(ids):
                break
            seen += len(ids)
            ids = await self._order.before_tail(seen, READ_AT_ONCE)
        return list(fresh)

    async def _turns_of(self, job_ids: Sequence[str]) -> dict[str, Turn]:
        """Read whose jobs these are; those that are gone are left out."""
        found: dict[str, Turn] = {}
        for first in range(0, len(job_ids), READ_AT_ONCE):
            part = job_ids[first : first + READ_AT_ONCE]
            owners = await self._order.owners(part)
            for job_id, metadata in zip(part, owners, strict=True):
                if metadata is not None:
                    found[job_id] = Turn.of(job_id, metadata)
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
