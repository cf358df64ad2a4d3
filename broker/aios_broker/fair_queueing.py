"""Whose turn it is where what is wanted costs different amounts.

Fair queueing with the virtual time of WF2Q+ (Bennett and Zhang, INFOCOM 1996): everybody gets as
much of what is shared as everybody else who wants some, and who wants little of it is next, however
many want much.
Pure: its only clock counts cost.
"""

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

from aios_broker.places import Holder

Name = TypeVar("Name", bound=Hashable)
_MANY = 256  # names that are remembered before those that have nothing ahead are forgotten


class Turns(Generic[Name]):
    """The turns of some names; one that comes to wait begins where the others are."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: dict[Name, float] = {}  # when each has had what it asked for so far
        self._waiting: set[Name] = set()

    def next(self, costs: Mapping[Name, float]) -> Name:
        """Return who is next of all that wait, each for something that costs so much."""
        # Who comes begins where those are who have had least, and not behind one turn of each.
        had = [self._ends[name] for name in costs.keys() & self._waiting]
        self._now = max(self._now, min(had, default=0.0))
        for name in costs.keys() - self._waiting:
            self._ends[name] = max(self._ends.get(name, 0.0), self._now)
        self._waiting = set(costs)
        if len(self._ends) > len(costs) + _MANY:
            kept = ((name, self._ends[name]) for name in self._ends)
            self._ends = {name: end for name, end in kept if name in costs or end > self._now}
        return min(costs, key=lambda name: self._ends[name] + costs[name])

    def serve(self, name: Name, cost: float) -> None:
        """Give a name that waits its turn, which costs so much."""
        self.charge(name, cost)
        self._now += cost / len(self._waiting)

    def charge(self, name: Name, cost: float) -> None:
        """Give a name that waits something beside another's turn."""
        self._ends[name] += cost


class HolderTurns:
    """Turns of tenants, and in each tenant's of its agents."""

    def __init__(self) -> None:
        self._tenants: Turns[str] = Turns()
        self._agents: dict[str, Turns[str]] = {}

    def next(self, costs: Mapping[Holder, float]) -> Holder:
        """Return who is next of all that wait, each for something that costs so much."""
        agents: dict[str, dict[str, float]] = {}
        for holder, cost in costs.items():
            agents.setdefault(holder.tenant, {})[holder.agent] = cost
        if len(self._agents) > len(agents) + _MANY:
            self._agents = {name: self._agents[name] for name in self._agents if name in agents}
        nexts = {
            tenant: self._agents.setdefault(tenant, Turns()).next(own)
            for tenant, own in agents.items()
        }
        first = self._tenants.next({name: agents[name][own] for name, own in nexts.items()})
        return Holder(first, nexts[first])

    def serve(self, holder: Holder, cost: float) -> None:
        """Give a holder that waits its turn, which costs so much."""
        self._tenants.serve(holder.tenant, cost)
        self._agents[holder.tenant].serve(holder.agent, cost)

    def charge(self, holder: Holder, cost: float) -> None:
        """Give a holder that waits something beside another's turn."""
        self._tenants.charge(holder.tenant, cost)
        self._agents[holder.tenant].charge(holder.agent, cost)
