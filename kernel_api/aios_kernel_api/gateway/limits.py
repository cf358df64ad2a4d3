"""How an agent stands by its quotas: the headers `x-ratelimit-*`, and the cap of its nice value."""

import math
from collections import OrderedDict
from collections.abc import Callable

from aios_broker.contract.names import Owner
from aios_broker.queues.quota import AgentStanding, Standing
from aios_kernel_api.kernel import Kernel

FRESH_S = 1.0  # so long what was read of an agent is believed
MOST_AGENTS = 10_000  # whose standing is remembered


class Standings:
    """How agents stood when they were last looked at."""

    def __init__(self, kernel: Kernel, now_s: Callable[[], float]) -> None:
        self._quotas = kernel.quotas
        self._now_s = now_s
        self._known: OrderedDict[Owner, tuple[float, AgentStanding]] = OrderedDict()

    async def of(self, owner: Owner) -> AgentStanding:
        """Return how an agent stands in the llm module."""
        at_s, now = self._known.get(owner, (float("-inf"), AgentStanding()))
        if self._now_s() - at_s > FRESH_S:
            now = await self._quotas.standings("llm", owner.agent, owner.tenant)
            self._known[owner] = (self._now_s(), now)
            self._known.move_to_end(owner)
            if len(self._known) > MOST_AGENTS:
                self._known.popitem(last=False)
        return now


def capped(nice: int, now: AgentStanding) -> int:
    """Return a nice value that the agent may ask for."""
    return max(nice, now.min_nice)


def headers_of(now: AgentStanding) -> dict[str, str]:
    """Return the headers that tell a client of its limits; none where it has none."""
    return {**_headers("requests", now.queued), **_headers("tokens", now.tokens)}


def _headers(what: str, standing: Standing | None) -> dict[str, str]:
    if standing is None:
        return {}
    return {
        f"x-ratelimit-limit-{what}": f"{standing.most:.0f}",
        f"x-ratelimit-remaining-{what}": f"{max(0, math.floor(standing.left))}",
        f"x-ratelimit-reset-{what}": f"{standing.opens_in_s:.3f}s",
    }
