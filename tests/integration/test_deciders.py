"""Who asked never decides, by whomever it asked; who decides makes no more of a request."""

from __future__ import annotations

from typing import Any

import pytest

from aios_broker.access.requests import Decision
from aios_broker.contract.access import (
    AccessApprove,
    AccessAudit,
    AccessDeny,
    AccessGrant,
    AccessGroupAdd,
    AccessGroupCreate,
    AccessRegister,
    AccessRevoke,
    AccessSetRule,
    ApprovalState,
    ObjectRef,
)
from aios_broker.contract.errors import AccessDenied, ApprovalExpired, NotFound
from aios_broker.contract.names import Verb
from aios_broker.contract.storage import StorageDelete, StorageRead, StorageWrite
from aios_broker.contract.syscall import Body, Syscall
from aios_broker.contract.tokens import digest, new_token
from aios_broker.queues.control import Control
from aios_broker.views.settings import decide_as_operator
from aios_workers.approvals.service import NeedsApproval
from tests.state_scene import OPERATOR, StateScene


async def asks(scene: StateScene, agent: str, body: Body) -> Syscall:
    """Ask for what needs a person; return the syscall that waits."""
    syscall = scene.syscall(agent, body)
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    return syscall


async def decides(
    scene: StateScene, agent: str, syscall: Syscall, *, arguments: dict[str, Any] | None = None
) -> None:
    """Have an agent approve what waits."""
    approval = await scene.approval_of(syscall.id)
    await scene.ask(agent, AccessApprove(approval.id, arguments))
    scene.decided.add(syscall.id)


async def is_refused(scene: StateScene, agent: str, syscall: Syscall, why: str) -> None:
    """Check that an agent may neither approve nor deny it."""
    approval = await scene.approval_of(syscall.id)
    for body in (AccessApprove(approval.id), AccessDeny(approval.id)):
        with pytest.raises(AccessDenied, match=why):
            await scene.ask(agent, body)
    assert (await scene.approval_of(syscall.id)).state == "waiting"


@pytest.fixture
async def tenant(scene: StateScene) -> StateScene:
    """Here boss registers, judge decides; ann has a file."""
    await scene.allow("boss", "administer", "decide")
    await scene.allow("judge", "decide")
    await scene.ask("ann", StorageWrite("a.txt", "the only copy"))
    await scene.ask("ann", StorageWrite("old/b.txt", "b"))
    await scene.ask("ann", StorageWrite("old/deep/c.txt", "c"))
    return scene


async def test_who_registered_the_asker_does_not_decide_for_it(tenant: StateScene) -> None:
    await tenant.register("boss", "puppet")
    await tenant.ask("puppet", StorageWrite("x.txt", "x"))
    syscall = await asks(tenant, "puppet", StorageDelete("x.txt"))
    await is_refused(tenant, "boss", syscall, "boss is not apart from puppet")
    await decides(tenant, "judge", syscall)
    await tenant.run(syscall)


async def test_puppets_of_puppets_are_ones_own(tenant: StateScene) -> None:
    await tenant.register("boss", "puppet")
    await tenant.allow("puppet", "administer")
    await tenant.register("puppet", "small")
    await tenant.ask("small", StorageWrite("x.txt", "x"))
    await is_refused(
        tenant, "boss", await asks(tenant, "small", StorageDelete("x.txt")), "not apart from small"
    )


async def test_who_made_the_decider_is_not_decided_for_by_it(tenant: StateScene) -> None:
    """The administrator has a token of the agent that decides; and of another that asks."""
    for name in ("clerk", "puppet"):
        await tenant.register("boss", name)
    await tenant.allow("clerk", "decide")
    for asker in ("boss", "puppet"):
        await tenant.ask(asker, StorageWrite("x.txt", "x"))
        syscall = await asks(tenant, asker, StorageDelete("x.txt"))
        await is_refused(tenant, "clerk", syscall, f"not apart from {asker}")
    await decides(tenant, "clerk", await asks(tenant, "ann", StorageDelete("a.txt")))


async def test_who_holds_a_token_of_the_asker_does_not_decide_for_it(tenant: StateScene) -> None:
    syscall = await asks(tenant, "ann", StorageDelete("a.txt"))
    await tenant.register("boss", "ann", approved=True, ttl_s=0.000_001)  # over, and used maybe
    await is_refused(tenant, "boss", syscall, "not apart from ann")


@pytest.mark.parametrize("by_group", [False, True])
async def test_who_granted_the_asker_something_does_not_decide_for_it(
    tenant: StateScene, *, by_group: bool
) -> None:
    await tenant.known("bob")
    await tenant.ask("judge", StorageWrite("mine.txt", "the only copy"))
    mine = ObjectRef("file", "mine.txt")
    verbs: tuple[Verb, ...] = ("read", "write")
    if by_group:
        await tenant.group("team", "ann", "bob")
        await tenant.ask("judge", AccessGrant(mine, verbs, group="team"))
    else:
        await tenant.ask("judge", AccessGrant(mine, verbs, agent="bob"))
    syscall = await asks(tenant, "bob", StorageDelete("mine.txt", owner="judge"))
    await is_refused(tenant, "judge", syscall, "not apart from bob")


async def test_what_a_puppet_granted_was_granted_by_ones_own_hand(tenant: StateScene) -> None:
    await tenant.register("boss", "puppet")
    await tenant.known("bob")
    await tenant.ask("puppet", StorageWrite("x.txt", "x"))
    given = AccessGrant(ObjectRef("file", "x.txt"), ("read", "write"), agent="bob")
    await tenant.ask("puppet", given)
    syscall = await asks(tenant, "bob", StorageDelete("x.txt", owner="puppet"))
    await is_refused(tenant, "boss", syscall, "not apart from bob")
    await decides(tenant, "judge", syscall)


async def test_nobody_decides_about_what_is_its_own(tenant: StateScene) -> None:
    """The grant is another's, who may share; the file is the decider's."""
    await tenant.known("bob", "carl")
    await tenant.ask("judge", StorageWrite("mine.txt", "the only copy"))
    mine = ObjectRef("file", "mine.txt", "judge")
    await tenant.ask("judge", AccessGrant(mine, ("read", "write", "share"), agent="bob"))
    await tenant.ask("bob", AccessGrant(mine, ("read", "write"), agent="carl"))
    syscall = await asks(tenant, "carl", StorageDelete("mine.txt", owner="judge"))
    await is_refused(tenant, "judge", syscall, "it is about judge")
    await tenant.ask("ann", AccessGroupCreate("team"))
    joining = await asks(tenant, "ann", AccessGroupAdd("team", "judge", "admin"))
    await is_refused(tenant, "judge", joining, "it is about judge")


async def test_rules_tokens_and_administrators_are_the_operators_to_decide(
    tenant: StateScene,
) -> None:
    for body in (
        AccessSetRule("delete", "never", agent="ann"),
        AccessRegister("ann", token_digest=digest(new_token())),
        AccessRegister("new", administrator=True, token_digest=digest(new_token())),
    ):
        await is_refused(tenant, "judge", await asks(tenant, "boss", body), "operator's to decide")


async def test_an_approval_is_worth_what_its_giver_still_may_decide(tenant: StateScene) -> None:
    async def approved(path: str) -> Syscall:
        syscall = await asks(tenant, "ann", StorageDelete(path))
        await decides(tenant, "boss", syscall)
        return syscall

    syscall = await approved("a.txt")
    await tenant.ask("boss", StorageWrite("bait.txt", "bait"))
    await tenant.ask("boss", AccessGrant(ObjectRef("file", "bait.txt"), ("read",), agent="ann"))
    with pytest.raises(ApprovalExpired, match="boss approved it, and may not"):
        await tenant.run(syscall)
    await tenant.approved("boss", AccessRevoke(ObjectRef("file", "bait.txt")))
    await tenant.run(syscall)
    syscall = await approved("old/b.txt")
    await tenant.rows("UPDATE agent SET decides = false WHERE name = 'boss' RETURNING 1")
    with pytest.raises(ApprovalExpired, match="boss approved it, and may not"):
        await tenant.run(syscall)
    assert (await tenant.ask("ann", StorageRead("old/b.txt"))).content == "b"


async def test_by_sql_alone_a_puppets_approval_is_out_of_reach(tenant: StateScene) -> None:
    """Row-level security asks the same, whatever the module does."""
    await tenant.register("boss", "puppet")
    await tenant.ask("puppet", StorageWrite("x.txt", "x"))
    puppets = await asks(tenant, "puppet", StorageDelete("x.txt"))
    anns = await asks(tenant, "ann", StorageDelete("a.txt"))
    boss = await tenant.store.vouched("boss", "default")
    changed = []
    for syscall in (puppets, anns):
        async with tenant.store.as_agent(boss) as cursor:
            await cursor.execute(
                "UPDATE approval SET state = 'approved', decided_by_agent = %s WHERE job_id = %s",
                (boss.id, syscall.id),
            )
            changed.append(cursor.rowcount)
    assert changed == [0, 1]


# Edits.


async def test_an_agent_narrows_and_needs_the_right_itself(tenant: StateScene) -> None:
    syscall = await asks(tenant, "ann", StorageDelete("old", recursive=True))
    less = {"path": "old/deep", "recursive": True}
    with pytest.raises(AccessDenied, match="no grant allows judge"):
        await decides(tenant, "judge", syscall, arguments=less)
    assert (await tenant.approval_of(syscall.id)).state == "waiting"
    old = ObjectRef("directory", "old")
    await tenant.ask("ann", AccessGrant(old, ("read", "write"), agent="judge"))
    await decides(tenant, "judge", syscall, arguments=less)
    with pytest.raises(NeedsApproval):  # what is left has to be seen before it goes
        await tenant.run(syscall)
    await decides(tenant, "judge", syscall)
    await tenant.approved("ann", AccessRevoke(old))  # it runs with the rights of both, as they are
    with pytest.raises(AccessDenied, match="no grant allows judge"):
        await tenant.run(syscall)
    await tenant.ask("ann", AccessGrant(old, ("read", "write"), agent="judge"))
    await tenant.run(syscall)
    assert (await tenant.ask("ann", StorageRead("old/b.txt"))).content == "b"
    with pytest.raises(NotFound):
        await tenant.ask("ann", StorageRead("old/deep/c.txt"))


@pytest.mark.parametrize(
    ("asked", "edit"),
    [
        (StorageDelete("a.txt"), {"path": "old", "recursive": True}),
        (StorageDelete("a.txt"), {"path": "old/b.txt"}),
        (StorageDelete("old", recursive=True), {"path": "old/../a.txt"}),
        (StorageDelete("old", recursive=True), {"path": "older", "recursive": True}),
        (StorageDelete("old", recursive=True), {"path": "old", "owner": "judge"}),
        (StorageWrite("a.txt", "new"), {"path": "a.txt", "content": "other"}),
        (
            AccessRevoke(ObjectRef("file", "a.txt"), agent="bob"),
            {"object": {"kind": "file", "name": "a.txt"}},
        ),
    ],
)
async def test_an_agent_makes_nothing_else_of_a_request(
    tenant: StateScene, asked: Body, edit: dict[str, Any]
) -> None:
    await tenant.known("bob")
    await tenant.ask("ann", AccessGrant(ObjectRef("file", "a.txt"), ("read",), agent="bob"))
    whole = ObjectRef("directory", "/")
    await tenant.ask("ann", AccessGrant(whole, ("administer",), agent="judge"))
    syscall = await asks(tenant, "ann", asked)
    with pytest.raises(AccessDenied, match="only narrow"):
        await decides(tenant, "judge", syscall, arguments=edit)
    assert (await tenant.approval_of(syscall.id)).state == "waiting"


async def test_the_audit_log_says_what_was_edited(tenant: StateScene) -> None:
    syscall = await asks(tenant, "ann", StorageDelete("old", recursive=True))
    await tenant.ask(
        "ann", AccessGrant(ObjectRef("directory", "old"), ("read", "write"), agent="judge")
    )
    await decides(tenant, "judge", syscall, arguments={"path": "/old/b.txt"})
    await tenant.allow("boss", "administer")
    [line] = [
        one
        for one in (await tenant.ask("boss", AccessAudit())).entries
        if one.action == "approval.approved"
    ]
    assert (line.actor, line.syscall_id) == ("judge", syscall.id)
    assert line.detail["edited"] == {
        "path": {"asked": "old", "runs": "/old/b.txt"},
        "recursive": {"asked": True, "runs": None},
    }


@pytest.mark.parametrize("state", ["approved", "denied"])
async def test_nobody_decides_about_what_has_ended_meanwhile(
    tenant: StateScene, state: ApprovalState
) -> None:
    syscall = await asks(tenant, "ann", StorageDelete("a.txt"))
    waiting = await tenant.approval_of(syscall.id)
    control = Control(tenant.services.functions, tenant.services.keys)
    await tenant.cancel(syscall)

    with pytest.raises(ApprovalExpired, match="syscall has ended") as by_operator:
        await decide_as_operator(tenant.store, control, waiting.id, OPERATOR.name, Decision(state))
    body = AccessApprove(waiting.id) if state == "approved" else AccessDeny(waiting.id)
    with pytest.raises(ApprovalExpired, match="syscall has ended"):
        await tenant.ask("judge", body)

    assert by_operator.value.field == "approval"
    assert (await tenant.approval_of(syscall.id)).state == "waiting"  # nothing of it was kept
    decisions = "SELECT 1 FROM audit WHERE action LIKE 'approval.%%' AND action <> %s"
    assert not await tenant.rows(decisions, "approval.asked")
