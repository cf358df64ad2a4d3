"""Blocks in Redis over notes in Postgres: reads that need no database, and swaps.

Why no read is ever stale. A note enters its block by two ways. A read that found it swapped out
puts it while it holds the row's share lock, so no change is under way. A change puts what it has
committed, with a token. A change takes the note out of the block after it has locked the row and
before it commits; with that all earlier tokens for this note are worthless.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import msgspec
from prometheus_client.core import CounterMetricFamily, Metric

from aios_broker.contract.errors import Unavailable
from aios_broker.contract.memory import BlockStat, Note
from aios_broker.postgres.session import AgentRow, Store
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_workers.modules.memory.block import (
    US_PER_S,
    Block,
    PutAnswer,
    Resident,
    UnknownBlock,
    Victim,
    block_key,
)
from aios_workers.modules.memory.note_rows import (
    body_of,
    shape_of_block,
    versions_there,
    write_back,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
OPEN_TRIES = 3  # a block that vanishes as often as this: somebody empties Redis in a loop

_decoder = msgspec.json.Decoder(Note)


class Ram:
    """The blocks of all agents, as one worker reaches them."""

    def __init__(self, store: Store, functions: Functions, keys: Keys) -> None:
        self._store = store
        self._functions = functions
        self._keys = keys
        self._counts: Counter[str] = Counter(hits=0, faults=0, swaps=0, stale_puts=0)

    async def read(self, owner: AgentRow, note_id: str) -> Note | None:
        """Return a note that is in its owner's block; it was referenced by that."""
        data = await self._on(owner, lambda block: block.read(note_id))
        if data is None:
            return None
        self._counts["hits"] += 1
        return _decoder.decode(data)

    async def look(self, owner: AgentRow) -> str:
        """Return a token for a note that is to be put soon."""
        return await self._on(owner, lambda block: block.look())

    async def fault_in(self, owner: AgentRow, note: Note) -> PutAnswer:
        """Put a note whose row the caller holds a share lock on; `settle` has to follow."""
        token = await self.look(owner)
        self._counts["faults"] += 1
        return await self._put(owner, note, token, fault=True)

    async def keep(self, owner: AgentRow, note: Note, token: str) -> None:
        """Put what was committed; where Redis cannot take it now, the next read will."""
        try:
            answer = await self._put(owner, note, token, fault=False)
            await self.settle(owner, answer)
            if answer == "full":
                await self.settle(owner, await self._put(owner, note, token, fault=False))
        except Unavailable as error:
            logger.warning("note %s stays out of its block: %s", note.id, error)

    async def settle(self, owner: AgentRow, answer: PutAnswer) -> None:
        """Swap notes out where a put went above the high watermark, or found no room."""
        if answer in ("over", "full"):
            await self.swap(owner, goes_on=answer == "full")

    async def invalidate(
        self, owner: AgentRow, note_ids: Iterable[str], *, forget: bool = False
    ) -> str:
        """Take notes out whose rows the caller has locked; return a token to `keep` them with."""
        ids = tuple(note_ids)
        return await self._on(owner, lambda block: block.invalidate(ids, forget=forget))

    async def drop(self, owner: AgentRow) -> None:
        """Take all notes out; the caller has locked or deleted their rows."""
        await self._on(owner, lambda block: block.drop())

    async def touch(self, owner: AgentRow, note_ids: Sequence[str]) -> None:
        """Count references to those that are resident."""
        if note_ids:
            await self._on(owner, lambda block: block.touch(note_ids))

    async def stat(self, owner: AgentRow, *, notes_in_all: int) -> BlockStat:
        """Return an agent's block in numbers."""
        return await self._on(owner, lambda block: block.stat(notes_in_all=notes_in_all))

    async def configure(self, owner: AgentRow) -> None:
        """Give the block the shape that Postgres has for it, and swap what is too much."""
        async with self._store.as_steward() as cursor:
            shape = await shape_of_block(cursor, owner, "FOR SHARE")
            over = await self._block(owner).open(shape, f"{owner.tenant}/{owner.name}")
        if over:
            await self.swap(owner)

    async def swap(self, owner: AgentRow, *, goes_on: bool = False) -> int:
        """Move notes out, down to the low watermark; return how many.

        Each is freed after its row was seen in that version. It may stop at any point: what is
        left stays in the block, and the next put above the watermark goes on.
        """
        freed = 0
        while victims := await self._victims(owner, goes_on=goes_on):
            await self._ensure_written(owner, victims)
            count = await self._free(owner, victims)
            self._counts["swaps"] += count
            freed += count
            goes_on = True
            if not count:  # another worker frees the same ones, or they change all the time
                break
        return freed

    def metrics(self) -> Iterable[Metric]:
        """Yield what this worker did with blocks."""
        help_of = {
            "hits": "Reads served from a block.",
            "faults": "Reads that fetched a note from Postgres into its block.",
            "swaps": "Notes that this worker moved out of a block.",
            "stale_puts": "Puts that came too late: the note had changed.",
        }
        for name, text in help_of.items():
            family = CounterMetricFamily(f"aios_memory_{name}", text)
            family.add_metric([], self._counts[name])
            yield family

    async def _victims(self, owner: AgentRow, *, goes_on: bool) -> list[Victim]:
        return await self._on(owner, lambda block: block.victims(goes_on=goes_on))

    async def _free(self, owner: AgentRow, victims: Sequence[Victim]) -> int:
        return await self._on(owner, lambda block: block.free(victims))

    async def _ensure_written(self, owner: AgentRow, victims: Sequence[Victim]) -> None:
        """See that Postgres has what is to leave; write what it lacks."""
        async with self._store.as_steward() as cursor:
            there = await versions_there(cursor, [victim.id for victim in victims])
        lacking = [victim.id for victim in victims if there.get(victim.id, 0) < victim.version]
        if not lacking:
            return
        # A note that was deleted left its block before its row went: what is still here was lost.
        held = await self._on(owner, lambda block: block.notes(lacking))
        async with self._store.as_steward() as cursor:
            for data in held:
                if data is not None:
                    note = _decoder.decode(data)
                    logger.warning("note %s was gone from Postgres and is written back", note.id)
                    await write_back(cursor, owner, note)

    async def _put(self, owner: AgentRow, note: Note, token: str, *, fault: bool) -> PutAnswer:
        expires_us = 0 if note.expires_at is None else max(1, round(note.expires_at * US_PER_S))
        resident = Resident(
            note.id, note.version, body_of(note).size_bytes, expires_us, msgspec.json.encode(note)
        )
        answer = await self._on(owner, lambda block: block.put(resident, token, fault=fault))
        self._counts["stale_puts"] += answer == "stale"
        return answer

    async def _on(self, owner: AgentRow, step: Callable[[Block], Awaitable[T]]) -> T:
        block = self._block(owner)
        for _ in range(OPEN_TRIES - 1):
            try:
                return await step(block)
            except UnknownBlock:
                await self.configure(owner)
        return await step(block)

    def _block(self, owner: AgentRow) -> Block:
        return Block(self._functions, self._keys, block_key(owner.tenant, owner.name, owner.id))
