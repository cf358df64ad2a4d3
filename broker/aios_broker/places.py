"""Places that are given in turns: to tenants, and among those of one tenant to its agents.

    async with places.one(Holder("acme", "scribe")): ...

Whoever floods a kernel waits for itself: the next free place goes to the tenant whose turn it is,
and there to the agent whose turn it is, however many of another stand before. No tenant has all
places, and no agent all of its tenant's: who comes next finds one at once.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holder:
    """In whose name something is done."""

    tenant: str
    agent: str


@dataclass(frozen=True, slots=True)
class Shares:
    """How many places there are, and how many of them one tenant and one agent may have."""

    places: int
    of_tenant: int
    of_agent: int

    def __post_init__(self) -> None:
        """Refuse shares with which somebody would have none.

        Raises:
            ValueError: They do not go down from `places` to 1.
        """
        if not 1 <= self.of_agent <= self.of_tenant <= self.places:
            raise ValueError(f"these are no shares: {self}")


Waiting = deque[asyncio.Future[None]]


class Places:
    """Places of one process, for one event loop."""

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self._by_tenant: Counter[str] = Counter()  # places that are held
        self._by_agent: Counter[Holder] = Counter()
        # Who waits, in the order of turns: who has had a place goes to the end.
        self._tenants: OrderedDict[str, OrderedDict[Holder, Waiting]] = OrderedDict()

    @property
    def held(self) -> int:
        """How many places are held."""
        return self._by_tenant.total()

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return sum(
            not each.done()
            for agents in self._tenants.values()
            for queue in agents.values()
            for each in queue
        )

    @asynccontextmanager
    async def one(self, holder: Holder) -> AsyncIterator[None]:
        """Hold a place for the length of a block; wait for it where none is free for the holder."""
        await self._take(holder)
        try:
            yield
        finally:
            self._free(holder)

    async def _take(self, holder: Holder) -> None:
        if self._is_free_for(holder) and not self._has_next():
            self._enter(holder)
            return
        turn = asyncio.get_running_loop().create_future()
        agents = self._tenants.setdefault(holder.tenant, OrderedDict())
        agents.setdefault(holder, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had just been given the place
                self._free(holder)
            raise

    def _free(self, holder: Holder) -> None:
        self._by_tenant[holder.tenant] -= 1
        self._by_agent[holder] -= 1
        if not self._by_tenant[holder.tenant]:
            del self._by_tenant[holder.tenant]
        if not self._by_agent[holder]:
            del self._by_agent[holder]
        while (next_one := self._pop_next()) is not None:
            chosen, turn = next_one
            self._enter(chosen)
            turn.set_result(None)

    def _enter(self, holder: Holder) -> None:
        self._by_tenant[holder.tenant] += 1
        self._by_agent[holder] += 1

    def _is_free_for(self, holder: Holder) -> bool:
        return (
            self.held < self.shares.places
            and self._by_tenant[holder.tenant] < self.shares.of_tenant
            and self._by_agent[holder] < self.shares.of_agent
        )

    def _has_next(self) -> bool:
        return any(self._first_of(tenant) is not None for tenant in self._tenants)

    def _first_of(self, tenant: str) -> Holder | None:
        """Return the agent of a tenant that may have a place now, by their turns; None: none."""
        for holder, queue in self._tenants[tenant].items():
            if self._is_free_for(holder) and any(not turn.done() for turn in queue):
                return holder
        return None

    def _pop_next(self) -> tuple[Holder, asyncio.Future[None]] | None:
        """Take out who has the next turn, and put its agent and its tenant at the end."""
        if self.held >= self.shares.places:
            return None
        for tenant in list(self._tenants):
            holder = self._first_of(tenant)
            if holder is None:
                self._drop_done(tenant)
                continue
            agents = self._tenants[tenant]
            queue = agents[holder]
            while (turn := queue.popleft()).done():
                pass  # its caller was cancelled
            agents.move_to_end(holder)
            self._tenants.move_to_end(tenant)
            self._drop_done(tenant)
            return holder, turn
        return None

    def _drop_done(self, tenant: str) -> None:
        agents = self._tenants[tenant]
        for holder, queue in list(agents.items()):
            if all(turn.done() for turn in queue):
                del agents[holder]
        if not agents:
            del self._tenants[tenant]
