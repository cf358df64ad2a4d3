"""Who has the next turn: tenants take turns, in each its agents, their programs, and their jobs.

Whoever sends more gets no more turns for it, and neither does who splits what it sends among many
agents or programs. A job that takes several places of a core (several answers, beams) counts as so
many turns. Who comes back after a while is next, and has saved up nothing.

Nothing here is kept in Redis: a scheduler that takes over reads who waits, and begins a new round.
"""

import heapq
from collections import deque
from collections.abc import Collection, Container, Sequence
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
READ_PER_TICK = 5_000
OVERLAP = 32  # by how many jobs what was read may have moved between two pieces
MIDDLE_PLACES = 200_000  # that are passed to find jobs in the middle of the queue: up to 2 ms


@dataclass(frozen=True, slots=True)
class Turn:
    """One job that waits."""

    job_id: str
    path: tuple[str, str, str]  # tenant, agent, program
    width: int = 1  # places of a core that it takes at a time

    @classmethod
    def of(cls, job_id: str, metadata: JobMetadata) -> "Turn":
        """Return the turn of a job."""
        path = (metadata.tenant, metadata.agent, metadata.program)
        return cls(job_id, path, max(1, metadata.width))


@dataclass(slots=True, eq=False)
class _Group:
    """Those who take turns with each other: all tenants, a tenant's agents, an agent's programs."""

    start: int = 0  # its next turn, by the count of the group that it is in
    came: int = 0  # when it began to wait, among its equals
    now: int = 0  # the start of whoever of its members had a turn last
    waiting: int = 0
    members: "dict[str, _Group]" = field(default_factory=dict)
    jobs: "deque[Turn]" = field(default_factory=deque)  # of a program


@dataclass(slots=True)
class _Planned:
    """A group while turns are planned ahead: nothing of it is changed."""

    heap: list[tuple[int, int, _Group]]
    next_job: int = 0
    left: int = 0


class Turns:
    """The jobs that wait, and whose turn it is. Pure."""

    def __init__(self) -> None:
        self._root = _Group()
        self._known: dict[str, Turn] = {}
        self._came = 0

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
        while group.members:
            waiting = [member for member in group.members.values() if member.waiting]
            if len(waiting) != 1:
                return bool(waiting)
            group = waiting[0]
        return False

    def add(self, turn: Turn) -> None:
        """Let a job wait, behind those of its program."""
        if turn.job_id in self._known:
            return
        self._known[turn.job_id] = turn
        group = self._root
        group.waiting += 1
        for name in turn.path:
            member = group.members.get(name)
            if member is None:
                member = group.members[name] = _Group()
            if not member.waiting:
                self._came += 1
                member.start, member.came = max(member.start, group.now), self._came
            member.waiting += 1
            group = member
        group.jobs.append(turn)

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
            member.start += turn.width
            member.waiting -= 1
            group = member
        group.jobs.remove(turn)

    def forget_idle(self) -> None:
        """Drop what is known of those who have nothing that waits and whose turn is over."""
        _drop_idle(self._root)

    def next(self, count: int) -> list[Turn]:
        """Return the jobs of the next turns, in their order."""
        plans: dict[_Group, _Planned] = {}
        return [_take(self._root, plans) for _ in range(min(count, len(self._known)))]


def _drop_idle(group: _Group) -> None:
    for name, member in list(group.members.items()):
        if member.waiting:
            _drop_idle(member)
        elif member.start <= group.now:
            del group.members[name]


def _take(group: _Group, plans: dict[_Group, _Planned]) -> Turn:
    """Return the next job of a group that has any left in this plan."""
    plan = plans.get(group)
    if plan is None:
        heap = [(each.start, each.came, each) for each in group.members.values() if each.waiting]
        heapq.heapify(heap)
        plan = plans[group] = _Planned(heap, left=group.waiting)
    plan.left -= 1
    if group.jobs:
        plan.next_job += 1
        return group.jobs[plan.next_job - 1]
    start, came, member = heapq.heappop(plan.heap)
    turn = _take(member, plans)
    if plans[member].left:
        heapq.heappush(plan.heap, (start + turn.width, came, member))
    return turn


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
        self._unread: dict[str, Turn] = {}  # until then: what was read so far, newest first
        self._offset = 0  # and how far from the tail

    async def step(self, epoch: int) -> bool:
        """Bring those to the head whose turn is next; return whether there are any who take turns.

        Raises:
            LeadershipLost: another scheduler leads.
        """
        ends = await self._order.turns(TURNS + SLACK, LEAST_WAIT_MS)
        if ends is None:
            self.forget()
            return False
        length, head, tail = ends
        self._settle(head)
        if self._is_read:
            await self._take_in(tail)
        else:
            await self._read(tail)
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
        fresh = await self._unknown(tail, self._turns)
        if len(fresh) >= READ_PER_TICK:
            self.forget()  # to be read from the beginning
            return
        for turn in reversed((await self._turns_of(fresh)).values()):
            self._turns.add(turn)

    async def _read(self, tail: Sequence[str]) -> None:
        """Read on what waits, from the tail to the head."""
        fresh = await self._unknown(tail, self._unread) if self._unread else []
        self._unread = await self._turns_of(fresh) | self._unread
        for _ in range(READ_PER_TICK // READ_AT_ONCE):
            ids = await self._order.before_tail(self._offset, READ_AT_ONCE)
            older = [job_id for job_id in reversed(ids) if job_id not in self._unread]
            self._unread |= await self._turns_of(older)
            self._offset += len(ids) - OVERLAP
            if len(ids) < READ_AT_ONCE:
                self._is_read = True
                for turn in reversed(self._unread.values()):
                    self._turns.add(turn)
                self._unread = {}
                return

    async def _unknown(self, tail: Sequence[str], known: Container[str]) -> list[str]:
        """Return the ids behind the last known one, newest first."""
        fresh: dict[str, None] = {}
        ids, seen = tail, 0
        while ids and len(fresh) < READ_PER_TICK:
            new = list(takewhile(lambda job_id: job_id not in known, reversed(ids)))
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
        if not await self._order.put_first(epoch, wanted[:count], ends=ends, middle=searched):
            raise LeadershipLost
        return True
