"""What the operations of the memory module share: whose note it is, who may, how it changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aios_broker.contract.access import OperationClass
from aios_broker.contract.errors import AccessDenied, InvalidSyscall, NotFound
from aios_broker.contract.memory import Note
from aios_broker.contract.names import Verb
from aios_broker.contract.reply import Result
from aios_broker.store.effects import earlier_effect, enter_effect
from aios_broker.store.grants import verbs_on_note
from aios_broker.store.notes import Lock, NoteBody, fetch_note, shape_of_block
from aios_broker.store.session import AgentRow, Cursor
from aios_workers.gate import Irreversible
from aios_workers.memory.ram import Ram
from aios_workers.state_ground import StateGround
from aios_workers.state_handler import Asked


@dataclass(frozen=True, slots=True)
class Fresh:
    """A note that a transaction wrote, for its owner's block once that is committed."""

    owner: AgentRow
    note: Note
    token: str


@dataclass(frozen=True, slots=True)
class Change:
    """What a transaction came to."""

    result: Result
    fresh: Sequence[Fresh] = ()


class Desk:
    """The ground and the blocks, and the steps that most operations begin and end with."""

    def __init__(self, ground: StateGround, ram: Ram) -> None:
        self.ground = ground
        self.ram = ram

    async def owner_of(self, asked: Asked) -> AgentRow:
        """Return the agent that a body names as the owner, or the one that asks.

        Raises:
            UnknownAgent: its tenant has none of that name.
        """
        name: str | None = asked.body.owner
        if name is None or name == asked.agent.name:
            return asked.agent
        return await self.ground.store.agent(name, asked.agent.tenant)

    async def changed(
        self, asked: Asked, work: Callable[[Cursor], Awaitable[Change]]
    ) -> Result:  # fmt: skip
        """Do the work in one transaction, once however often the syscall runs; return its result.

        What it wrote goes into the blocks when it is committed.
        """
        async with self.ground.store.as_agent(asked.agent) as cursor:
            earlier = await earlier_effect(cursor, asked.syscall)
            if earlier is not None:
                return earlier
            change = await work(cursor)
            await enter_effect(cursor, asked.agent, asked.syscall, change.result)
        if change.fresh:
            self.ground.unembedded.set()
        for fresh in change.fresh:
            await self.ram.keep(fresh.owner, fresh.note, fresh.token)
        return change.result

    async def permitted(
        self, cursor: Cursor, asked: Asked, owner: AgentRow, note_id: str, verb: Verb,
        lock: Lock = "",
    ) -> Note:  # fmt: skip
        """Return a note that the agent may do this with, locked if asked for.

        Raises:
            NotFound: there is none, or the agent may not even read it.
            AccessDenied: it may read it, and not do this.
        """
        if owner.id != asked.agent.id:
            verbs = await verbs_on_note(cursor, asked.agent, owner, note_id)
            if "read" not in verbs:
                raise no_such_note(note_id)
            if verb not in verbs:
                raise AccessDenied(
                    f"no grant of agent {owner.name!r} lets {asked.agent.name!r} {verb} this note",
                    field="note", remedy=f"ask {owner.name!r} for the verb {verb!r}",
                )  # fmt: skip
        note = await fetch_note(cursor, owner, note_id, lock)
        if note is None:
            raise no_such_note(note_id)
        return note

    async def check(
        self, cursor: Cursor, asked: Asked, operation: OperationClass, what: str, *,
        lossy: bool = True, diff: str = "",
    ) -> None:  # fmt: skip
        """Return when this may be done; a person may have to be asked first."""
        why = Irreversible(operation, what, lossy=lossy, diff=diff)
        await self.ground.gate.check(cursor, asked.agent, asked.syscall, asked.body, why)

    async def ensure_fits(self, cursor: Cursor, owner: AgentRow, body: NoteBody) -> None:
        """Refuse a note that its block could never hold.

        Raises:
            InvalidSyscall: larger than the whole block.
        """
        shape = await shape_of_block(cursor, owner)
        if body.size_bytes > shape.limit_bytes:
            raise InvalidSyscall(
                f"the note has {body.size_bytes} bytes, the block of agent {owner.name!r} "
                f"{shape.limit_bytes}",
                field="content", remedy="shorten it, or make the block larger (memory.alloc)",
            )  # fmt: skip


def no_such_note(note_id: str) -> NotFound:
    """Return the error for a note that is not there, or not for this agent."""
    return NotFound(
        f"there is no note {note_id} of this owner that you may read",
        field="note", remedy="see memory.list; name its owner if it is another agent's",
    )  # fmt: skip


def ensure_storable(body: NoteBody) -> None:
    """Refuse what Postgres cannot keep as text.

    Raises:
        InvalidSyscall: a NUL character; `field` says where.
    """
    fields = {
        "content": [body.content], "keywords": body.keywords, "tags": body.tags,
        "category": [body.category], "context": [body.context], "metadata": [repr(body.metadata)],
    }  # fmt: skip
    for field, texts in fields.items():
        if any("\x00" in text or (field == "metadata" and "\\x00" in text) for text in texts):
            raise InvalidSyscall(
                "it has a NUL character, which text cannot keep",
                field=field, remedy="leave it out, or keep bytes in storage",
            )  # fmt: skip
