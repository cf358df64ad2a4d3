"""Notes as records, out of the kernel and back in: `memory.dump` and `memory.restore`.

A note that was restored has an id made of its agent's name and the record's own id: whoever
restores it again finds it, and nobody can take the id of a note that another agent will add.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.memory import (
    MemoryDump,
    MemoryRestore,
    NoteRecord,
    NoteRecords,
    Restored,
)
from aios_broker.contract.reply import Result
from aios_broker.postgres.store import AgentRow
from aios_workers.modules.memory.adding import (
    INSERT,
    LAST_TURN,
    lock_log,
    note_id,
    refuse_future,
)
from aios_workers.modules.memory.changing import ensure_fits, ensure_storable
from aios_workers.modules.memory.note import (
    LIVING,
    NOTE_COLUMNS,
    NoteBody,
    enter_restored,
    note_fields,
    shape_of_block,
)
from aios_workers.modules.memory.reading import page_rows
from aios_workers.modules.operation import Asked, Work, run_once

# A turn of a log knows the one before, where that is there and seen.
_COLUMNS = f"""
    {NOTE_COLUMNS}, n.program, n.turn IS NOT NULL AS is_turn,
    (SELECT p.id FROM note p WHERE p.owner_id = n.owner_id AND p.program = n.program
        AND p.turn = n.turn - 1 AND {LIVING.replace("n.", "p.")}) AS previous
"""
_THERE = "SELECT id, program, turn FROM note WHERE owner_id = %s AND id = ANY(%s)"
_TAKEN = "SELECT FROM note WHERE owner_id = %s AND program = %s AND turn = %s"
_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8 AS now"

Place = tuple[str, int | None]  # of a note: its program, its number in that program's log


async def dump(asked: Asked[MemoryDump]) -> NoteRecords:
    """Return a page of notes as records, when its tenant's last long list is told."""
    async with (
        asked.services.read_turn(asked.agent.holder, is_long=True),
        asked.transaction() as work,
    ):
        return await _page(work)


async def _page(work: Work[MemoryDump]) -> NoteRecords:
    owner = await work.agent_named(work.body.owner)
    rows, more = await page_rows(work, owner, _COLUMNS)
    return NoteRecords(tuple(map(_record_of, rows)), more=more)


def _record_of(row: Any) -> NoteRecord:  # noqa: ANN401  a row
    values = {name: getattr(row, name) for name in NoteRecord.__struct_fields__}
    if row.updated_at == row.created_at:
        values["updated_at"] = None
    return msgspec.convert({**values, "program": row.program or None}, NoteRecord)


async def restore(asked: Asked[MemoryRestore]) -> Result:
    """Add the notes of records: those that are not there."""
    # One at a time of an agent's: two could find the same one missing.
    return await run_once(asked, _restore, f"restore {asked.agent.id}")


async def _restore(work: Work[MemoryRestore]) -> Restored:
    records = work.body.records
    batch = await _Batch.of(work, records)
    bodies = await _checked(work, records, batch.now)
    rows, added, existing, expired = [], {}, 0, 0
    for record, body in zip(records, bodies, strict=True):
        name = batch.id_of(record)
        if record.expires_at is not None and record.expires_at <= batch.now:
            expired += 1
        elif name in batch.there:
            existing += 1
        else:
            linked = tuple(map(batch.place_of, record.links))
            added[name] = body = msgspec.structs.replace(body, links=linked)
            rows.append(await batch.row(work, record, name, body))
    if added:
        await work.cursor.executemany(INSERT, rows)
        await enter_restored(work.cursor, work.agent, added, work.asked.syscall.id)

    async def embed() -> None:
        work.services.unembedded.set()

    work.then(embed)
    return Restored(len(added), existing, expired)


async def _checked(
    work: Work[MemoryRestore], records: Sequence[NoteRecord], now: float
) -> list[NoteBody]:
    """Return what is to be kept of records.

    Raises:
        InvalidSyscall: one cannot be; `field` names it, and what of it.
    """
    shape = await shape_of_block(work.cursor, work.agent)
    bodies = []
    for at, record in enumerate(records):
        body = NoteBody(*(getattr(record, name) for name in NoteBody.__struct_fields__))
        try:
            ensure_storable(body)
            await ensure_fits(work, work.agent, body, shape)
            _check_times(record, now)
        except InvalidSyscall as error:
            error.field = f"body.records[{at}].{error.field}"
            raise
        bodies.append(body)
    return bodies


def _check_times(record: NoteRecord, now: float) -> None:
    created, updated = record.created_at, record.updated_at
    for name, moment in (("created_at", created), ("updated_at", updated)):
        if moment is not None:
            refuse_future(moment, now, name)
    if created is not None and updated is not None and updated < created:
        raise InvalidSyscall(
            f"it was changed at {updated:.3f}, before it was created at {created:.3f}",
            field="updated_at",
            remedy="leave `updated_at` out, or correct one of the two",
        )


@dataclass(slots=True)
class _Batch:
    """What is there of records, and where the new ones come to stand."""

    agent: AgentRow
    now: float  # Unix time, s
    there: dict[str, Place] = field(default_factory=dict)  # the agent's notes, by their ids
    last: dict[str, int] = field(default_factory=dict)  # turn of each program's log; 0: none

    @classmethod
    async def of(cls, work: Work[MemoryRestore], records: Sequence[NoteRecord]) -> "_Batch":
        """Look at what is there, and take the logs that turns go into."""
        [clock] = await work.rows(_NOW, ())
        batch = cls(work.agent, clock.now)
        named = {each for one in records for each in (one.id, one.previous, *one.links) if each}
        ids = {*named, *map(batch.restored_id, named), *map(batch.id_of, records)}
        rows = await work.rows(_THERE, (work.agent.id, list(ids)))
        batch.there = {row.id: (row.program, row.turn) for row in rows}
        own = work.asked.syscall.program
        for program in sorted({one.program or own for one in records if one.is_turn}):
            await lock_log(work, program)
            [last] = await work.rows(LAST_TURN, (work.agent.id, program))
            batch.last[program] = last.turn or 0
        return batch

    def restored_id(self, name: str) -> str:
        """Return the id of the note that is restored from a record with this id."""
        return note_id("restored", self.agent.tenant, self.agent.name, name)

    def place_of(self, name: str) -> str:
        """Return the id of the agent's note that a record's id stands for."""
        return name if name in self.there else self.restored_id(name)

    def id_of(self, record: NoteRecord) -> str:
        """Return the id of a record's note."""
        if record.id is not None:
            return self.place_of(record.id)
        digest = hashlib.sha256(msgspec.json.encode(record, order="sorted")).hexdigest()
        return note_id("restored record", self.agent.tenant, self.agent.name, digest)

    async def row(
        self, work: Work[MemoryRestore], record: NoteRecord, name: str, body: NoteBody
    ) -> tuple[object, ...]:
        """Return what is inserted for a record; it is there from now on."""
        program = record.program or work.asked.syscall.program
        turn = await self._turn(work, record, program) if record.is_turn else None
        self.there[name] = (program, turn)
        created = record.created_at
        if created is None:
            created = self.now if record.updated_at is None else record.updated_at
        updated = created if record.updated_at is None else record.updated_at
        known = (name, self.agent.tenant_id, self.agent.id, program)
        times = (created, updated, record.expires_at, None)
        return (*known, *note_fields(body), body.search_text, turn, *times)

    async def _turn(self, work: Work[MemoryRestore], record: NoteRecord, program: str) -> int:
        """Return a turn's number: after the one before it, if no other turn has come there.

        Else it begins a conversation: a number is left out.
        """
        last = self.last[program]
        turn = last + 2 if last else 1
        if record.previous is not None:
            where, before = self.there.get(self.place_of(record.previous), ("", None))
            if before is not None and where == program:
                is_free = before == last or not await self._is_taken(work, (program, before + 1))
                turn = before + 1 if is_free else turn
        self.last[program] = max(last, turn)
        return turn

    async def _is_taken(self, work: Work[MemoryRestore], place: Place) -> bool:
        if place in self.there.values():
            return True
        return bool(await work.rows(_TAKEN, (self.agent.id, *place)))
