"""Blocks in Redis over notes in Postgres: reads that need no database, and swaps.

Why no read is ever stale. A note enters its block by two ways. A read that found it swapped out
puts it while it holds the row's share lock, so no change is under way. A change puts what it has
committed, with a token. A change takes the note out of the block after it has locked the row and
before it commits; with that all earlier tokens for this note are worthless.

To open a block takes a transaction: nothing that is called within one opens any.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

import msgspec
from prometheus_client.core import CounterMetricFamily, Metric

from aios_broker.contract.errors import Unavailable
from aios_broker.contract.memory import Note
from aios_broker.postgres.session import AgentRow, Store
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_workers.modules.memory.block import (
    US_PER_S,
    Block,
    PutAnswer,
    Resident,
    UnknownBlock,
    block_key,
)
from aios_workers.modules.memory.note import body_of, shape_of_block

logger = logging.getLogger(__name__)

_decoder = msgspec.json.Decoder(Note)


class Blocks:
    """The blocks of all agents, as one worker reaches them."""

    def __init__(self, store: Store, functions: Functions, keys: Keys) -> None:
        self._store = store
        self._functions = functions
        self._keys = keys
        self._counts: Counter[str] = Counter(hits=0, faults=0, swaps=0, stale_puts=0)

    def of(self, owner: AgentRow) -> Block:
        """Return an agent's block; it is opened where Redis has none."""
        return self._block(owner, opens=True)

    async def read(self, owner: AgentRow, note_id: str) -> Note | None:
        """Return a note that is in its owner's block; it was referenced by that."""
        data = await self.of(owner).read(note_id)
        if data is None:
            return None
        self._counts["hits"] += 1
        return _decoder.decode(data)

    async def fault_in(self, owner: AgentRow, note: Note) -> PutAnswer:
        """Put a note whose row the caller holds a share lock on; `make_room` has to follow.

        Where the block was lost just now it is not put: the next read does it.
        """
        block = self._block(owner, opens=False)
        self._counts["faults"] += 1
        try:
            return await self._put(block, note, await block.token(), fault=True)
        except UnknownBlock:
            return "stale"

    async def keep(self, owner: AgentRow, note: Note, token: str) -> None:
        """Put what was committed; where Redis cannot take it now, the next read will."""
        if not token:  # the block was not open when the note was written
            return
        block = self.of(owner)
        try:
            answer = await self._put(block, note, token, fault=False)
            await self.make_room(owner, answer)
            if answer == "full":
                await self.make_room(owner, await self._put(block, note, token, fault=False))
        except Unavailable as error:
            logger.warning("note %s stays out of its block: %s", note.id, error)

    async def make_room(self, owner: AgentRow, answer: PutAnswer) -> None:
        """Swap notes out where a put went above the high watermark, or found no room."""
        if answer in ("over", "full"):
            await self.swap(owner, goes_on=answer == "full")

    async def configure(self, owner: AgentRow) -> None:
        """Give the block the shape that Postgres has for it, and swap what is too much."""
        async with self._store.as_steward() as cursor:
            shape = await shape_of_block(cursor, owner, "FOR SHARE")
            block = self._block(owner, opens=False)
            over = await block.open(shape, f"{owner.tenant}/{owner.name}")
        if over:
            await self.swap(owner)

    async def swap(self, owner: AgentRow, *, goes_on: bool = False) -> int:
        """Move notes out, down to the low watermark; return how many.

        Only what was committed is ever put, so Postgres has them all. It may stop at any point:
        what is left stays in the block, and the next put above the watermark goes on.
        """
        freed, block = 0, self.of(owner)
        while victims := await block.victims(goes_on=goes_on):
            count = await block.free(victims)
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

    async def _put(self, block: Block, note: Note, token: str, *, fault: bool) -> PutAnswer:
        expires_us = 0 if note.expires_at is None else max(1, round(note.expires_at * US_PER_S))
        resident = Resident(
            note.id, note.version, body_of(note).size_bytes, expires_us, msgspec.json.encode(note)
        )
        answer = await block.put(resident, token, fault=fault)
        self._counts["stale_puts"] += answer == "stale"
        return answer

    def _block(self, owner: AgentRow, *, opens: bool) -> Block:
        key = block_key(owner.tenant, owner.name, owner.id)
        reopen = (lambda: self.configure(owner)) if opens else None
        return Block(self._functions, self._keys, key, reopen)
