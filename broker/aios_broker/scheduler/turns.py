"""Who has the next turn: tenants take turns, in each its agents, their programs, and their jobs.

Whoever sends more gets no more turns for it, and neither does who splits what it sends among many
agents or programs. A job that takes several places of a core (several answers, beams) counts as so
many turns. Who comes back after a while is next, and has saved up nothing.
"""

import heapq
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from aios_broker.queues.records import JobMetadata

BEFORE_ALL = -(10**15)  # when what stands first came: longer ago than all that may be read yet


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
    num_first: int = 0  # of these: behind them there are more that are not known

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
        self._first = BEFORE_ALL
        self._idle: list[tuple[_Group, str]] = []  # groups, and whom of them to forget when due

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._known)

    def __contains__(self, job_id: object) -> bool:
        """Tell whether a job waits."""
        return job_id in self._known

    def num_known(self, job_ids: Sequence[str]) -> int:
        """Return how many of these wait up to the first one that does not."""
        known = self._known
        for at, job_id in enumerate(job_ids):
            if job_id not in known:
                return at
        return len(job_ids)

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
            self._enter(turn, self._newest).jobs.append(turn)

    def add_older(self, turn: Turn) -> None:
        """Let a job wait that came before all that are known."""
        if turn.job_id not in self._known:
            self._oldest -= 1
            self._enter(turn, self._oldest).jobs.appendleft(turn)

    def add_first(self, turn: Turn) -> None:
        """Let a job wait that came before all that are known but for those of which this was said.

        Between these and the others of its program stand more of it that are not known. Once this
        was said of one, nothing is `add_older`.
        """
        if turn.job_id not in self._known:
            self._first += 1
            program = self._enter(turn, self._first)
            program.jobs.insert(program.num_first, turn)
            program.num_first += 1

    def _enter(self, turn: Turn, came: int) -> _Group:
        """Give the owners of a new job their places among those that wait; return its program."""
        program = self._root
        for group, member in self._line(turn):
            if not member.waiting:
                member.start, member.came = max(member.start, group.now), came
                group.enter(member)
            elif came < member.came:
                group.leave(member)
                member.came = came
                group.enter(member)
            member.waiting += 1
            program = member
        return program

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
        place = group.jobs.index(turn)
        del group.jobs[place]
        group.num_first -= place < group.num_first

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
    order, place = group.order, plan.next_place
    # It is the turn of one that had none in this plan, or of one of the others.
    if place == len(order) or (plan.again and plan.again[0] < order[place]):
        start, came, member = heapq.heappop(plan.again)
    else:
        start, came, member = order[place]
        plan.next_place += 1
    turn = _take(member, plans)
    if plans[member].left:
        heapq.heappush(plan.again, (start + turn.width, came, member))
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
