"""The access module: who there is, groups, grants, and the audit log."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
import redis

from aios_broker.contract.access import (
    AccessAudit,
    AccessCheck,
    AccessGrant,
    AccessGrants,
    AccessGroupAdd,
    AccessGroupCreate,
    AccessGroupDelete,
    AccessGroupRemove,
    AccessGroups,
    AccessRegister,
    AccessRevoke,
    AccessRevokeToken,
    AccessWhoami,
    ObjectKind,
    ObjectRef,
)
from aios_broker.contract.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidSyscall,
    NotFound,
    UnknownAgent,
)
from aios_broker.contract.memory import MemoryAdd, MemoryGet
from aios_broker.contract.storage import StorageRead, StorageWrite
from aios_broker.contract.tokens import digest, new_token
from aios_broker.queues.tokens import Identity, Tokens
from aios_workers.approvals.service import NeedsApproval
from aios_workers.modules.access import groups
from aios_workers.modules.access import groups as group_operations
from aios_workers.modules.state_handler import tidy
from tests.state_scene import StateScene
from tests.waiting import wait_until_async


def groups_in_redis(url: str) -> dict[str, list[str]]:
    with redis.Redis.from_url(url) as client:
        shown = client.hgetall("rq:aios:groups")
    return {agent.decode(): json.loads(groups) for agent, groups in shown.items()}


async def test_who_asks_first_is_nobody_special(scene: StateScene) -> None:
    for fields in ({}, {"administrator": True}):
        with pytest.raises(AccessDenied, match="aios agents allow"):
            await scene.register("ann", "ann", **fields)
    who = await scene.ask("ann", AccessWhoami())
    assert (who.administrator, who.decides, who.tokens) == (False, False, ())


async def test_an_administrator_is_the_operators_to_make(scene: StateScene) -> None:
    await scene.allow("boss", "administer")
    assert (await scene.ask("boss", AccessWhoami())).administrator
    issued = await scene.register("boss", "bob")
    assert issued.token.startswith("aios_")
    assert not (await scene.ask("bob", AccessWhoami())).administrator
    with pytest.raises(NeedsApproval, match="make agent carl an administrator"):
        await scene.register("boss", "carl", administrator=True)
    with pytest.raises(UnknownAgent):  # all of it was taken back: there is no carl
        await scene.ask("boss", AccessRevokeToken("carl"))
    await scene.register("boss", "carl", approved=True, administrator=True)
    assert (await scene.ask("carl", AccessWhoami())).administrator
    line = (await scene.ask("boss", AccessAudit(agent="operator:test"))).entries[-1]
    assert (line.action, line.object) == ("access.allow", "agent boss: administer")


async def test_a_token_of_an_agent_that_is_there_waits_for_a_person(scene: StateScene) -> None:
    """Whoever has it speaks as that agent; who speaks as it already is told."""
    await scene.allow("boss", "administer")
    await scene.known("vic")
    for known in ("vic", "boss"):
        with pytest.raises(NeedsApproval, match=f"a token of agent {known}, who is known already"):
            await scene.register("boss", known)
    assert await scene.rows("SELECT FROM agent_token") == []
    await scene.register("boss", "vic", approved=True, ttl_s=3_600.0)
    [held] = (await scene.ask("vic", AccessWhoami())).tokens
    assert (held.issued_by, held.expires_at is not None) == ("boss", True)
    with pytest.raises(NeedsApproval, match="1 others stay good"):
        await scene.register("boss", "vic")


async def test_who_becomes_known_while_it_is_registered_was_known(scene: StateScene) -> None:
    await scene.allow("boss", "administer")
    for number in range(20):
        name = f"a{number}"
        outcomes = await asyncio.gather(
            scene.register("boss", name), scene.known(name), return_exceptions=True
        )
        [row] = await scene.rows(
            "SELECT a.registered_by IS NOT NULL AS new, EXISTS (SELECT FROM agent_token k "
            "WHERE k.agent_id = a.id) AS has FROM agent a WHERE a.name = %s",
            name,
        )
        assert row.new == row.has == (not isinstance(outcomes[0], NeedsApproval)), outcomes


async def test_registered_again_after_a_crash_nobody_is_asked_and_nobody_else_is_known(
    scene: StateScene,
) -> None:
    """The agent is known by then: by that very call."""
    await scene.allow("boss", "administer")
    token = new_token()
    asked = scene.syscall("boss", AccessRegister("bob", token_digest=digest(token)))
    await scene.run(asked)
    await scene.run(asked)
    assert await scene.proves(token, "bob", "default")
    with pytest.raises(AlreadyExists):
        await scene.ask("boss", AccessRegister("eve", token_digest=digest(token)))
    with pytest.raises(NeedsApproval, match="make agent bob an administrator"):
        await scene.ask("boss", AccessRegister("bob", True, token_digest=digest(token)))


async def test_a_token_of_an_operator_becomes_no_agents(scene: StateScene) -> None:
    """It is in Redis alone; its digest is no secret: lists of tokens show it."""
    await scene.allow("boss", "administer")
    tokens = Tokens(scene.services.functions.connection, scene.services.keys)
    operator = Identity("operator:root", "", scope="operator")
    await tokens.put(digest("aios_operator"), operator)
    with pytest.raises(AlreadyExists):
        await scene.ask("boss", AccessRegister("eve", token_digest=digest("aios_operator")))
    assert await tokens.find(digest("aios_operator")) == operator
    assert not await scene.rows("SELECT FROM agent WHERE name = 'eve'")


async def test_tokens_prove_who_calls_until_they_expire_or_are_revoked(scene: StateScene) -> None:
    await scene.allow("ann", "administer")
    issued = await scene.register("ann", "boss")
    assert await scene.proves(issued.token, "boss", "default")
    assert not await scene.proves(issued.token, "ann", "default")
    assert not await scene.proves(issued.token, "boss", "other")
    short = await scene.register("ann", "bob", ttl_s=0.000001)

    async def has_expired() -> bool:
        return not await scene.proves(short.token, "bob", "default")

    await wait_until_async(has_expired)
    with pytest.raises(AccessDenied):
        await scene.ask("bob", AccessRevokeToken("boss"))
    assert (await scene.ask("boss", AccessRevokeToken("boss"))).changed
    assert not await scene.proves(issued.token, "boss", "default")
    assert not await scene.rows("SELECT FROM agent_token WHERE digest = %s", issued.token)


async def test_groups_come_in_pages_with_so_many_members(
    scene: StateScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a", "b", "c"]
    for name in names:
        await scene.group(name, "ann", "bob")
    page = await scene.ask("ann", AccessGroups(limit=2))
    assert ([group.name for group in page.groups], page.more) == (["a", "b"], True)
    page = await scene.ask("ann", AccessGroups(limit=2, after="b"))
    assert ([group.name for group in page.groups], page.more) == (["c"], False)
    for members, shown in ((1, ["a"]), (3, ["a"]), (4, ["a", "b"])):
        monkeypatch.setattr(group_operations, "MOST_MEMBERS", members)
        page = await scene.ask("ann", AccessGroups())
        assert ([group.name for group in page.groups], page.more) == (shown, True)


async def test_groups_are_made_joined_and_left_and_redis_shows_them(
    scene: StateScene, redis_url: str
) -> None:
    await scene.group("team", "ann", "bob")
    [group] = (await scene.ask("bob", AccessGroups())).groups
    assert (group.name, group.members) == ("team", {"ann": "admin", "bob": "member"})
    assert (await scene.ask("bob", AccessWhoami())).groups == ("team",)
    assert groups_in_redis(redis_url) == {"default/ann": ["team"], "default/bob": ["team"]}
    with pytest.raises(AlreadyExists):
        await scene.ask("bob", AccessGroupCreate("team"))
    with pytest.raises(AccessDenied):
        await scene.ask("bob", AccessGroupDelete("team"))
    with pytest.raises(UnknownAgent):
        await scene.ask("ann", AccessGroupAdd("team", "nobody"))
    await scene.ask("bob", AccessGroupRemove("team", "bob"))  # leaving needs nobody
    assert groups_in_redis(redis_url) == {"default/ann": ["team"]}
    with pytest.raises(NeedsApproval):
        await scene.ask("ann", AccessGroupDelete("team"))
    await scene.approved("ann", AccessGroupDelete("team"))
    assert groups_in_redis(redis_url) == {}


async def test_a_map_that_a_crash_left_behind_is_put_right(
    scene: StateScene, redis_url: str
) -> None:
    await scene.group("team", "ann")
    with redis.Redis.from_url(redis_url) as client:
        client.hset("rq:aios:groups", mapping={"default/ann": "[]", "default/eve": '["team"]'})
    services = scene.services
    wrong = await groups.refresh(services)
    assert wrong == 2
    assert groups_in_redis(redis_url) == {"default/ann": ["team"]}


async def test_grants_let_do_what_they_say_and_are_listed(scene: StateScene) -> None:
    await scene.known("ann", "bob")
    await scene.ask("ann", StorageWrite("plans/a.txt", "secret"))
    plans = ObjectRef("directory", "/plans", "ann")
    with pytest.raises(NotFound):
        await scene.ask("bob", StorageRead("plans/a.txt", owner="ann"))
    assert not (await scene.ask("bob", AccessCheck(plans, "read"))).allowed
    await scene.ask("ann", AccessGrant(ObjectRef("directory", "plans"), ("read",), agent="bob"))
    assert (await scene.ask("bob", StorageRead("plans/a.txt", owner="ann"))).content == "secret"
    assert (await scene.ask("bob", AccessCheck(plans, "read"))).allowed
    assert not (await scene.ask("bob", AccessCheck(plans, "write"))).allowed
    [held] = (await scene.ask("bob", AccessGrants(held=True))).grants
    assert (held.object, held.to, held.verbs) == (plans, "agent:bob", ("read",))
    assert (await scene.ask("ann", AccessGrants())).grants == (held,)
    with pytest.raises(AccessDenied):
        await scene.ask("bob", AccessGrant(plans, ("read",), agent="ann"))
    await scene.approved("ann", AccessRevoke(ObjectRef("directory", "plans")))
    with pytest.raises(NotFound):
        await scene.ask("bob", StorageRead("plans/a.txt", owner="ann"))


async def test_who_may_share_grants_only_what_it_may_do(scene: StateScene) -> None:
    await scene.known("ann", "bob", "carl")
    note = await scene.ask("ann", MemoryAdd("shared on"))
    of_ann = ObjectRef("note", note.id, "ann")
    await scene.ask("ann", AccessGrant(of_ann, ("read", "share"), agent="bob"))
    with pytest.raises(AccessDenied, match="write"):
        await scene.ask("bob", AccessGrant(of_ann, ("write",), agent="carl"))
    await scene.ask("bob", AccessGrant(of_ann, ("read",), agent="carl"))
    assert (await scene.ask("carl", MemoryGet(note.id, owner="ann"))).content == "shared on"


async def test_who_administers_by_a_grant_can_replace_that_very_grant(scene: StateScene) -> None:
    """It is still there when it is asked whether it allows what stands in for it."""
    await scene.known("ann", "bob")
    note = await scene.ask("ann", MemoryAdd("shared on"))
    of_ann = ObjectRef("note", note.id, "ann")
    await scene.ask("ann", AccessGrant(of_ann, ("administer",), agent="bob"))
    await scene.approved("bob", AccessGrant(of_ann, ("read",), agent="bob"))
    [held] = (await scene.ask("bob", AccessGrants(held=True))).grants
    assert held.verbs == ("read",)


async def test_who_administers_takes_back_all_and_its_own_with_it(scene: StateScene) -> None:
    await scene.known("bob", "carl")
    await scene.ask("ann", StorageWrite("/d/a.txt", "a file"))
    note = await scene.ask("ann", MemoryAdd("a note"))
    names: dict[ObjectKind, str] = {
        "block": "",
        "note": note.id,
        "file": "/d/a.txt",
        "directory": "/d",
    }
    for kind, name in names.items():
        of_ann = ObjectRef(kind, name, "ann")
        await scene.ask("ann", AccessGrant(of_ann, ("administer",), agent="bob"))
        await scene.ask("ann", AccessGrant(of_ann, ("read",), agent="carl"))
        assert (await scene.approved("bob", AccessRevoke(of_ann))).changed
        assert (await scene.ask("ann", AccessGrants())).grants == ()


async def test_another_tenant_is_another_world(scene: StateScene) -> None:
    await scene.known("ann", "bob")
    note = await scene.ask("ann", MemoryAdd("ours"))
    await scene.ask("ann", AccessGrant(ObjectRef("block"), ("administer",), agent="bob"))
    scene.tenant = "other"
    with pytest.raises(UnknownAgent):
        await scene.ask("bob", MemoryGet(note.id, owner="ann"))
    await scene.known("ann")
    with pytest.raises(NotFound):
        await scene.ask("bob", MemoryGet(note.id, owner="ann"))


@pytest.mark.parametrize(
    "body",
    [
        AccessGrant(ObjectRef("block"), ("read",)),
        AccessGrant(ObjectRef("block"), ("read",), agent="bob", group="team"),
        AccessGrant(ObjectRef("block", "name"), ("read",), agent="bob"),
        AccessRevoke(ObjectRef("block"), agent="bob", group="team"),
    ],
)
async def test_a_grant_that_makes_no_sense_is_refused(
    scene: StateScene, body: AccessGrant | AccessRevoke
) -> None:
    await scene.group("team", "ann", "bob")
    with pytest.raises(InvalidSyscall) as caught:
        await scene.ask("ann", body)
    assert caught.value.field
    assert (await scene.ask("ann", AccessGrants())).grants == ()


async def test_what_is_over_goes_and_lost_tokens_come_back(
    scene: StateScene, redis_url: str
) -> None:
    services = scene.services
    await scene.allow("ann", "administer")
    issued = await scene.register("ann", "boss")
    await scene.register("ann", "gone", ttl_s=0.000_001)
    await scene.ask("ann", MemoryAdd("short", ttl_s=0.000_001))
    kept = await scene.ask("ann", MemoryAdd("kept"))
    await scene.ask("ann", AccessGrant(ObjectRef("block"), ("read",), agent="boss", ttl_s=1e-6))
    await scene.rows(
        "UPDATE effect SET at = now() - interval '3 days' WHERE kind = 'memory.add' RETURNING 1"
    )
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    await tidy(services)
    assert [row.id for row in await scene.rows("SELECT id FROM note")] == [kept.id]
    assert await scene.rows("SELECT FROM access_grant") == []
    assert [row.kind for row in await scene.rows("SELECT kind FROM effect")] == ["access.grant"]
    assert await scene.proves(issued.token, "boss", "default")
    with redis.Redis.from_url(redis_url) as client:
        assert client.hlen("rq:aios:tokens") == 1


async def test_a_token_that_a_crash_left_in_redis_when_it_was_revoked_is_taken_out(
    scene: StateScene,
) -> None:
    services = scene.services
    tokens = Tokens(services.functions.connection)
    await scene.allow("ann", "administer")
    issued = await scene.register("ann", "boss")
    other = await scene.register("ann", "bob")
    await scene.approved("ann", AccessRevokeToken("bob"))
    # As if the worker had died before it told Redis.
    await tokens.put(digest(other.token), Identity("bob"))
    await tidy(services)
    assert not await scene.proves(other.token, "bob", "default")
    assert await scene.proves(issued.token, "boss", "default")
    await scene.rows(
        "UPDATE agent_token SET revoked_at = now() - interval '3 days' "
        "WHERE revoked_at IS NOT NULL RETURNING 1"
    )
    await tidy(services)
    assert len(await scene.rows("SELECT FROM agent_token")) == 1


async def test_a_token_is_not_given_back_while_it_is_revoked(
    scene: StateScene, redis_url: str
) -> None:
    """Whoever is first, the token is worthless when both are done."""
    services = scene.services
    await scene.allow("boss", "administer")
    await scene.register("boss", "bob")
    for _ in range(20):
        issued = await scene.register("boss", "bob", approved=True)
        with redis.Redis.from_url(redis_url) as client:
            client.delete("rq:aios:tokens")
        await asyncio.gather(
            tidy(services),
            scene.approved("boss", AccessRevokeToken("bob")),
        )
        assert not await scene.proves(issued.token, "bob", "default")


async def shared_with_bob(scene: StateScene, ttl_s: float | None = None) -> ObjectRef:
    """Let ann share a note with bob, who may share it, too; return the note."""
    note = await scene.ask("ann", MemoryAdd("plans"))
    of_ann = ObjectRef("note", note.id, "ann")
    grant = AccessGrant(of_ann, ("read", "share"), agent="bob", ttl_s=ttl_s)
    await scene.ask("ann", grant)
    return of_ann


async def test_nothing_is_passed_on_for_longer_than_it_is_held(scene: StateScene) -> None:
    await scene.known("ann", "bob", "pup")
    of_ann = await shared_with_bob(scene, ttl_s=60.0)
    await scene.ask("bob", AccessGrant(of_ann, ("read",), agent="pup"))
    await scene.ask("bob", AccessGrant(of_ann, ("read", "share"), agent="bob", ttl_s=1e6))
    granted = (await scene.ask("ann", AccessGrants())).grants
    ends = {each.to: each.expires_at for each in granted}
    assert set(ends) == {"agent:bob", "agent:pup"}
    assert all(end is not None and end < time.time() + 61.0 for end in ends.values())


async def test_what_was_passed_on_ends_with_what_it_came_from(scene: StateScene) -> None:
    """Also where it leads back to who passed it on: by a group of its own."""
    await scene.known("ann", "bob", "pup")
    of_ann = await shared_with_bob(scene)
    await scene.ask("bob", AccessGroupCreate("bobs"))
    await scene.ask("bob", AccessGrant(of_ann, ("read", "share"), group="bobs"))
    await scene.ask("bob", AccessGrant(of_ann, ("read",), agent="pup"))
    await scene.approved("ann", AccessRevoke(of_ann, agent="bob"))
    assert (await scene.ask("ann", AccessGrants())).grants == ()
    for name in ("bob", "pup"):
        with pytest.raises(NotFound):
            await scene.ask(name, MemoryGet(of_ann.name, owner="ann"))


async def test_who_leaves_a_group_leaves_nothing_that_it_passed_on(scene: StateScene) -> None:
    await scene.known("ann", "bob", "pup")
    of_ann = await shared_with_bob(scene)
    await scene.approved("ann", AccessRevoke(of_ann, agent="bob"))
    await scene.ask("ann", AccessGroupCreate("team"))
    await scene.approved("ann", AccessGroupAdd("team", "bob"))
    await scene.ask("ann", AccessGrant(of_ann, ("read", "share"), group="team"))
    await scene.ask("bob", AccessGrant(of_ann, ("read",), agent="pup"))
    assert (await scene.ask("pup", MemoryGet(of_ann.name, owner="ann"))).content == "plans"
    await scene.approved("ann", AccessGroupRemove("team", "bob"))
    assert [each.to for each in (await scene.ask("ann", AccessGrants())).grants] == ["group:team"]
