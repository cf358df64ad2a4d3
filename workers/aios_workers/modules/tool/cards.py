"""Tells the fleet of this worker's tools, and of what has changed of them."""

import contextlib

from aios_broker.contract.errors import UnknownTool
from aios_broker.contract.tools import ToolCard
from aios_broker.queues.tool_cards import ToolCards
from aios_broker.retry import now_s
from aios_workers.modules.tool.registry import ToolRegistry

FIRST_AFTER_S = 0.5
LOOK_EVERY_S = 1.0
TELL_EVERY_S = 30.0  # also what has not changed: Redis may have lost it


class CardPublisher:
    """Writes cards into Redis."""

    def __init__(self, registry: ToolRegistry, cards: ToolCards, source: str) -> None:
        self._registry = registry
        self._cards = cards
        self._source = source
        self._told: dict[str, ToolCard] = {}
        self._told_s = float("-inf")
        self._begun = False

    async def step(self) -> float:
        """Tell what is to be told now; return how long to wait, in s."""
        if not self._begun:  # a process that answers one job tells nobody
            self._begun = True
            return FIRST_AFTER_S
        now = now_s()
        is_due = now - self._told_s >= TELL_EVERY_S
        if is_due:
            self._told.clear()
            self._told_s = now
        names = self._registry.names()
        if is_due or not self._told.keys() <= set(names):
            await self._cards.keep(self._source, names)
            self._told = {name: card for name, card in self._told.items() if name in names}
        for name in names:
            with contextlib.suppress(UnknownTool):  # it was taken out just now
                await self._tell(name)
        return LOOK_EVERY_S

    async def _tell(self, name: str) -> None:
        card = await self._registry.card(name)
        if self._told.get(name) != card:
            await self._cards.show(card)
            self._told[name] = card
