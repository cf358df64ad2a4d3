"""What the fleet knows of its tools: one card for each, in Redis, written by tool workers.

A card stays when its worker is gone, as those of cores do; it goes when whoever described the tool
describes it no more.
"""

from collections.abc import Collection, Iterable

import msgspec

from aios_broker.contract.tools import ParallelLimits, ToolCard
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection

_decoder = msgspec.json.Decoder(ToolCard)


class ToolCards:
    """The cards of one deployment."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._key = keys.own("tool_cards")  # Hash: name of the tool -> JSON of its card
        self._limits = keys.own("tool_limits:tool")  # what admission.lua reads of it

    async def all(self) -> tuple[ToolCard, ...]:
        """Return all cards, by name."""
        found = await self._connection.execute("HGETALL", self._key)
        return tuple(sorted(map(_decoder.decode, found[1::2]), key=lambda card: card.name))

    async def one(self, name: str) -> ToolCard | None:
        """Return the card of a tool; None: there is none."""
        found = await self._connection.execute("HGET", self._key, name)
        return None if found is None else _decoder.decode(found)

    async def show(self, card: ToolCard) -> None:
        """Write a card; its limits count from the next claim on."""
        # First the card: limits without one are taken for those of a tool that was removed.
        await self._connection.execute("HSET", self._key, card.name, msgspec.json.encode(card))
        if card.parallel == ParallelLimits():
            await self._connection.execute("HDEL", self._limits, card.name)
        else:
            await self._connection.execute("HSET", self._limits, card.name, limits_of(card))

    async def keep(self, source: str, names: Collection[str]) -> None:
        """Take away the cards of a source whose tools it describes no more, and their limits.

        Limits of a tool that has no card go, too: a call has written them, and the tool was removed
        before its card was shown. Should it be another source's, its next call writes them anew.
        """
        limited = await self._connection.execute("HKEYS", self._limits)
        cards = await self.all()
        await self.forget([card.name for card in cards if _is_gone(card, source, names)])
        known = {*names, *[card.name for card in cards]}
        if left := [name for name in limited if name.decode() not in known]:
            await self._connection.execute("HDEL", self._limits, *left)

    async def forget(self, names: Iterable[str]) -> None:
        """Take cards away."""
        listed = list(names)
        if listed:
            await self._connection.execute("HDEL", self._limits, *listed)
            await self._connection.execute("HDEL", self._key, *listed)


def limits_of(card: ToolCard) -> str:
    """Return its limits as admission.lua reads them."""
    most = card.parallel
    return f"{most.tool} {most.tenant} {most.agent}"


def _is_gone(card: ToolCard, source: str, names: Collection[str]) -> bool:
    return card.source == source and card.name not in names
