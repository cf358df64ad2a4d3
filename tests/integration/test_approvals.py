"""Approvals: what a person did not allow never happens, what it allowed happens once."""

from __future__ import annotations

import asyncio
import json
import random

import msgspec
import pytest

from aios_broker.access.requests import Decision, decide, list_approvals, set_rule
from aios_broker.contract.access import (
    AccessApprovals,
    AccessApprove,
    AccessDeny,
    AccessRules,
    AccessSetRule,
    Approval,
)
from aios_broker.contract.errors import (
    AccessDenied,
    ApprovalDenied,
    ApprovalExpired,
    InvalidSyscall,
    KernelError,
    NotFound,
    VersionConflict,
)
from aios_broker.contract.memory import MemoryAdd, MemoryClear
from aios_broker.contract.storage import (
    StorageAppend,
    StorageCopy,
    StorageDelete,
    StorageMove,
    StorageOperate,
    StorageRead,
    StorageShare,
    StorageUnshare,
    StorageWrite,
)
from aios_broker.contract.syscall import Body, Syscall, new_id
from aios_workers.approvals.service import NeedsApproval
from aios_workers.modules.state_handler import tidy
from tests.state_scene import OPERATOR, StateScene

EXPIRE = "UPDATE approval SET expires_at = now() WHERE job_id = %s RETURNING 1"
FEW, MANY = 100, 1_000  # tries


async def asked_to_delete(scene: StateScene, path: str = "a.txt", agent: str = "ann") -> Syscall:
    """Write a file and ask to delete it; return the syscall that waits now."""
    await scene.ask(agent, StorageWrite(path, "content"))
    syscall = scene.syscall(agent, StorageDelete(path))
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    return syscall


async def is_there(scene: StateScene, path: str = "a.txt", agent: str = "ann") -> bool:
    try:
        await scene.ask(agent, StorageRead(path))
    except NotFound:
        return False
    return True


async def test_an_approved_deletion_runs_once(scene: StateScene) -> None:
    syscall = await asked_to_delete(scene)
    assert await is_there(scene)
    approval = await scene.approval_of(syscall.id)
    assert (approval.state, approval.operation, approval.kind) == (
        "waiting",
        "delete",
        "storage.delete",
    )
    await scene.decide(syscall.id, Decision("approved"))
    first = await scene.run(syscall)
    assert not await is_there(scene)
    await scene.ask("ann", StorageWrite("a.txt", "again"))
    assert await scene.run(syscall) == first  # its effect, not another deletion
    assert await is_there(scene)
    assert (await scene.approval_of(syscall.id)).state == "used"


async def test_an_approval_is_of_one_syscall_alone(scene: StateScene) -> None:
    syscall = await asked_to_delete(scene)
    await scene.decide(syscall.id, Decision("approved"))
    with pytest.raises(NeedsApproval):
        await scene.ask("ann", StorageDelete("a.txt"))  # the same, but another job
    assert await is_there(scene)


async def test_changed_arguments_are_asked_for_anew(scene: StateScene) -> None:
    syscall = await asked_to_delete(scene)
    await scene.ask("ann", StorageWrite("b.txt", "other"))
    await scene.decide(syscall.id, Decision("approved"))
    forged = msgspec.structs.replace(syscall, body=StorageDelete("b.txt"))
    with pytest.raises(NeedsApproval):
        await scene.run(forged)
    assert await is_there(scene, "b.txt")


async def asked_anew(scene: StateScene, syscall: Syscall) -> Approval:
    """Approve what waits, find that it is asked for again, and return that request."""
    first = await scene.approval_of(syscall.id)
    await scene.decide(syscall.id, Decision("approved"))
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    second = await scene.approval_of(syscall.id)
    assert (second.state, second.decided_by) == ("waiting", "")
    assert second.id != first.id
    assert second.objects != first.objects
    async with scene.store.as_steward() as cursor:
        with pytest.raises(NotFound):  # who has seen the old request decides nothing any more
            await decide(cursor, first.id, OPERATOR, Decision("approved"))
    return second


UNNAMED = """
    UPDATE approval SET objects = (SELECT jsonb_agg(o - 'name' - 'size_bytes')
                                     FROM jsonb_array_elements(objects) o)
     WHERE job_id = %s
"""


async def test_what_an_older_release_has_asked_for_is_still_allowed(scene: StateScene) -> None:
    syscall = await asked_to_delete(scene)
    [seen] = (await scene.approval_of(syscall.id)).objects
    assert (seen.name, seen.size_bytes) == ("file /a.txt", len("content"))
    async with scene.store.as_steward() as cursor:
        await cursor.execute(UNNAMED, (syscall.id,))
    await scene.decide(syscall.id, Decision("approved"))
    await scene.run(syscall)
    assert not await is_there(scene)


async def test_content_that_has_moved_in_is_asked_for_anew(scene: StateScene) -> None:
    syscall = await asked_to_delete(scene)
    await scene.ask("ann", StorageMove("a.txt", "b.txt"))
    await scene.ask("ann", StorageWrite("a.txt", "what nobody has seen"))
    assert "20 bytes" in (await asked_anew(scene, syscall)).what
    await scene.decide(syscall.id, Decision("approved"))
    await scene.run(syscall)
    assert not await is_there(scene)
    assert await is_there(scene, "b.txt")


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        (StorageDelete("d", recursive=True), StorageWrite("d/new.txt", "new")),
        (StorageDelete("d", recursive=True), StorageAppend("d/a.txt", "more")),
        (StorageWrite("d/a.txt", "other"), StorageAppend("d/a.txt", "more")),
        (StorageCopy("b.txt", "d/a.txt", overwrite=True), StorageAppend("b.txt", "more")),
        (StorageMove("b.txt", "d/a.txt", overwrite=True), StorageAppend("b.txt", "more")),
        (StorageMove("d", "scratch/d"), StorageAppend("d/a.txt", "more")),
        (StorageUnshare("d/a.txt"), StorageShare("d/a.txt", link=True)),
        (StorageUnshare("d/a.txt"), StorageShare("d/a.txt", agent="carl")),
        (MemoryClear(), MemoryAdd("another")),
    ],
)
async def test_what_a_person_saw_is_what_goes(scene: StateScene, body: Body, changes: Body) -> None:
    await scene.known("bob", "carl")
    await scene.ask("ann", StorageWrite("d/a.txt", "first"))
    await scene.ask("ann", StorageWrite("b.txt", "second"))
    await scene.ask("ann", StorageShare("d/a.txt", agent="bob"))
    await scene.ask("ann", MemoryAdd("a note"))
    syscall = scene.syscall("ann", body)
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    await scene.ask("ann", changes)
    await asked_anew(scene, syscall)
    await scene.decide(syscall.id, Decision("approved"))
    await scene.run(syscall)
    assert (await scene.approval_of(syscall.id)).state == "used"


async def test_what_was_seen_as_a_source_is_not_thereby_deleted(scene: StateScene) -> None:
    """An edit makes a move over one file a move of the other into scratch space."""
    await scene.ask("ann", StorageWrite("a.txt", "first"))
    await scene.ask("ann", StorageWrite("b.txt", "second"))
    syscall = scene.syscall("ann", StorageMove("b.txt", "a.txt", overwrite=True))
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    edit = {"path": "b.txt", "to": "scratch/b.txt"}
    await scene.decide(syscall.id, Decision("approved", arguments=edit))
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    assert await is_there(scene, "b.txt")


async def test_a_call_that_takes_several_things_asks_for_all_of_them_once(
    scene: StateScene,
) -> None:
    """A rule that lets one class go does not let go what comes with it."""
    await scene.known("ann")
    async with scene.store.as_steward() as cursor:
        await set_rule(cursor, scene.tenant, None, "overwrite", "never")
    await scene.ask("ann", StorageWrite("a.txt", "first"))
    steps = [
        {"do": "write", "path": "a.txt", "content": "second"},
        {"do": "delete", "path": "a.txt"},
    ]
    scene.answers.texts = {"plan": json.dumps({"steps": steps})}
    syscall = scene.syscall("ann", StorageOperate("do it"))
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    asked = await scene.approval_of(syscall.id)
    assert asked.operation == "delete"
    assert {(one.operation, one.kind) for one in asked.objects} >= {
        ("overwrite", "file"),
        ("delete", "file"),
    }


async def test_who_may_set_rules_is_asked_under_the_rule_of_before(scene: StateScene) -> None:
    await scene.known("boss")
    await scene.rows("UPDATE agent SET administrator = true WHERE name = 'boss' RETURNING 1")
    with pytest.raises(NeedsApproval):
        await scene.ask("boss", AccessSetRule("privilege", "never"))
    assert (await scene.ask("boss", AccessRules())).rules["privilege"] == "ask"


async def test_a_denial_tells_its_reason(scene: StateScene) -> None:
    syscall = await asked_to_delete(scene)
    await scene.decide(syscall.id, Decision("denied", "not on a Friday"))
    with pytest.raises(ApprovalDenied, match="operator:test refused it: not on a Friday"):
        await scene.run(syscall)
    assert await is_there(scene)


async def test_a_person_edits_the_arguments(scene: StateScene) -> None:
    syscall = await asked_to_delete(scene)
    await scene.ask("ann", StorageWrite("b.txt", "other"))
    with pytest.raises(InvalidSyscall, match="no arguments of"):
        await scene.decide(syscall.id, Decision("approved", arguments={"nothing": 1}))
    edited = await scene.decide(syscall.id, Decision("approved", arguments={"path": "b.txt"}))
    assert '-  "path": "a.txt"' in edited.diff
    assert '+  "path": "b.txt"' in edited.diff
    with pytest.raises(NeedsApproval):  # what is at b.txt nobody has been shown yet
        await scene.run(syscall)
    again = await scene.approval_of(syscall.id)
    assert (again.state, again.arguments, "b.txt" in again.what) == (
        "waiting",
        {"path": "b.txt"},
        True,
    )
    await scene.decide(syscall.id, Decision("approved"))
    await scene.run(syscall)
    assert await is_there(scene)
    assert not await is_there(scene, "b.txt")


async def test_an_edit_that_takes_no_more_than_was_seen_runs_at_once(scene: StateScene) -> None:
    await scene.ask("ann", StorageWrite("a.txt", "before"))
    syscall = scene.syscall("ann", StorageWrite("a.txt", "asked for"))
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    edit = {"path": "a.txt", "content": "edited"}
    await scene.decide(syscall.id, Decision("approved", arguments=edit))
    await scene.run(syscall)
    assert (await scene.ask("ann", StorageRead("a.txt"))).content == "edited"


async def test_what_was_edited_and_comes_anew_is_brought_back_as_decided(
    scene: StateScene,
) -> None:
    """An emptied Redis knows of no decision: the job is parked again, and the sweep finds it."""
    await scene.ask("ann", StorageWrite("a.txt", "before"))
    syscall = scene.syscall("ann", StorageWrite("a.txt", "asked for"))
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    edit = {"path": "a.txt", "content": "edited"}
    await scene.decide(syscall.id, Decision("approved", arguments=edit))
    resumed = "UPDATE approval SET resumed_at = now() WHERE job_id = %s RETURNING 1"
    await scene.rows(resumed, syscall.id)
    scene.decided.clear()
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    again = await scene.rows("SELECT state, resumed_at FROM approval WHERE job_id = %s", syscall.id)
    assert [(row.state, row.resumed_at) for row in again] == [("approved", None)]
    scene.decided.add(syscall.id)
    await scene.run(syscall)
    assert (await scene.ask("ann", StorageRead("a.txt"))).content == "edited"


async def test_nobody_decides_twice_or_too_late(scene: StateScene) -> None:
    syscall = await asked_to_delete(scene)
    await scene.decide(syscall.id, Decision("denied"))
    with pytest.raises(VersionConflict, match="denied already, by operator:test"):
        await scene.decide(syscall.id, Decision("approved"))
    late = await asked_to_delete(scene, "b.txt")
    await scene.rows(
        "UPDATE approval SET expires_at = now() WHERE job_id = %s RETURNING 1", late.id
    )
    with pytest.raises(ApprovalExpired):
        await scene.decide(late.id, Decision("approved"))
    with pytest.raises(ApprovalExpired):
        await scene.run(late)
    assert await is_there(scene, "b.txt")


async def test_an_approval_that_was_given_and_expired_is_worthless(scene: StateScene) -> None:
    syscall = await asked_to_delete(scene)
    await scene.decide(syscall.id, Decision("approved"))
    await scene.rows(EXPIRE, syscall.id)
    with pytest.raises(ApprovalExpired):
        await scene.run(syscall)
    assert await is_there(scene)


async def test_of_two_approvers_at_once_one_decides(scene: StateScene) -> None:
    syscall = await asked_to_delete(scene)
    outcomes = await asyncio.gather(
        *(scene.decide(syscall.id, Decision(state)) for state in ("approved", "denied") * 4),
        return_exceptions=True,
    )
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1
    assert all(
        isinstance(outcome, VersionConflict)
        for outcome in outcomes
        if isinstance(outcome, BaseException)
    )


async def test_who_is_allowed_to_decides_for_others_never_for_itself(scene: StateScene) -> None:
    await scene.allow("boss", "administer", "decide")
    syscall = await asked_to_delete(scene)
    [waiting] = (await scene.ask("boss", AccessApprovals())).approvals
    with pytest.raises(AccessDenied):
        await scene.ask("ann", AccessApprove(waiting.id))
    await scene.known("bob")
    assert (await scene.ask("bob", AccessApprovals())).approvals == ()
    await scene.allow("chief", "administer")
    with pytest.raises(AccessDenied, match="has not let chief decide"):
        await scene.ask("chief", AccessApprove(waiting.id))
    await scene.ask("boss", AccessApprove(waiting.id))
    scene.decided.add(syscall.id)
    await scene.run(syscall)
    assert not await is_there(scene)
    own = await asked_to_delete(scene, agent="boss")
    approval = await scene.approval_of(own.id)
    with pytest.raises(AccessDenied, match="asked for itself"):
        await scene.ask("boss", AccessApprove(approval.id))
    with pytest.raises(AccessDenied, match="asked for itself"):
        await scene.ask("boss", AccessDeny(approval.id))


async def test_lists_leave_out_long_arguments_and_one_by_name_has_them(scene: StateScene) -> None:
    await scene.allow("boss", "administer", "decide")
    await scene.ask("ann", StorageWrite("a.txt", "1"))
    long = StorageWrite("a.txt", "x" * 3_000)
    with pytest.raises(NeedsApproval):
        await scene.ask("ann", long)
    [listed] = (await scene.ask("boss", AccessApprovals())).approvals
    assert listed.arguments == {"path": "a.txt"}
    assert listed.left_out == ("content",)
    with pytest.raises(InvalidSyscall, match="content"):  # a list's arguments are no edit
        await scene.ask("boss", AccessApprove(listed.id, arguments=listed.arguments))
    [whole] = (await scene.ask("boss", AccessApprovals(approval=listed.id))).approvals
    assert whole.arguments["content"] == long.content
    assert whole.left_out == ()
    await scene.known("bob")
    with pytest.raises(NotFound):
        await scene.ask("bob", AccessApprovals(approval=listed.id))


async def test_what_was_decided_is_kept_for_a_month(scene: StateScene) -> None:
    old, newer, waiting = [await asked_to_delete(scene) for _ in range(3)]
    await scene.decide(old.id, Decision("denied"))
    await scene.decide(newer.id, Decision("denied"))
    await scene.rows(
        "UPDATE approval SET expires_at = now() - interval '31 days' "
        "WHERE job_id = ANY(%s) RETURNING 1",
        [old.id, waiting.id],
    )
    services = scene.services
    await tidy(services)
    kept = await scene.rows("SELECT job_id FROM approval")
    assert {row.job_id for row in kept} == {newer.id, waiting.id}


async def test_rules_say_what_needs_a_person(scene: StateScene) -> None:
    await scene.allow("boss", "administer", "decide")
    await scene.ask("ann", StorageWrite("a.txt", "1"))
    with pytest.raises(NeedsApproval):  # it would lose what is there
        await scene.ask("ann", StorageWrite("a.txt", "2"))
    with pytest.raises(AccessDenied):
        await scene.ask("ann", AccessSetRule("overwrite", "never"))
    await scene.approved("boss", AccessSetRule("overwrite", "never", agent="ann"))
    assert (await scene.ask("ann", AccessRules())).rules["overwrite"] == "never"
    assert (await scene.ask("boss", AccessRules())).rules["overwrite"] == "ask-when-lossy"
    await scene.ask("ann", StorageWrite("a.txt", "3"))
    await scene.ask("ann", StorageWrite("/scratch/b.txt", "1"))
    await scene.ask("ann", StorageDelete("/scratch/b.txt"))  # own scratch space asks nobody
    await scene.approved("boss", AccessSetRule("delete", "ask", agent="ann"))
    await scene.ask("ann", StorageWrite("/scratch/b.txt", "1"))
    with pytest.raises(NeedsApproval):
        await scene.ask("ann", StorageDelete("/scratch/b.txt"))


async def an_attack(scene: StateScene, number: int, dice: random.Random) -> None:
    """Do one thing that must not lead to an unapproved deletion; check that none happened."""
    path, agent = f"{number}.txt", "ann"
    syscall = await asked_to_delete(scene, path)
    way = dice.randrange(5)
    allowed = False
    if way == 0:  # replay, many at once
        runs = await asyncio.gather(*(scene.run(syscall) for _ in range(4)), return_exceptions=True)
        assert all(isinstance(run, NeedsApproval) for run in runs)
    elif way == 1:  # arguments changed after the approval
        await scene.decide(syscall.id, Decision("approved"))
        await scene.ask(agent, StorageWrite(f"{number}-other.txt", "content"))
        forged = msgspec.structs.replace(syscall, body=StorageDelete(f"{number}-other.txt"))
        with pytest.raises(NeedsApproval):
            await scene.run(forged)
        assert await is_there(scene, f"{number}-other.txt")
    elif way == 2:  # it expires while it is decided and run
        await asyncio.gather(
            scene.decide(syscall.id, Decision("approved")),
            scene.rows(EXPIRE, syscall.id),
            return_exceptions=True,
        )
        with pytest.raises(KernelError):
            await scene.run(syscall)
    elif way == 3:  # two approvers at once who do not agree, and the job beside them
        await asyncio.gather(
            scene.decide(syscall.id, Decision("denied")),
            scene.decide(syscall.id, Decision("approved")),
            scene.run(syscall),
            return_exceptions=True,
        )
        allowed = (await scene.approval_of(syscall.id)).state in ("approved", "used")
    else:  # another agent's id, and the same id from another agent
        await scene.decide(syscall.id, Decision("approved"))
        for forged in (
            msgspec.structs.replace(syscall, agent="eve"),
            msgspec.structs.replace(syscall, id=new_id()),
        ):
            with pytest.raises((NeedsApproval, NotFound)):
                await scene.run(forged)
    assert allowed or await is_there(scene, path)


@pytest.mark.parametrize(
    "tries",
    [
        FEW,
        pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
async def test_an_unapproved_deletion_never_runs(scene: StateScene, tries: int) -> None:
    dice = random.Random(tries)
    for number in range(tries):
        await an_attack(scene, number, dice)
    counted = await scene.rows(
        "SELECT count(*) FILTER (WHERE kind = 'storage.delete') AS deleted, "
        "(SELECT count(*) FROM approval WHERE state = 'used') AS used FROM effect"
    )
    assert counted[0].deleted == counted[0].used


async def test_a_flood_of_requests_hides_nobodys_and_is_read_page_by_page(
    scene: StateScene,
) -> None:
    for agent in ("ann", "bob"):
        await scene.ask(agent, StorageWrite("f", "x"))
    asked = []
    for agent in (*["ann"] * 5, "bob"):
        syscall = scene.syscall(agent, StorageDelete("f"))
        with pytest.raises(NeedsApproval):
            await scene.run(syscall)
        asked.append(syscall.id)
    seen: list[str] = []
    after = None
    while True:
        async with scene.store.as_steward() as cursor:
            page = await list_approvals(cursor, "waiting", 2, after)
        seen += [one.syscall_id for one in page.approvals]
        after = page.approvals[-1].id
        if not page.more:
            break
        if len(seen) == 2:  # the next page begins after the last one, though that is decided now
            await scene.decide(asked[5], Decision("denied"))
    assert seen == [asked[0], asked[5], *asked[1:5]]


async def test_the_only_request_of_a_tenant_comes_first_of_its_own_kind(scene: StateScene) -> None:
    for tenant, times in (("flood", 4), ("other", 1)):
        scene.tenant = tenant
        await scene.ask("ann", StorageWrite("f", "x"))
        for _ in range(times):
            with pytest.raises(NeedsApproval):
                await scene.ask("ann", StorageDelete("f"))
    async with scene.store.as_steward() as cursor:
        listed = await list_approvals(cursor, "waiting", 2)
    assert [one.tenant for one in listed.approvals] == ["flood", "other"]
    assert listed.more
