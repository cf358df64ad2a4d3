"""What the operations of the memory module share: whose note it is, who may, how it changes."""

from __future__ import annotations

from aios_broker.contract.errors import AccessDenied, InvalidSyscall, NotFound
from aios_broker.contract.memory import MemoryBody, Note
from aios_broker.contract.names import Verb
from aios_broker.postgres.session import AgentRow, Cursor
from aios_workers.modules.access.grant_rows import verbs_on_note
from aios_workers.modules.memory.note_rows import Lock, NoteBody, fetch_note, shape_of_block
from aios_workers.modules.memory.ram import Ram
from aios_workers.modules.operation import Work

AnyWork = Work[MemoryBody]  # what the operations share does not look at the body


class Desk:
    """The blocks, and the steps that most operations begin and end with."""

    def __init__(self, ram: Ram) -> None:
        self.ram = ram

    def keep(self, work: AnyWork, owner: AgentRow, note: Note, token: str) -> None:
        """Have a note that was written put into its owner's block, once that is committed."""

        async def put() -> None:
            work.services.unembedded.set()
            await self.ram.keep(owner, note, token)

        work.then(put)

    async def permitted(
        self, work: AnyWork, owner: AgentRow, note_id: str, verb: Verb, lock: Lock = ""
    ) -> Note:
        """Return a note that the agent may do this with, locked if asked for.

        Raises:
            NotFound: there is none, or the agent may not even read it.
            AccessDenied: it may read it, and not do this.
        """
        if owner.id != work.agent.id:
            verbs = await verbs_on_note(work.cursor, work.agent, owner, note_id)
            if "read" not in verbs:
                raise no_such_note(note_id)
            if verb not in verbs:
                raise AccessDenied(
                    f"no grant of agent {owner.name!r} lets {work.agent.name!r} {verb} this note",
                    field="note",
                    remedy=f"ask {owner.name!r} for the verb {verb!r}",
                )
        note = await fetch_note(work.cursor, owner, note_id, lock)
        if note is None:
            raise no_such_note(note_id)
        return note

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
                field="content",
                remedy="shorten it, or make the block larger (memory.alloc)",
            )


def no_such_note(note_id: str) -> NotFound:
    """Return the error for a note that is not there, or not for this agent."""
    return NotFound(
        f"there is no note {note_id} of this owner that you may read",
        field="note",
        remedy="see memory.list; name its owner if it is another agent's",
    )


def ensure_storable(body: NoteBody) -> None:
    """Refuse what Postgres cannot keep as text.

    Raises:
        InvalidSyscall: a NUL character; `field` says where.
    """
    fields = {
        "content": [body.content],
        "keywords": body.keywords,
        "tags": body.tags,
        "category": [body.category],
        "context": [body.context],
        "metadata": [repr(body.metadata)],
    }
    for field, texts in fields.items():
        if any("\x00" in text or (field == "metadata" and "\\x00" in text) for text in texts):
            raise InvalidSyscall(
                "it has a NUL character, which text cannot keep",
                field=field,
                remedy="leave it out, or keep bytes in storage",
            )
