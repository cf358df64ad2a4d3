"""Notes go out as records and come back: all that they are, and once however often it is done."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from aios_broker.client.notes_file import BATCH_RECORDS, export_notes, import_notes
from aios_broker.contract.errors import InvalidSyscall, UnknownAgent
from aios_broker.contract.memory import (
    MAX_NOTE_BYTES,
    MemoryAdd,
    MemoryAlloc,
    MemoryClear,
    MemoryDump,
    MemoryGet,
    MemoryHistory,
    MemoryList,
    MemoryLog,
    MemoryRemove,
    MemoryRestore,
    MemorySearch,
    MemoryShare,
    MemoryUpdate,
    NoteRecord,
    NoteRecords,
    Restored,
)
from aios_broker.contract.syscall import Body
from tests.state_scene import StateScene

TEA = "tea, ßtrong 🍵\n"
METADATA: dict[str, Any] = {
    "floats": [1.0, 1e16, 1e23, 5e-324],
    "integers": [2**53 + 1, 2**64 - 1],
    "others": [True, None, "1.0", {"a": []}],
}


def sender(scene: StateScene, agent: str) -> Callable[[Body, int], Awaitable[Any]]:
    """Return what sends a file's batches as this agent."""

    async def send(body: Body, _: int) -> Any:  # noqa: ANN401
        return await scene.ask(agent, body)

    return send


async def fill(scene: StateScene) -> None:
    """Give ann notes of all kinds, and a conversation in two programs."""
    first = await scene.ask("ann", MemoryAdd(TEA, tags=("a", "b"), metadata=METADATA))
    await scene.ask(
        "ann", MemoryAdd("coffee", keywords=("k",), category="c", context="x", links=(first.id,))
    )
    await scene.ask("ann", MemoryUpdate(first.id, category="drinks"))
    await scene.ask("ann", MemoryAdd("soon gone", ttl_s=3_600.0))
    for number, (program, at) in enumerate((("one", 10.0), ("two", 20.0), ("one", 5e5))):
        for text in ("which hotel in Rome?", "the cheapest one"):
            log = MemoryLog("user", f"{text} {number}", at=1.6e9 + at)
            await scene.run(scene.syscall("ann", log, program=program))


async def records_of(scene: StateScene, agent: str) -> tuple[NoteRecord, ...]:
    dumped: NoteRecords = await scene.ask(agent, MemoryDump(limit=1_000))
    return dumped.records


def without_ids(records: tuple[NoteRecord, ...]) -> list[dict[str, Any]]:
    """Return records with ids that only tell which of them is meant."""
    place = {record.id: str(at) for at, record in enumerate(records)}
    listed = []
    for record in records:
        links = [place[link] for link in record.links]
        previous = None if record.previous is None else place[record.previous]
        fields = msgspec.to_builtins(record)
        listed.append({**fields, "id": "", "links": links, "previous": previous})
    return listed


async def test_what_is_restored_is_what_was_dumped_and_only_once(scene: StateScene) -> None:
    await fill(scene)
    before = await records_of(scene, "ann")
    assert [record.is_turn for record in before] == [False] * 3 + [True] * 6
    for expected in (Restored(added=9), Restored(existing=9)):
        assert await scene.ask("bob", MemoryRestore(before)) == expected
    after = await records_of(scene, "bob")
    assert without_ids(after) == without_ids(before)
    assert not {record.id for record in after} & {record.id for record in before}
    assert repr(after[0].metadata) == repr(before[0].metadata)
    # Those of ann's own are there already, too.
    assert await scene.ask("ann", MemoryRestore(before)) == Restored(existing=9)
    turns = "SELECT content, program, turn FROM note n JOIN agent a ON a.id = owner_id WHERE "
    numbered = {
        name: await scene.rows(f"{turns} a.name = %s AND turn IS NOT NULL ORDER BY seq", name)
        for name in ("ann", "bob")
    }
    assert numbered["ann"] == numbered["bob"] != []
    history = await scene.ask("bob", MemoryHistory(str(after[0].id)))
    assert [each.operation for each in history.versions] == ["restore"]
    counted = await scene.rows("SELECT count, bytes FROM note_use ORDER BY owner_id")
    assert counted[0].count == counted[1].count == 9


async def test_a_restored_note_is_found_listed_read_and_changed(scene: StateScene) -> None:
    record = NoteRecord("the hotel in Rome", "mine", created_at=1e9, tags=("t",))
    await scene.ask("ann", MemoryRestore((record,)))
    await scene.embedded()
    for mode in ("keyword", "semantic", "hybrid"):
        [found] = (await scene.ask("ann", MemorySearch("hotel", mode=mode, until=2e9))).notes
        assert (found.content, found.created_at, found.updated_at) == (record.content, 1e9, 1e9)
    assert (await scene.ask("ann", MemoryGet(found.id))).tags == ("t",)
    changed = await scene.ask("ann", MemoryUpdate(found.id, content="another"))
    assert (changed.version, changed.created_at) == (2, 1e9)
    # What was changed since is left as it is.
    assert await scene.ask("ann", MemoryRestore((record,))) == Restored(existing=1)
    assert (await scene.ask("ann", MemoryGet(found.id))).content == "another"


async def test_turns_find_their_place_where_there_are_others(scene: StateScene) -> None:
    for text in ("a", "b", "c"):
        await scene.ask("ann", MemoryLog("user", text))
        await scene.ask("bob", MemoryLog("user", f"of bob {text}"))
    records = await records_of(scene, "ann")
    for record in records:  # in batches of one: each finds the one before it
        await scene.ask("bob", MemoryRestore((record,)))
    rows = await scene.rows(
        "SELECT content, turn FROM note n JOIN agent a ON a.id = owner_id AND a.name = 'bob' "
        "ORDER BY turn"
    )
    assert [(row.content[-1], row.turn) for row in rows] == [
        *(("a", 1), ("b", 2), ("c", 3)),
        *(("a", 5), ("b", 6), ("c", 7)),  # 4 is left out: they do not belong together
    ]
    # One that was lost comes back to where it was.
    await scene.approved("ann", MemoryRemove(str(records[1].id)))
    await scene.ask("ann", MemoryRestore(records))
    assert [one.content for one in await records_of(scene, "ann")] == ["a", "c", "b"]
    rows = await scene.rows(
        "SELECT content, turn FROM note n JOIN agent a ON a.id = owner_id AND a.name = 'ann' "
        "ORDER BY turn"
    )
    assert [(row.content, row.turn) for row in rows] == [("a", 1), ("b", 2), ("c", 3)]


async def test_a_turn_whose_place_another_one_has_begins_a_conversation(scene: StateScene) -> None:
    for text in ("a", "b"):
        await scene.ask("ann", MemoryLog("user", text))
    second = (await records_of(scene, "ann"))[1]
    other = msgspec.structs.replace(second, id="ab" * 16, content="also after a")
    assert await scene.ask("ann", MemoryRestore((other,))) == Restored(added=1)
    rows = await scene.rows("SELECT content, turn FROM note ORDER BY turn")
    assert [tuple(row) for row in rows] == [("a", 1), ("b", 2), ("also after a", 4)]


async def test_two_that_restore_the_same_at_once_add_it_once(scene: StateScene) -> None:
    await scene.known("ann")
    records = tuple(NoteRecord(f"note {number}", str(number)) for number in range(20))
    done = await asyncio.gather(*(scene.ask("ann", MemoryRestore(records)) for _ in range(4)))
    assert sum(each.added for each in done) == 20
    assert sum(each.existing for each in done) == 60
    assert len(await records_of(scene, "ann")) == 20


async def test_records_without_ids_are_known_by_what_they_say(scene: StateScene) -> None:
    records = (NoteRecord("x"), NoteRecord("x", tags=("t",)), NoteRecord("x"))
    assert await scene.ask("ann", MemoryRestore(records)) == Restored(added=2, existing=1)
    assert await scene.ask("ann", MemoryRestore(records)) == Restored(existing=3)


async def test_what_expired_is_left_out_and_said(scene: StateScene) -> None:
    records = (NoteRecord("x", "1", expires_at=1e9), NoteRecord("y", "2", expires_at=9e9))
    assert await scene.ask("ann", MemoryRestore(records)) == Restored(added=1, expired=1)
    [left] = await records_of(scene, "ann")
    assert (left.content, left.expires_at) == ("y", 9e9)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"created_at": 9e9}, "created_at", "in the future"),
        ({"updated_at": 9e9}, "updated_at", "in the future"),
        ({"created_at": 2e9 - 4e8, "updated_at": 1e9}, "updated_at", "before it was created"),
        ({"content": "é" * MAX_NOTE_BYTES}, "content", "bytes"),
        ({"content": "x" * 5_000}, "content", "block"),
    ],
)
async def test_a_bad_record_is_named_and_none_is_added(
    scene: StateScene, fields: dict[str, Any], field: str, words: str
) -> None:
    await scene.ask("ann", MemoryAlloc(bytes=4_096))
    bad = msgspec.structs.replace(NoteRecord("x", "bad"), **fields)
    with pytest.raises(InvalidSyscall, match=words) as refused:
        await scene.ask("ann", MemoryRestore((NoteRecord("good", "good"), bad)))
    assert refused.value.field == f"body.records[1].{field}"
    assert await records_of(scene, "ann") == ()


async def test_only_what_may_be_read_is_dumped_and_only_ones_own_is_written(
    scene: StateScene,
) -> None:
    await scene.known("ann", "bob")
    await scene.ask("ann", MemoryLog("user", "hidden"))
    shown = await scene.ask("ann", MemoryLog("user", "shown"))
    await scene.ask("ann", MemoryShare(note=shown.id, agent="bob"))
    dumped: NoteRecords = await scene.ask("bob", MemoryDump(owner="ann"))
    [record] = dumped.records
    assert (record.content, record.previous) == ("shown", None)  # nothing of the hidden one
    await scene.ask("bob", MemoryRestore(dumped.records))
    assert len((await scene.ask("ann", MemoryList())).notes) == 2
    assert [note.content for note in (await scene.ask("bob", MemoryList())).notes] == ["shown"]
    with pytest.raises(UnknownAgent):
        await scene.ask("bob", MemoryDump(owner="nobody"))


async def test_a_file_holds_all_in_pages_and_comes_back_in_batches(scene: StateScene) -> None:
    many = tuple(NoteRecord(f"note {number}", str(number)) for number in range(1_000))
    await scene.ask("ann", MemoryRestore(many))
    await fill(scene)
    written = io.BytesIO()
    assert await export_notes(sender(scene, "ann"), written, {}) == 1_009
    lines = written.getvalue().splitlines()
    assert len(lines) == 1_009
    assert json.loads(lines[0]) == {
        "content": "note 0",
        "program": "main",
        **{name: json.loads(lines[0])[name] for name in ("id", "created_at")},
    }
    batches: list[int] = []

    async def send(body: Body, at: int) -> Any:  # noqa: ANN401
        assert isinstance(body, MemoryRestore)
        batches.append(len(body.records))
        return await scene.ask("bob", body)

    for expected in (Restored(added=1_009), Restored(existing=1_009)):
        written.seek(0)
        assert await import_notes(send, written) == expected
    assert max(batches) == BATCH_RECORDS
    again = io.BytesIO()
    await export_notes(sender(scene, "bob"), again, {"tags": ("a",)})
    assert [json.loads(line)["content"] for line in again.getvalue().splitlines()] == [TEA]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b"no json", "line 3"),
        (b'{"content": 5}', "line 3, content"),
        (b'{"tags": []}', "line 3, content"),
        (b'{"content": "x", "colour": "red"}', "line 3, colour"),
        (b'{"content": "x", "content": "y"}', "line 3"),
        (b'{"content": "\xff"}', "line 3"),
        (b'{"content": "x", "metadata": {"a": "\\u0000"}}', "line 3, metadata"),
        (b'{"content": "x", "created_at": 9e9}', "line 3, created_at"),
        (b'{"content": "x", "created_at": 1.7e12}', "line 3, created_at"),
        (b"[" * 5_000, "line 3"),
        (b'{"content": "' + b"x" * 5_000_000 + b'"}', "line 3"),
    ],
    ids=lambda each: each if isinstance(each, str) else each[:40].decode(errors="replace"),
)
async def test_a_bad_line_is_named_by_its_number(
    scene: StateScene, line: bytes, field: str
) -> None:
    file = io.BytesIO(b'\xef\xbb\xbf{"content": "first"}\r\n\r\n' + line + b'\n{"content": "z"}')
    with pytest.raises(InvalidSyscall) as refused:
        await import_notes(sender(scene, "ann"), file)
    assert refused.value.field == field
    assert "not added twice" in (refused.value.remedy or "")


async def test_an_empty_memory_is_an_empty_file(scene: StateScene) -> None:
    written = io.BytesIO()
    assert await export_notes(sender(scene, "ann"), written, {}) == 0
    assert written.getvalue() == b""
    assert await import_notes(sender(scene, "ann"), io.BytesIO()) == Restored()


async def test_a_cleared_memory_is_restored(scene: StateScene) -> None:
    await fill(scene)
    before = await records_of(scene, "ann")
    await scene.approved("ann", MemoryClear())
    await scene.ask("ann", MemoryRestore(before))
    assert without_ids(await records_of(scene, "ann")) == without_ids(before)


async def test_a_turn_has_its_own_time(scene: StateScene) -> None:
    now = time.time()
    first = await scene.ask("ann", MemoryLog("user", "a", at=1e9))
    assert (first.created_at, first.updated_at) == (1e9, 1e9)
    await scene.ask("ann", MemoryLog("user", "b", at=1e9))
    await scene.ask("ann", MemoryLog("user", "c", at=1e9 + 6 * 3_600 + 1))  # a pause
    await scene.ask("ann", MemoryLog("user", "d", at=now + 30))  # another clock
    for at, words in ((now + 600, "in the future"), (1e9, "the last one of program 'main'")):
        with pytest.raises(InvalidSyscall, match=words) as refused:
            await scene.ask("ann", MemoryLog("user", "e", at=at))
        assert refused.value.field == "body.at"
        assert refused.value.remedy is not None
    rows = await scene.rows("SELECT content, turn FROM note ORDER BY seq")
    assert [tuple(row) for row in rows] == [("a", 1), ("b", 2), ("c", 4), ("d", 6)]
    found = await scene.ask("ann", MemorySearch("a b c", mode="keyword", until=1e9 + 1))
    assert {note.content for note in found.notes} <= {"a", "b"}
