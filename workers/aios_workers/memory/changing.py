"""Operations that write one note, or the block itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from aios_broker.contract.access import Acknowledged
from aios_broker.contract.errors import InvalidSyscall, NotFound, VersionConflict
from aios_broker.contract.memory import (
    MemoryAdd,
    MemoryAlloc,
    MemoryLog,
    MemoryRemove,
    MemoryRollback,
    MemoryTtl,
    MemoryUpdate,
    Note,
)
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Syscall
from aios_broker.memory.block import BlockShape
from aios_broker.store.notes import (
    NoteBody,
    Operation,
    body_of,
    count_notes,
    delete_all_notes,
    delete_note,
    enter_version,
    insert_note,
    note_in_version,
    rewrite_note,
    set_expiry,
    set_shape,
)
from aios_broker.store.session import AgentRow, Cursor
from aios_workers.memory.desk import Change, Desk, Fresh, ensure_storable
from aios_workers.state_handler import Asked


def id_of_new_note(syscall: Syscall) -> str:
    """Return the id of the note that a syscall adds: the same each time it runs."""
    return hashlib.blake2b(f"note\x1f{syscall.id}".encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class NewNote:
    """What is to be added, and for how long."""

    body: NoteBody
    ttl_s: float | None


class Changing:
    """alloc, add, log, update, remove, rollback, ttl, clear."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def alloc(self, asked: Asked) -> Result:
        """Set the block's shape; what is too much for it is swapped out before the answer."""
        body: MemoryAlloc = asked.body
        if body.low >= body.high:
            raise InvalidSyscall(
                f"the low watermark {body.low:g} is not below the high one {body.high:g}",
                field="low", remedy="choose a lower one",
            )  # fmt: skip
        shape = BlockShape(body.bytes, body.k, body.correlated_s, body.high, body.low)

        async def work(cursor: Cursor) -> Change:
            await set_shape(cursor, asked.agent, shape)
            return Change(Acknowledged())

        await self._desk.changed(asked, work)
        await self._desk.ram.configure(asked.agent)
        return await self.stat(asked)

    async def stat(self, asked: Asked) -> Result:
        """Return the block in numbers."""
        async with self._desk.ground.store.as_agent(asked.agent) as cursor:
            notes = await count_notes(cursor, asked.agent)
        return await self._desk.ram.stat(asked.agent, notes_in_all=notes)

    async def add(self, asked: Asked) -> Result:
        """Add a note."""
        body: MemoryAdd = asked.body
        return await self._add(asked, NewNote(note_to_add(body), body.ttl_s))

    async def log(self, asked: Asked) -> Result:
        """Append a turn to the program's log."""
        body: MemoryLog = asked.body
        said = {"role": body.role, "program": asked.syscall.program}
        if body.tool:
            said["tool"] = body.tool
        return await self._add(asked, NewNote(
            NoteBody(
                content=body.content, category="tool" if body.role == "tool" else "conversation",
                metadata={**body.metadata, **said},
            ),
            body.ttl_s,
        ))  # fmt: skip

    async def update(self, asked: Asked) -> Result:
        """Change what is given of a note."""
        body: MemoryUpdate = asked.body
        owner = await self._desk.owner_of(asked)
        given = {
            name: value
            for name in NoteBody.__struct_fields__
            if (value := getattr(body, name)) is not None
        }

        async def work(cursor: Cursor) -> Change:
            note = await self._desk.permitted(
                cursor, asked, owner, body.note, "write", "FOR UPDATE"
            )
            if body.if_version not in (None, note.version):
                raise VersionConflict(
                    f"the note is of version {note.version}, not {body.if_version}",
                    field="if_version", remedy="read it again, and decide anew",
                )  # fmt: skip
            after = msgspec.structs.replace(body_of(note), **given)
            return await self._rewrite(cursor, asked, owner, note, after, "update")

        return await self._desk.changed(asked, work)

    async def rollback(self, asked: Asked) -> Result:
        """Make an older version the newest."""
        body: MemoryRollback = asked.body
        owner = await self._desk.owner_of(asked)

        async def work(cursor: Cursor) -> Change:
            note = await self._desk.permitted(
                cursor, asked, owner, body.note, "write", "FOR UPDATE"
            )
            old = await note_in_version(cursor, note, body.version)
            if old is None:
                raise no_such_version(body.version)
            newer = note.version - body.version
            await self._desk.check(
                cursor, asked, "rollback",
                f"roll note {note.id} back over {newer} newer versions", lossy=newer > 0,
            )  # fmt: skip
            return await self._rewrite(cursor, asked, owner, note, body_of(old), "rollback")

        return await self._desk.changed(asked, work)

    async def remove(self, asked: Asked) -> Result:
        """Delete a note and its versions."""
        body: MemoryRemove = asked.body
        owner = await self._desk.owner_of(asked)

        async def work(cursor: Cursor) -> Change:
            note = await self._desk.permitted(
                cursor, asked, owner, body.note, "write", "FOR UPDATE"
            )
            await self._desk.check(
                cursor, asked, "delete",
                f"delete note {note.id} of {owner.name} ({note.version} versions)",
                diff=note.content[:2_000],
            )  # fmt: skip
            await self._desk.ram.invalidate(owner, [note.id], forget=True)
            await delete_note(cursor, note.id)
            return Change(Acknowledged())

        return await self._desk.changed(asked, work)

    async def ttl(self, asked: Asked) -> Result:
        """Let a note expire, or not."""
        body: MemoryTtl = asked.body

        async def work(cursor: Cursor) -> Change:
            agent = asked.agent
            await self._desk.permitted(cursor, asked, agent, body.note, "write", "FOR UPDATE")
            token = await self._desk.ram.invalidate(agent, [body.note])
            note = await set_expiry(cursor, agent, body.note, body.ttl_s)
            return Change(note, [Fresh(agent, note, token)])

        return await self._desk.changed(asked, work)

    async def clear(self, asked: Asked) -> Result:
        """Delete all of the agent's notes."""

        async def work(cursor: Cursor) -> Change:
            count = await count_notes(cursor, asked.agent)
            await self._desk.check(
                cursor, asked, "clear", f"delete all {count} notes of {asked.agent.name}",
                lossy=count > 0,
            )  # fmt: skip
            gone = await delete_all_notes(cursor, asked.agent)
            await self._desk.ram.drop(asked.agent)
            return Change(Acknowledged(changed=gone > 0))

        return await self._desk.changed(asked, work)

    async def _add(self, asked: Asked, new: NewNote) -> Result:
        ensure_storable(new.body)
        agent = asked.agent
        token = await self._desk.ram.look(agent)

        async def work(cursor: Cursor) -> Change:
            note = await added(self._desk, cursor, asked, new)
            return Change(note, [Fresh(agent, note, token)])

        return await self._desk.changed(asked, work)

    async def _rewrite(
        self, cursor: Cursor, asked: Asked, owner: AgentRow, note: Note, after: NoteBody,
        operation: Operation,
    ) -> Change:  # fmt: skip
        ensure_storable(after)
        await self._desk.ensure_fits(cursor, owner, after)
        token = await self._desk.ram.invalidate(owner, [note.id])
        written = await rewritten(cursor, asked, owner, note, after, operation)
        return Change(written, [Fresh(owner, written, token)])


def note_to_add(body: MemoryAdd) -> NoteBody:
    """Return the note that an add asks for."""
    return NoteBody(
        content=body.content, keywords=body.keywords, tags=body.tags, category=body.category,
        context=body.context, links=body.links, metadata=body.metadata,
    )  # fmt: skip


async def added(desk: Desk, cursor: Cursor, asked: Asked, new: NewNote) -> Note:
    """Insert a note of the agent that asks, with its first version."""
    agent, syscall = asked.agent, asked.syscall
    await desk.ensure_fits(cursor, agent, new.body)
    note = await insert_note(
        cursor, agent, id_of_new_note(syscall), new.body, program=syscall.program, ttl_s=new.ttl_s
    )
    await enter_version(
        cursor, agent, note, by=agent, operation="add", syscall_id=syscall.id
    )  # fmt: skip
    return note


async def rewritten(
    cursor: Cursor, asked: Asked, owner: AgentRow, note: Note, after: NoteBody,
    operation: Operation,
) -> Note:  # fmt: skip
    """Write the next version of a note whose row is locked and that has left its block."""
    written = await rewrite_note(cursor, owner, note.id, after)
    await enter_version(
        cursor, owner, written, by=asked.agent, operation=operation, syscall_id=asked.syscall.id
    )
    return written


def no_such_version(version: int) -> NotFound:
    """Return the error for a version that a note never had."""
    return NotFound(
        f"the note has no version {version}", field="version", remedy="see memory.history"
    )  # fmt: skip
