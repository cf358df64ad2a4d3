"""The memory module: notes that are kept, found, shared, and that never read stale."""

from __future__ import annotations

import asyncio
import json

import pytest
import redis

from aios_broker.contract.errors import (
    AccessDenied,
    InvalidSyscall,
    NotFound,
    UnknownAgent,
    VersionConflict,
)
from aios_broker.contract.memory import (
    BlockStat,
    Evolved,
    MemoryAdd,
    MemoryAlloc,
    MemoryClear,
    MemoryContext,
    MemoryGet,
    MemoryHistory,
    MemoryList,
    MemoryLog,
    MemoryRemove,
    MemoryRollback,
    MemorySearch,
    MemoryShare,
    MemoryStat,
    MemoryTtl,
    MemoryUndo,
    MemoryUnshare,
    MemoryUpdate,
)
from aios_broker.contract.syscall import new_id
from aios_workers.approvals.service import NeedsApproval
from aios_workers.modules.memory.block import MemoryTotals, memory_totals
from aios_workers.modules.memory.reading import MAX_PAGE_BYTES
from tests.state_scene import StateScene


async def test_a_note_is_added_read_changed_and_its_history_kept(scene: StateScene) -> None:
    note = await scene.ask("ann", MemoryAdd("the sky is blue", tags=("sky",)))
    assert (note.version, note.owner, note.tags) == (1, "ann", ("sky",))
    changed = await scene.ask("ann", MemoryUpdate(note.id, content="the sky is grey"))
    assert (changed.version, changed.content, changed.tags) == (2, "the sky is grey", ("sky",))
    assert await scene.ask("ann", MemoryGet(note.id)) == changed
    old = await scene.ask("ann", MemoryGet(note.id, version=1))
    assert (old.version, old.content) == (1, "the sky is blue")
    history = await scene.ask("ann", MemoryHistory(note.id))
    assert [(one.version, one.operation, one.by) for one in history.versions] == [
        (2, "update", "ann"),
        (1, "add", "ann"),
    ]


async def test_the_last_hundred_versions_are_kept(scene: StateScene) -> None:
    note = await scene.ask("ann", MemoryAdd("1"))
    for number in range(2, 104):
        body = MemoryUpdate(note.id, content=str(number))
        await (scene.ask if number <= 100 else scene.approved)("ann", body)
    versions = (await scene.ask("ann", MemoryHistory(note.id))).versions
    assert [one.version for one in versions] == list(range(103, 3, -1))
    with pytest.raises(NotFound):
        await scene.ask("ann", MemoryGet(note.id, version=3))
    assert (await scene.ask("ann", MemoryGet(note.id, version=4))).content == "4"


async def test_a_syscall_that_is_run_again_adds_no_second_note(scene: StateScene) -> None:
    first = await scene.ask("ann", MemoryAdd("once"), id=(same := new_id()))
    assert await scene.ask("ann", MemoryAdd("once"), id=same) == first
    assert len((await scene.ask("ann", MemoryList())).notes) == 1


async def test_a_change_with_an_old_version_is_refused(scene: StateScene) -> None:
    note = await scene.ask("ann", MemoryAdd("a"))
    await scene.ask("ann", MemoryUpdate(note.id, content="b", if_version=1))
    with pytest.raises(VersionConflict, match="of version 2, not 1"):
        await scene.ask("ann", MemoryUpdate(note.id, content="c", if_version=1))
    assert (await scene.ask("ann", MemoryGet(note.id))).content == "b"


async def test_reads_come_from_the_block_and_faults_bring_notes_back(scene: StateScene) -> None:
    await scene.ask("ann", MemoryAlloc(4096, correlated_s=0.0))
    notes = [await scene.ask("ann", MemoryAdd(f"note {n} " + "x" * 500)) for n in range(12)]
    stat: BlockStat = await scene.ask("ann", MemoryStat())
    assert stat.used_bytes <= 0.8 * 4096
    assert stat.resident_notes + stat.swapped_notes == 12
    assert stat.swaps >= stat.swapped_notes > 0
    assert (await scene.ask("ann", MemoryGet(notes[0].id))).content == notes[0].content
    assert (await scene.ask("ann", MemoryGet(notes[0].id))).content == notes[0].content
    after: BlockStat = await scene.ask("ann", MemoryStat())
    assert (after.faults, after.hits) == (stat.faults + 1, stat.hits + 1)


async def test_an_emptied_redis_loses_no_note(scene: StateScene, redis_url: str) -> None:
    note = await scene.ask("ann", MemoryAdd("kept in Postgres"))
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert await scene.ask("ann", MemoryGet(note.id)) == note


async def test_a_read_beside_changes_is_never_stale(scene: StateScene) -> None:
    await scene.ask("ann", MemoryAlloc(4096, correlated_s=0.0))
    note = await scene.ask("ann", MemoryAdd("0"))
    acknowledged = 0

    async def change() -> None:
        nonlocal acknowledged
        for number in range(1, 60):
            await scene.ask("ann", MemoryUpdate(note.id, content=str(number)))
            acknowledged = number

    async def read() -> None:
        while not changing.done():
            least = acknowledged
            found = await scene.ask("ann", MemoryGet(note.id))
            assert int(found.content) >= least

    async def crowd() -> None:  # pushes the note out of the block again and again
        while not changing.done():
            await scene.ask("ann", MemoryAdd("y" * 1500))

    changing = asyncio.create_task(change())
    await asyncio.gather(changing, read(), read(), crowd())


async def test_lists_come_in_pages_filtered_by_tags(scene: StateScene) -> None:
    notes = [
        await scene.ask("ann", MemoryAdd(f"{n}", tags=("odd",) if n % 2 else ())) for n in range(5)
    ]
    first = await scene.ask("ann", MemoryList(limit=3))
    assert ([note.id for note in first.notes], first.more) == ([n.id for n in notes[:3]], True)
    rest = await scene.ask("ann", MemoryList(limit=3, after=first.notes[-1].id))
    assert ([note.id for note in rest.notes], rest.more) == ([n.id for n in notes[3:]], False)
    odd = await scene.ask("ann", MemoryList(tags=("odd",)))
    assert [note.content for note in odd.notes] == ["1", "3"]


async def test_notes_are_found_by_words_by_meaning_and_by_both(scene: StateScene) -> None:
    rivers = await scene.ask("ann", MemoryAdd("the Rhine flows through Basel"))
    await scene.ask("ann", MemoryAdd("bread is made of flour"))
    by_words = await scene.ask("ann", MemorySearch("Basel", mode="keyword"))
    assert [note.id for note in by_words.notes] == [rivers.id]
    await scene.embedded()
    by_meaning = await scene.ask("ann", MemorySearch("rhine basel", k=1, mode="semantic"))
    assert [note.id for note in by_meaning.notes] == [rivers.id]
    both = await scene.ask("ann", MemorySearch("the Rhine", k=1))
    assert [note.id for note in both.notes] == [rivers.id]
    assert both.notes[0].score is not None


async def test_a_recalled_text_keeps_to_its_budget(scene: StateScene) -> None:
    for number in range(6):
        await scene.ask("ann", MemoryAdd(f"train {number} leaves at {number} o'clock " * 3))
    recall = await scene.ask("ann", MemoryContext("train", max_tokens=60))
    assert 0 < recall.tokens <= 60
    assert not recall.exact
    assert 0 < len(recall.notes) < 6
    tiny = await scene.ask("ann", MemoryContext("train", max_tokens=5))
    assert (tiny.tokens, len(tiny.notes)) == (5, 1)


async def test_a_core_counts_what_is_recalled(scene: StateScene) -> None:
    for number in range(6):
        await scene.ask("ann", MemoryAdd(f"train {number} leaves at {number} o'clock"))
    recall = await scene.ask("ann", MemoryContext("train", max_tokens=16, core="words"))
    assert recall.exact
    assert recall.tokens == len(recall.text.split()) <= 16
    assert len(recall.notes) == 2
    of_the_notes, of_the_text = scene.answers.asked
    assert of_the_notes != of_the_text  # two calls, then: what is asked is a part of their ids


async def test_a_log_keeps_its_order_and_its_kinds(scene: StateScene) -> None:
    for role in ("user", "assistant"):
        await scene.ask("ann", MemoryLog(role, f"said by {role}"))
    await scene.ask("ann", MemoryLog("tool", "42", tool="calculator"))
    talk = await scene.ask("ann", MemoryList(category="conversation"))
    assert [note.metadata["role"] for note in talk.notes] == ["user", "assistant"]
    [tool] = (await scene.ask("ann", MemoryList(category="tool"))).notes
    assert tool.metadata == {"role": "tool", "program": "main", "tool": "calculator"}


async def test_a_note_that_expired_is_gone(scene: StateScene) -> None:
    note = await scene.ask("ann", MemoryAdd("short"))
    await scene.approved("ann", MemoryTtl(note.id, 0.05))
    async with asyncio.timeout(5):
        while True:
            try:
                await scene.ask("ann", MemoryGet(note.id))
            except NotFound:
                break
    assert (await scene.ask("ann", MemoryList())).notes == ()


async def test_what_cannot_be_taken_back_waits_for_a_person(scene: StateScene) -> None:
    note = await scene.ask("ann", MemoryAdd("precious"))
    await scene.ask("ann", MemoryUpdate(note.id, content="newer"))
    for body in (MemoryRemove(note.id), MemoryClear(), MemoryRollback(note.id, 1)):
        with pytest.raises(NeedsApproval):
            await scene.ask("ann", body)
    assert (await scene.ask("ann", MemoryGet(note.id))).content == "newer"
    back = await scene.approved("ann", MemoryRollback(note.id, 1))
    assert (back.version, back.content) == (3, "precious")
    await scene.approved("ann", MemoryRemove(note.id))
    with pytest.raises(NotFound):
        await scene.ask("ann", MemoryGet(note.id))
    await scene.ask("ann", MemoryAdd("another"))
    await scene.approved("ann", MemoryClear())
    assert (await scene.ask("ann", MemoryList())).notes == ()


async def test_a_group_shares_notes_until_it_is_taken_back(scene: StateScene) -> None:
    await scene.group("team", "ann", "bob")
    await scene.known("eve")
    note = await scene.ask("ann", MemoryAdd("the meeting is on Monday"))
    with pytest.raises(NotFound):
        await scene.ask("bob", MemoryGet(note.id, owner="ann"))
    await scene.ask("ann", MemoryShare(group="team"))
    assert (await scene.ask("bob", MemoryGet(note.id, owner="ann"))).content == note.content
    found = await scene.ask("bob", MemorySearch("meeting", shared=True))
    assert [(one.id, one.owner) for one in found.notes] == [(note.id, "ann")]
    assert (await scene.ask("bob", MemorySearch("meeting"))).notes == ()
    assert len((await scene.ask("bob", MemoryList(owner="ann"))).notes) == 1
    with pytest.raises(AccessDenied):
        await scene.ask("bob", MemoryUpdate(note.id, owner="ann", content="never"))
    with pytest.raises(NotFound):
        await scene.ask("eve", MemoryGet(note.id, owner="ann"))
    await scene.approved("ann", MemoryUnshare(group="team"))
    with pytest.raises(NotFound):
        await scene.ask("bob", MemoryGet(note.id, owner="ann"))


async def test_a_note_that_may_be_written_is_written_by_another(scene: StateScene) -> None:
    await scene.known("ann", "bob")
    note = await scene.ask("ann", MemoryAdd("draft"))
    await scene.ask("ann", MemoryShare(note.id, agent="bob", verbs=("read", "write")))
    await scene.ask("bob", MemoryUpdate(note.id, owner="ann", content="final"))
    assert (await scene.ask("ann", MemoryGet(note.id))).content == "final"
    history = await scene.ask("ann", MemoryHistory(note.id))
    assert [one.by for one in history.versions] == ["bob", "ann"]


async def test_a_model_labels_links_and_rewrites_and_that_is_undone(scene: StateScene) -> None:
    old = await scene.ask("ann", MemoryAdd("cats sleep a lot", context="animals"))
    scene.answers.texts = {
        "analyse": json.dumps({"keywords": ["cats"], "context": "about cats", "tags": ["pets"]}),
        "relate": json.dumps(
            {
                "links": [0, 4],
                "update": [
                    {"index": 0, "context": "cats", "tags": ["pets"]},
                    {"index": 3, "context": "nothing", "tags": []},
                ],
            }
        ),
    }
    add = MemoryAdd("cats like fish", evolve=True)
    result: Evolved = await scene.ask("ann", add, id=(syscall_id := new_id()))
    assert (result.note.keywords, result.note.context, result.note.tags) == (
        ("cats",),
        "about cats",
        ("pets",),
    )
    assert (result.note.links, result.changed) == ((old.id,), (old.id,))
    changed = await scene.ask("ann", MemoryGet(old.id))
    assert (changed.context, changed.tags, changed.links) == ("cats", ("pets",), (result.note.id,))
    linked = await scene.ask("ann", MemorySearch("fish", mode="keyword", follow_links=True))
    assert [note.id for note in linked.notes] == [result.note.id, old.id]
    undone = await scene.ask("ann", MemoryUndo(syscall_id))
    assert [(note.id, note.context, note.version) for note in undone.notes] == [
        (old.id, "animals", 3)
    ]
    with pytest.raises(NotFound):  # a stranger's guess
        await scene.ask("bob", MemoryUndo(syscall_id))
    again = await scene.ask("ann", add, id=new_id())
    await scene.ask("ann", MemoryUpdate(old.id, content="cats sleep less"))
    assert again.changed
    scene.answers.texts["relate"] = "not JSON at all"
    assert (await scene.ask("ann", MemoryAdd("cats purr", evolve=True))).changed == ()


async def test_an_evolution_that_was_built_upon_is_not_undone(scene: StateScene) -> None:
    old = await scene.ask("ann", MemoryAdd("tea is hot"))
    scene.answers.texts = {"analyse": "{}", "relate": json.dumps({"links": [0], "update": []})}
    await scene.ask("ann", MemoryAdd("tea is green", evolve=True), id=(syscall_id := new_id()))
    await scene.ask("ann", MemoryUpdate(old.id, content="tea is cold"))
    with pytest.raises(VersionConflict, match=old.id):
        await scene.ask("ann", MemoryUndo(syscall_id))


@pytest.mark.parametrize(
    ("body", "error", "field"),
    [
        (MemoryAdd("a\x00b"), InvalidSyscall, "content"),
        (MemoryAdd("x" * 5000), InvalidSyscall, "content"),
        (MemoryGet("0" * 32), NotFound, "note"),
        (MemoryGet("0" * 32, owner="nobody"), UnknownAgent, "agent"),
        (MemoryAlloc(4096, high=0.5, low=0.6), InvalidSyscall, "low"),
        (MemoryUndo("0" * 32), NotFound, "body.syscall_id"),
        (MemoryShare(), InvalidSyscall, "body.group"),
        (MemoryShare(group="nobody"), UnknownAgent, "group"),
    ],
)
async def test_bad_input_is_named_and_changes_nothing(
    scene: StateScene, body: MemoryAdd, error: type[Exception], field: str
) -> None:
    await scene.ask("ann", MemoryAlloc(4096))
    with pytest.raises(error) as caught:
        await scene.ask("ann", body)
    assert caught.value.field == field  # type: ignore[attr-defined]
    assert caught.value.remedy  # type: ignore[attr-defined]
    assert (await scene.ask("ann", MemoryList())).notes == ()


async def test_what_blocks_hold_and_did_is_counted_over_all(scene: StateScene) -> None:
    for agent in ("ann", "bob"):
        note = await scene.ask(agent, MemoryAdd("12345"))
        await scene.ask(agent, MemoryGet(note.id))
    services = scene.services
    totals = await memory_totals(services.functions.connection, services.keys)
    assert totals == MemoryTotals(blocks=2, notes=2, used_bytes=10, hits=2, faults=0, swaps=0)


async def test_an_answer_holds_so_many_bytes_and_says_that_there_are_others(
    scene: StateScene,
) -> None:
    large = {"x": "y" * (MAX_PAGE_BYTES // 3)}
    await scene.ask("ann", MemoryAlloc(MAX_PAGE_BYTES * 2))
    ids = [
        (await scene.ask("ann", MemoryAdd("apples", metadata=large, keywords=(str(number),)))).id
        for number in range(5)
    ]
    pages, after = [], None
    while True:
        page = await scene.ask("ann", MemoryList(after=after))
        pages.append([note.id for note in page.notes])
        if not page.more:
            break
        after = pages[-1][-1]
    assert pages == [ids[:2], ids[2:4], ids[4:]]
    found = await scene.ask("ann", MemorySearch("apples", mode="keyword"))
    assert (len(found.notes), found.more) == (2, True)
    assert len((await scene.ask("ann", MemorySearch("apples", k=2, mode="keyword"))).notes) == 2
    for number in range(3):
        await scene.ask("ann", MemoryUpdate(ids[0], content=f"pears {number}"))
    history = await scene.ask("ann", MemoryHistory(ids[0]))
    assert ([each.version for each in history.versions], history.more) == ([4, 3], True)
