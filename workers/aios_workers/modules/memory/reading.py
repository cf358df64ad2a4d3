"""Operations that read notes: get, list, search, context, history."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from aios_broker.contract.errors import CoreError
from aios_broker.contract.llm import LlmCount
from aios_broker.contract.memory import (
    MemoryBody,
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
from aios_broker.contract.reply import CountResult
from aios_broker.postgres.session import AgentRow, Cursor
from aios_workers.modules.access.grant_rows import reach_of
from aios_workers.modules.memory.changing import no_such_version
from aios_workers.modules.memory.desk import AnyWork, Desk
from aios_workers.modules.memory.note_rows import (
    fetch_seen,
    note_in_version,
    note_versions,
    page_of_notes,
)
from aios_workers.modules.memory.recall import Count, estimated, recalled
from aios_workers.modules.operation import Asked, Work
from aios_workers.search.embedder import query_vector
from aios_workers.search.queries import NoteQuery, find_notes

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

    async def get(self, asked: Asked[MemoryGet]) -> Note:
        """Return a note; the owner's own come from its block, without Postgres."""
        body, me = asked.body, asked.agent
        if body.owner not in (None, me.name) or body.version is not None:
            async with asked.transaction() as work:
                return await self._row(work)
        note = await self._desk.ram.read(me, body.note)
        if note is not None:
            return note
        async with asked.transaction() as work:
            note = await self._desk.permitted(work, me, body.note, "read", "FOR SHARE")
            answer = await self._desk.ram.fault_in(me, note)
        await self._desk.ram.settle(me, answer)
        return note

    async def page(self, work: Work[MemoryList]) -> Notes:
        """List notes, oldest first."""
        body, cursor = work.body, work.cursor
        owner = await work.agent_named(body.owner)
        ids = await _readable(work, owner)
        notes = await page_of_notes(
            cursor,
            owner,
            tags=body.tags,
            category=body.category,
            after=body.after,
            ids=ids,
            limit=body.limit + 1,
        )
        return Notes(tuple(notes[: body.limit]), more=len(notes) > body.limit)

    async def search(self, asked: Asked[MemorySearch]) -> Notes:
        """Find notes, best first; those found count as references."""
        body = asked.body
        wanted = NoteQuery(
            body.query, body.k, body.mode, tags=tuple(body.tags), category=body.category
        )
        notes = await self._found(asked, wanted, owner=body.owner, shared=body.shared)
        if body.follow_links:
            notes += await self._linked(asked, notes)
        return Notes(tuple(notes))

    async def context(self, asked: Asked[MemoryContext]) -> Recall:
        """Return what is worth recalling as one text that keeps to its budget."""
        body = asked.body
        notes = await self._found(asked, NoteQuery(body.query, RECALLED), shared=body.shared)
        count = estimated if body.core is None else self._counter(asked, body.core)
        made = await recalled(notes, body.max_tokens, asked.agent.name, count)
        return Recall(made.text, made.tokens, made.notes, exact=body.core is not None)

    def _counter(self, asked: Asked[MemoryContext], core: str) -> Count:
        """Return what has a core count, by syscalls of its own."""

        async def count(texts: Sequence[str]) -> Sequence[int]:
            body = LlmCount(tuple(texts), core)
            result = await asked.services.calls.call(asked.syscall, body, "count")
            if not isinstance(result, CountResult):
                raise CoreError("the core did not answer with counts")
            return result.tokens

        return count

    async def history(self, work: Work[MemoryHistory]) -> NoteHistory:
        """List the versions of a note."""
        owner = await work.agent_named(work.body.owner)
        note = await self._desk.permitted(work, owner, work.body.note, "read")
        return NoteHistory(await note_versions(work.cursor, note))

    async def neighbours(self, asked: Asked[MemoryBody], text: str, k: int) -> list[Note]:
        """Return the agent's own notes that are nearest to a text."""
        return await self._found(asked, NoteQuery(text, k))

    async def _row(self, work: Work[MemoryGet]) -> Note:
        body = work.body
        owner = await work.agent_named(body.owner)
        note = await self._desk.permitted(work, owner, body.note, "read")
        if body.version is None:
            return note
        old = await note_in_version(work.cursor, note, body.version)
        if old is None:
            raise no_such_version(body.version)
        return old

    async def _found(
        self,
        asked: Asked[MemoryBody],
        wanted: NoteQuery,
        *,
        owner: str | None = None,
        shared: bool = False,
    ) -> list[Note]:
        embedder, agent = asked.services.embedder, asked.agent
        vector = await query_vector(embedder, wanted.text, wanted.mode)
        async with asked.transaction() as work:
            whose = await work.agent_named(owner)
            places = await _places(work.cursor, agent, whose, shared=shared)
            if places.is_empty:
                return []
            found = await find_notes(work.cursor, embedder, _placed(wanted, places), vector)
            seen = await fetch_seen(work.cursor, [one.id for one in found])
        notes = [
            msgspec.structs.replace(seen[one.id], score=one.score)
            for one in found
            if one.id in seen
        ]
        await self._touch(agent, notes)
        return notes

    async def _linked(self, asked: Asked[MemorySearch], notes: Sequence[Note]) -> list[Note]:
        known = {note.id for note in notes}
        links = dict.fromkeys(link for note in notes for link in note.links if link not in known)
        async with asked.transaction() as work:
            seen = await fetch_seen(work.cursor, list(links)[: asked.body.k])
        found = [seen[link] for link in links if link in seen]
        await self._touch(asked.agent, found)
        return found

    async def _touch(self, agent: AgentRow, notes: Iterable[Note]) -> None:
        own = [note.id for note in notes if note.owner == agent.name]
        await self._desk.ram.touch(agent, own)


async def _readable(work: AnyWork, owner: AgentRow) -> Sequence[str] | None:
    """Return which notes of an owner the agent may read; None: all of them."""
    if owner.id == work.agent.id:
        return None
    reach = await reach_of(work.cursor, work.agent, "read")
    return None if owner.id in reach.blocks else sorted(reach.notes.get(owner.id, ()))


async def _places(cursor: Cursor, agent: AgentRow, owner: AgentRow, *, shared: bool) -> Places:
    if owner.id == agent.id and not shared:
        return Places((agent.id,))
    reach = await reach_of(cursor, agent, "search")
    if owner.id != agent.id:
        notes = tuple(sorted(reach.notes.get(owner.id, ())))
        return Places((owner.id,)) if owner.id in reach.blocks else Places((), notes)
    ids = {note for notes in reach.notes.values() for note in notes}
    return Places((agent.id, *sorted(reach.blocks)), tuple(sorted(ids)))


def _placed(wanted: NoteQuery, places: Places) -> NoteQuery:
    return NoteQuery(
        wanted.text, wanted.k, wanted.mode, places.owners, places.ids, wanted.tags, wanted.category
    )
