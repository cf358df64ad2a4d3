"""Operations that write one note, or the block itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from aios_broker.contract.access import Acknowledged
from aios_broker.contract.errors import InvalidSyscall, NotFound, VersionConflict
from aios_broker.contract.memory import (
    BlockStat,
    MemoryAdd,
    MemoryAlloc,
    MemoryBody,
    MemoryClear,
    MemoryLog,
    MemoryRemove,
    MemoryRollback,
    MemoryStat,
    MemoryTtl,
    MemoryUpdate,
    Note,
)
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Syscall
from aios_broker.postgres.session import AgentRow
from aios_workers.approvals.gate import Irreversible
from aios_workers.modules.memory.block import BlockShape
from aios_workers.modules.memory.desk import AnyWork, Desk, ensure_storable
from aios_workers.modules.memory.note_rows import (
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
from aios_workers.modules.operation import Asked, Work, run_once


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

    async def alloc(self, asked: Asked[MemoryAlloc]) -> BlockStat:
        """Set the block's shape; what is too much for it is swapped out before the answer."""
        body = asked.body
        if body.low >= body.high:
            raise InvalidSyscall(
                f"the low watermark {body.low:g} is not below the high one {body.high:g}",
                field="low",
                remedy="choose a lower one",
            )
        shape = BlockShape(body.bytes, body.k, body.correlated_s, body.high, body.low)

        async def put_shape(work: Work[MemoryAlloc]) -> Acknowledged:
            await set_shape(work.cursor, work.agent, shape)
            return Acknowledged()

        await run_once(asked, put_shape)
        await self._desk.ram.configure(asked.agent)
        return await self.stat(asked)

    async def stat(self, asked: Asked[MemoryAlloc] | Asked[MemoryStat]) -> BlockStat:
        """Return the block in numbers."""
        async with asked.transaction() as work:
            notes = await count_notes(work.cursor, work.agent)
        return await self._desk.ram.stat(asked.agent, notes_in_all=notes)

    async def add(self, asked: Asked[MemoryAdd]) -> Result:
        """Add a note."""
        body = asked.body
        return await self._add(asked, NewNote(note_to_add(body), body.ttl_s))

    async def log(self, asked: Asked[MemoryLog]) -> Result:
        """Append a turn to the program's log."""
        body = asked.body
        said = {"role": body.role, "program": asked.syscall.program}
        if body.tool:
            said["tool"] = body.tool
        return await self._add(
            asked,
            NewNote(
                NoteBody(
                    content=body.content,
                    category="tool" if body.role == "tool" else "conversation",
                    metadata={**body.metadata, **said},
                ),
                body.ttl_s,
            ),
        )

    async def update(self, work: Work[MemoryUpdate]) -> Note:
        """Change what is given of a note."""
        body = work.body
        given = {
            name: value
            for name in NoteBody.__struct_fields__
            if (value := getattr(body, name)) is not None
        }
        owner, note = await self._locked(work, body.owner, body.note)
        if body.if_version not in (None, note.version):
            raise VersionConflict(
                f"the note is of version {note.version}, not {body.if_version}",
                field="if_version",
                remedy="read it again, and decide anew",
            )
        after = msgspec.structs.replace(body_of(note), **given)
        return await self._rewrite(work, owner, note, after, "update")

    async def rollback(self, work: Work[MemoryRollback]) -> Note:
        """Make an older version the newest."""
        body = work.body
        owner, note = await self._locked(work, body.owner, body.note)
        old = await note_in_version(work.cursor, note, body.version)
        if old is None:
            raise no_such_version(body.version)
        newer = note.version - body.version
        what = f"roll note {note.id} back over {newer} newer versions"
        await work.confirm(Irreversible("rollback", what, lossy=newer > 0))
        return await self._rewrite(work, owner, note, body_of(old), "rollback")

    async def remove(self, work: Work[MemoryRemove]) -> Acknowledged:
        """Delete a note and its versions."""
        owner, note = await self._locked(work, work.body.owner, work.body.note)
        what = f"delete note {note.id} of {owner.name} ({note.version} versions)"
        await work.confirm(Irreversible("delete", what, diff=note.content[:2_000]))
        await self._desk.ram.invalidate(owner, [note.id], forget=True)
        await delete_note(work.cursor, note.id)
        return Acknowledged()

    async def ttl(self, work: Work[MemoryTtl]) -> Note:
        """Let a note expire, or not."""
        owner, locked = await self._locked(work, None, work.body.note)
        token = await self._desk.ram.invalidate(owner, [locked.id])
        note = await set_expiry(work.cursor, owner, locked.id, work.body.ttl_s)
        self._desk.keep(work, owner, note, token)
        return note

    async def clear(self, work: Work[MemoryClear]) -> Acknowledged:
        """Delete all of the agent's notes."""
        count = await count_notes(work.cursor, work.agent)
        what = f"delete all {count} notes of {work.agent.name}"
        await work.confirm(Irreversible("clear", what, lossy=count > 0))
        gone = await delete_all_notes(work.cursor, work.agent)
        await self._desk.ram.drop(work.agent)
        return Acknowledged(changed=gone > 0)

    async def _locked(
        self, work: AnyWork, owner_name: str | None, note_id: str
    ) -> tuple[AgentRow, Note]:
        """Return a note that the agent may write, and its owner; nobody else writes it now."""
        owner = await work.agent_named(owner_name)
        return owner, await self._desk.permitted(work, owner, note_id, "write", "FOR UPDATE")

    async def _add(self, asked: Asked[MemoryBody], new: NewNote) -> Result:
        ensure_storable(new.body)
        # Before: to open a block takes a transaction of its own, and so another connection.
        token = await self._desk.ram.look(asked.agent)

        async def write(work: AnyWork) -> Note:
            note = await added(self._desk, work, new)
            self._desk.keep(work, work.agent, note, token)
            return note

        return await run_once(asked, write)

    async def _rewrite(
        self, work: AnyWork, owner: AgentRow, note: Note, after: NoteBody, operation: Operation
    ) -> Note:
        ensure_storable(after)
        await self._desk.ensure_fits(work.cursor, owner, after)
        token = await self._desk.ram.invalidate(owner, [note.id])
        written = await rewritten(work, owner, note, after, operation)
        self._desk.keep(work, owner, written, token)
        return written


def note_to_add(body: MemoryAdd) -> NoteBody:
    """Return the note that an add asks for."""
    return NoteBody(
        content=body.content,
        keywords=tuple(body.keywords),
        tags=tuple(body.tags),
        category=body.category,
        context=body.context,
        links=tuple(body.links),
        metadata=body.metadata,
    )


async def added(desk: Desk, work: AnyWork, new: NewNote) -> Note:
    """Insert a note of the agent that asks, with its first version."""
    agent, cursor, syscall = work.agent, work.cursor, work.asked.syscall
    await desk.ensure_fits(cursor, agent, new.body)
    note = await insert_note(
        cursor, agent, id_of_new_note(syscall), new.body, program=syscall.program, ttl_s=new.ttl_s
    )
    await enter_version(cursor, agent, note, by=agent, operation="add", syscall_id=syscall.id)
    return note


async def rewritten(
    work: AnyWork, owner: AgentRow, note: Note, after: NoteBody, operation: Operation
) -> Note:
    """Write the next version of a note whose row is locked and that has left its block."""
    written = await rewrite_note(work.cursor, owner, note.id, after)
    await enter_version(
        work.cursor,
        owner,
        written,
        by=work.agent,
        operation=operation,
        syscall_id=work.asked.syscall.id,
    )
    return written


def no_such_version(version: int) -> NotFound:
    """Return the error for a version that a note never had."""
    return NotFound(
        f"the note has no version {version}", field="version", remedy="see memory.history"
    )
