"""Operations that read notes: get, list, search, history, context (a text within a budget)."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from aios_broker.contract.errors import CoreError
from aios_broker.contract.llm import LlmCount
from aios_broker.contract.memory import (
    MemoryBody,
    MemoryContext,
    MemoryDump,
    MemoryGet,
    MemoryHistory,
    MemoryList,
    MemorySearch,
    Note,
    NoteHistory,
    Notes,
    NoteVersion,
    Recall,
)
from aios_broker.contract.reply import CountResult
from aios_broker.postgres.store import AgentRow
from aios_workers.modules.access.grants import reach_of
from aios_workers.modules.memory.changing import AnyWork, permitted
from aios_workers.modules.memory.note import (
    LIVING,
    NOTE_COLUMNS,
    as_version,
    note_in_version,
    note_of,
)
from aios_workers.modules.operation import Asked, Work
from aios_workers.search.corpora import NoteQuery, filters_of
from aios_workers.search.embedder import query_vector
from aios_workers.search.query import read_query
from aios_workers.search.ranking import count_unembedded, find

MAX_PAGE_BYTES = 8 * 1024 * 1024  # of the notes of one answer; the first comes in any case
LONG_PAGE = 100  # notes; metadata is looked for in all that there are
RECALLED = 32  # notes that are looked at for one text
BYTES_PER_TOKEN = 4  # of UTF-8: an estimate, on the high side for English
MOST_BYTES_PER_TOKEN = 16  # more than texts have on average: what is longer need not be counted
BEGINNINGS = 16  # of a note that has to be cut, counted at a time
ROUNDS = 2  # of looking for the longest: to 1/256 of the note

Count = Callable[[Sequence[str]], Awaitable[Sequence[int]]]  # the tokens of each text


# What of a page fits: it is read whole, and a hundred notes may have hundreds of megabytes.
_BYTES = "sum(octet_length(n.content) + octet_length(n.metadata::text))"
_FITS = f"(page.bytes <= {MAX_PAGE_BYTES} OR page.nth = 1)"
_SEEN = f"""
    WITH page AS (
        SELECT n.id, w.nth, {_BYTES} OVER (ORDER BY w.nth) AS bytes
          FROM unnest(%s::text[]) WITH ORDINALITY AS w(id, nth) JOIN note n ON n.id = w.id
         WHERE {LIVING}
    )
    SELECT {NOTE_COLUMNS}, a.name AS owner_name
      FROM page JOIN note n ON n.id = page.id AND {_FITS} JOIN agent a ON a.id = n.owner_id
"""
_PAGE = f"""
    WITH page AS (
        SELECT n.id, row_number() OVER (ORDER BY place) AS nth, place,
               {_BYTES} OVER (ORDER BY place) AS bytes
          FROM note n, LATERAL (SELECT n.seq * %(sign)s AS place) p
         WHERE n.owner_id = %(owner)s AND {LIVING}
           AND (%(after)s::text IS NULL
                OR place > coalesce((SELECT seq * %(sign)s FROM note WHERE id = %(after)s), 0))
           AND (%(ids)s::text[] IS NULL OR n.id = ANY(%(ids)s))
           AND (%(notes)s::text[] IS NULL OR n.id = ANY(%(notes)s)) AND <narrowing>
         ORDER BY n.seq <order> LIMIT %(limit)s
    )
    SELECT <columns>, (SELECT count(*) FROM page) AS in_all
      FROM page JOIN note n ON n.id = page.id AND {_FITS} ORDER BY page.place
"""
_VERSIONS = f"""
    WITH page AS (
        SELECT v.version, row_number() OVER (ORDER BY v.version DESC) AS nth,
               sum(octet_length(v.body::text)) OVER (ORDER BY v.version DESC) AS bytes
          FROM note_version v WHERE v.note_id = %(note)s
    )
    SELECT v.version, extract(epoch FROM v.at)::float8 AS at, v.operation, v.syscall_id, v.body,
           coalesce((SELECT name FROM agent WHERE id = v.by_agent_id), '') AS by_name,
           (SELECT count(*) FROM page) AS in_all
      FROM page JOIN note_version v ON v.note_id = %(note)s AND v.version = page.version AND {_FITS}
     ORDER BY v.version DESC
"""


async def get(asked: Asked[MemoryGet]) -> Note:
    """Return a note; the owner's own come from its block, without Postgres."""
    body, me, blocks = asked.body, asked.agent, asked.services.blocks
    if body.owner not in (None, me.name) or body.version is not None:
        async with asked.transaction() as work:
            owner = await work.agent_named(body.owner)
            note = await permitted(work, owner, body.note, "read")
            if body.version is None:
                return note
            return await note_in_version(work.cursor, note, body.version)
    held = await blocks.read(me, body.note)
    if held is not None:
        return held
    async with asked.transaction() as work:
        note = await permitted(work, me, body.note, "read", "FOR SHARE")
        answer = await blocks.fault_in(me, note)
    await blocks.make_room(me, answer)
    return note


async def listed(asked: Asked[MemoryList]) -> Notes:
    """List notes, oldest or newest first; a long list when its tenant's last one is told."""
    is_long = asked.body.limit > LONG_PAGE or asked.body.metadata is not None
    async with (
        asked.services.read_turn(asked.agent.holder, is_long=is_long),
        asked.transaction() as work,
    ):
        return await _page(work)


async def _page(work: Work[MemoryList]) -> Notes:
    owner = await work.agent_named(work.body.owner)
    rows, more = await page_rows(work, owner, NOTE_COLUMNS)
    return Notes(tuple(note_of(row, owner.name) for row in rows), more=more)


async def page_rows(
    work: Work[MemoryList] | Work[MemoryDump], owner: AgentRow, columns: str
) -> tuple[list[Any], bool]:
    """Return a page of an owner's notes as rows, and whether there are more after them."""
    body = work.body
    narrowing, narrowed_by = filters_of(body, "n")
    newest_first = isinstance(body, MemoryList) and body.newest_first
    only = body.notes if isinstance(body, MemoryList) else None
    values = {
        **narrowed_by,
        "owner": owner.id,
        "sign": -1 if newest_first else 1,
        "notes": None if only is None else list(only),
        "after": body.after,
        "ids": await _readable(work, owner),
        "limit": body.limit + 1,
    }
    listed = _PAGE.replace("<narrowing>", " AND ".join(("true", *narrowing)))
    listed = listed.replace("<order>", "DESC" if newest_first else "")
    rows = await work.rows(listed.replace("<columns>", columns), values)
    page = rows[: body.limit]
    return page, bool(rows) and len(page) < rows[0].in_all


async def search(asked: Asked[MemorySearch]) -> Notes:
    """Find notes, best first; those found count as references."""
    body = asked.body
    query = read_query(body.query)
    wanted = NoteQuery(
        query.text, body.k, body.mode, only=body, min_score=body.min_score, rules=query.rules
    )
    notes = await found(asked, wanted, owner=body.owner, shared=body.shared)
    if not body.follow_links:
        return notes
    linked = await _linked(asked, notes.notes)
    return msgspec.structs.replace(notes, notes=(*notes.notes, *linked))


async def context(asked: Asked[MemoryContext]) -> Recall:
    """Return what is worth recalling as one text that keeps to its budget."""
    body = asked.body
    notes = await found(asked, NoteQuery(body.query, RECALLED), shared=body.shared)
    count = estimated if body.core is None else _counter(asked, body.core)
    recall = await recalled(notes.notes, body.max_tokens, asked.agent.name, count)
    return msgspec.structs.replace(recall, unindexed=notes.unindexed)


def _counter(asked: Asked[MemoryContext], core: str) -> Count:
    """Return what has a core count, by syscalls of its own."""

    async def count(texts: Sequence[str]) -> Sequence[int]:
        body = LlmCount(tuple(texts), core)
        result = await asked.services.calls.call(asked.syscall, body, "count")
        if not isinstance(result, CountResult):
            raise CoreError("the core did not answer with counts")
        return result.tokens

    return count


async def history(work: Work[MemoryHistory]) -> NoteHistory:
    """List the versions of a note, newest first."""
    owner = await work.agent_named(work.body.owner)
    note = await permitted(work, owner, work.body.note, "read")
    rows = await work.rows(_VERSIONS, {"note": note.id})
    versions = [
        NoteVersion(
            row.version,
            row.at,
            row.by_name,
            row.operation,
            row.syscall_id,
            as_version(note, row.version, row.body, row.at),
        )
        for row in rows
    ]
    return NoteHistory(tuple(versions), more=bool(rows) and len(rows) < rows[0].in_all)


async def found(
    asked: Asked[MemoryBody], wanted: NoteQuery, *, owner: str | None = None, shared: bool = False
) -> Notes:
    """Return notes, best first: the agent's own, with `shared` all that it may search."""
    embedder, holder = asked.services.embedder, asked.agent.holder
    vector = await query_vector(embedder, wanted.text, wanted.mode, holder)
    async with asked.services.search_turn(wanted.text, holder), asked.transaction() as work:
        owners, ids = await _searched(work, await work.agent_named(owner), shared=shared)
        if not owners and not ids:
            return Notes(())
        placed = replace(wanted, owners=owners, ids=ids)
        hits = await find(work.cursor, embedder, placed, vector)
        unindexed = 0 if vector is None else await count_unembedded(work.cursor, placed)
        seen = await _seen(work, [note_id for (_, note_id), _ in hits])
    notes = [
        msgspec.structs.replace(seen[note_id], score=score)
        for (_, note_id), score in hits
        if note_id in seen
    ]
    await _touch(asked, notes)
    return Notes(tuple(notes), more=len(notes) < len(hits), unindexed=unindexed)


async def _linked(asked: Asked[MemorySearch], notes: Sequence[Note]) -> list[Note]:
    known = {note.id for note in notes}
    links = dict.fromkeys(link for note in notes for link in note.links if link not in known)
    async with asked.transaction() as work:
        seen = await _seen(work, list(links)[: asked.body.k])
    linked = [seen[link] for link in links if link in seen]
    await _touch(asked, linked)
    return linked


async def _seen(work: AnyWork, note_ids: list[str]) -> dict[str, Note]:
    """Return those, of whomever, that the agent may see; the first ones, as far as they fit."""
    rows = await work.rows(_SEEN, (note_ids,))
    return {row.id: note_of(row, row.owner_name) for row in rows}


async def _touch(asked: Asked[MemoryBody], notes: Iterable[Note]) -> None:
    own = [note.id for note in notes if note.owner == asked.agent.name]
    if own:
        await asked.services.blocks.of(asked.agent).touch(own)


async def _readable(work: AnyWork, owner: AgentRow) -> list[str] | None:
    """Return which notes of an owner the agent may read; None: all of them."""
    if owner.id == work.agent.id:
        return None
    reach = await reach_of(work, "read")
    return None if owner.id in reach.blocks else sorted(reach.notes.get(owner.id, ()))


async def _searched(
    work: AnyWork, owner: AgentRow, *, shared: bool
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return where a search looks: whose whole memories, and which single notes."""
    if owner.id == work.agent.id and not shared:
        return (owner.id,), ()
    reach = await reach_of(work, "search")
    if owner.id == work.agent.id:
        ids = {note for notes in reach.notes.values() for note in notes}
        return (owner.id, *sorted(reach.blocks)), tuple(sorted(ids))
    if owner.id in reach.blocks:
        return (owner.id,), ()
    return (), tuple(sorted(reach.notes.get(owner.id, ())))


async def estimated(texts: Sequence[str]) -> Sequence[int]:
    """Return an estimate of the tokens of texts."""
    return [-(-len(text.encode()) // BYTES_PER_TOKEN) for text in texts]


async def recalled(notes: Sequence[Note], max_tokens: int, whose: str, count: Count) -> Recall:
    """Return a text made of notes, best first; it has at most that many tokens.

    A note that does not fit whole is passed over for smaller ones; where none fits, the best one
    is cut. `whose`: the agent that reads, others' notes are marked. Counts all notes at once, then
    the text; more often only where the text has more tokens than its parts.
    """
    exact = count is not estimated
    if not notes:
        return Recall("", 0, (), exact)
    parts = [_part(note, whose) for note in notes]
    chosen = _fitting(await count([f"{part}\n" for part in parts]), max_tokens)
    while chosen:
        text = "\n".join(parts[at] for at in chosen)
        [tokens] = await count([text])
        if tokens <= max_tokens:
            return Recall(text, tokens, tuple(notes[at].id for at in chosen), exact)
        chosen.pop()
    text, tokens = await _cut(parts[0], max_tokens, count)
    return Recall(text, tokens, (notes[0].id,) if text else (), exact)


def _fitting(sizes: Sequence[int], room: int) -> list[int]:
    chosen = []
    for at, size in enumerate(sizes):
        if size <= room:
            chosen.append(at)
            room -= size
    return chosen


async def _cut(part: str, max_tokens: int, count: Count) -> tuple[str, int]:
    """Return the longest of some beginnings that fits, and its tokens."""
    fits, best = 0, ("", 0)
    too_long = min(len(part), max_tokens * MOST_BYTES_PER_TOKEN) + 1
    for _ in range(ROUNDS):
        step = (too_long - fits) / BEGINNINGS
        lengths = sorted({round(fits + step * number) for number in range(1, BEGINNINGS)} - {0})
        texts = [f"{part[:length]}…" for length in lengths]
        for length, text, tokens in zip(lengths, texts, await count(texts), strict=True):
            if tokens > max_tokens:
                too_long = length
                break
            fits, best = length, (text, tokens)
    return best


def _part(note: Note, whose: str) -> str:
    labels = [f"from {note.owner}"] if note.owner != whose else []
    labels += [note.context] if note.context else []
    return f"- ({'; '.join(labels)}) {note.content}" if labels else f"- {note.content}"
