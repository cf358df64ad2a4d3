"""Operations that read notes: get, list, search, context, history."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from aios_broker.contract.errors import CoreError
from aios_broker.contract.llm import LlmCount
from aios_broker.contract.memory import (
    MemoryContext,
    MemoryGet,
    MemoryHistory,
    MemoryList,
    MemorySearch,
    Note,
    NoteHistory,
    Notes,
    Recall,
)
from aios_broker.contract.reply import CountResult, Result
from aios_broker.store.grants import reach_of
from aios_broker.store.notes import fetch_seen, note_in_version, note_versions, page_of_notes
from aios_broker.store.session import AgentRow, Cursor
from aios_workers.memory.changing import no_such_version
from aios_workers.memory.desk import Desk
from aios_workers.memory.recall import Count, estimated, recalled
from aios_workers.search.embedder import query_vector
from aios_workers.search.notes import NoteQuery, find_notes
from aios_workers.state_handler import Asked

RECALLED = 32  # notes that are looked at for one text


@dataclass(frozen=True, slots=True)
class Places:
    """Where a search looks: whole memories, and single notes."""

    owners: tuple[int, ...]
    ids: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to look at."""
        return not self.owners and not self.ids


class Reading:
    """The reading operations."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def get(self, asked: Asked) -> Result:
        """Return a note; the owner's own come from its block."""
        body: MemoryGet = asked.body
        owner = await self._desk.owner_of(asked)
        if owner.id == asked.agent.id and body.version is None:
            note = await self._desk.ram.read(owner, body.note)
            return note if note is not None else await self._fault_in(asked, owner, body.note)
        async with self._desk.ground.store.as_agent(asked.agent) as cursor:
            note = await self._desk.permitted(cursor, asked, owner, body.note, "read")
            if body.version is None:
                return note
            old = await note_in_version(cursor, note, body.version)
        if old is None:
            raise no_such_version(body.version)
        return old

    async def page(self, asked: Asked) -> Result:
        """List notes, oldest first."""
        body: MemoryList = asked.body
        owner = await self._desk.owner_of(asked)
        async with self._desk.ground.store.as_agent(asked.agent) as cursor:
            ids = await self._readable(cursor, asked.agent, owner)
            notes = await page_of_notes(
                cursor, owner, tags=body.tags, category=body.category, after=body.after, ids=ids,
                limit=body.limit + 1,
            )  # fmt: skip
        return Notes(tuple(notes[: body.limit]), more=len(notes) > body.limit)

    async def search(self, asked: Asked) -> Result:
        """Find notes, best first; those found count as references."""
        body: MemorySearch = asked.body
        owner = await self._desk.owner_of(asked)
        wanted = NoteQuery(body.query, body.k, body.mode, tags=body.tags, category=body.category)
        notes = await self._found(asked, owner, wanted, shared=body.shared)
        if body.follow_links:
            notes += await self._linked(asked, notes, body.k)
        return Notes(tuple(notes))

    async def context(self, asked: Asked) -> Result:
        """Return what is worth recalling as one text that keeps to its budget."""
        body: MemoryContext = asked.body
        wanted = NoteQuery(body.query, RECALLED)
        notes = await self._found(asked, asked.agent, wanted, shared=body.shared)
        count = estimated if body.core is None else self._counter(asked, body.core)
        made = await recalled(notes, body.max_tokens, asked.agent.name, count)
        return Recall(made.text, made.tokens, made.notes, exact=body.core is not None)

    def _counter(self, asked: Asked, core: str) -> Count:
        """Return what has a core count, by syscalls of its own."""

        async def count(texts: Sequence[str]) -> Sequence[int]:
            body = LlmCount(tuple(texts), core)
            result = await self._desk.ground.calls.call(asked.syscall, body, "count")
            if not isinstance(result, CountResult):
                raise CoreError("the core did not answer with counts")
            return result.tokens

        return count

    async def history(self, asked: Asked) -> Result:
        """List the versions of a note."""
        body: MemoryHistory = asked.body
        owner = await self._desk.owner_of(asked)
        async with self._desk.ground.store.as_agent(asked.agent) as cursor:
            note = await self._desk.permitted(cursor, asked, owner, body.note, "read")
            return NoteHistory(await note_versions(cursor, note))

    async def neighbours(self, asked: Asked, text: str, k: int) -> list[Note]:
        """Return the agent's own notes that are nearest to a text."""
        return await self._found(asked, asked.agent, NoteQuery(text, k), shared=False)

    async def _fault_in(self, asked: Asked, owner: AgentRow, note_id: str) -> Note:
        async with self._desk.ground.store.as_agent(asked.agent) as cursor:
            note = await self._desk.permitted(cursor, asked, owner, note_id, "read", "FOR SHARE")
            answer = await self._desk.ram.fault_in(owner, note)
        await self._desk.ram.settle(owner, answer)
        return note

    async def _readable(
        self, cursor: Cursor, agent: AgentRow, owner: AgentRow
    ) -> Sequence[str] | None:
        """Return which notes of an owner an agent may read; None: all of them."""
        if owner.id == agent.id:
            return None
        reach = await reach_of(cursor, agent, "read")
        return None if owner.id in reach.blocks else sorted(reach.notes.get(owner.id, ()))

    async def _found(
        self, asked: Asked, owner: AgentRow, wanted: NoteQuery, *, shared: bool
    ) -> list[Note]:  # fmt: skip
        ground, agent = self._desk.ground, asked.agent
        vector = await query_vector(ground.embedder, wanted.text, wanted.mode)
        async with ground.store.as_agent(agent) as cursor:
            places = await _places(cursor, agent, owner, shared=shared)
            if places.is_empty:
                return []
            placed = _placed(wanted, places)
            found = await find_notes(cursor, ground.embedder, placed, vector)
            seen = await fetch_seen(cursor, [one.id for one in found])
        notes = [msgspec.structs.replace(seen[one.id], score=one.score)
                 for one in found if one.id in seen]  # fmt: skip
        await self._touch(agent, notes)
        return notes

    async def _linked(self, asked: Asked, notes: Sequence[Note], k: int) -> list[Note]:
        known = {note.id for note in notes}
        links = dict.fromkeys(link for note in notes for link in note.links if link not in known)
        async with self._desk.ground.store.as_agent(asked.agent) as cursor:
            seen = await fetch_seen(cursor, list(links)[:k])
        found = [seen[link] for link in links if link in seen]
        await self._touch(asked.agent, found)
        return found

    async def _touch(self, agent: AgentRow, notes: Iterable[Note]) -> None:
        own = [note.id for note in notes if note.owner == agent.name]
        await self._desk.ram.touch(agent, own)


async def _places(
    cursor: Cursor, agent: AgentRow, owner: AgentRow, *, shared: bool
) -> Places:  # fmt: skip
    if owner.id == agent.id and not shared:
        return Places((agent.id,))
    reach = await reach_of(cursor, agent, "search")
    if owner.id != agent.id:
        notes = tuple(sorted(reach.notes.get(owner.id, ())))
        return Places((owner.id,)) if owner.id in reach.blocks else Places((), notes)
    ids = {note for notes in reach.notes.values() for note in notes}
    return Places((agent.id, *sorted(reach.blocks)), tuple(sorted(ids)))


def _placed(wanted: NoteQuery, places: Places) -> NoteQuery:
    return NoteQuery(wanted.text, wanted.k, wanted.mode, places.owners, places.ids, wanted.tags,
                     wanted.category)  # fmt: skip
