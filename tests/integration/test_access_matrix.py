"""Who may do what with whose object: every cell, through the modules and by SQL alone.

An owner grants each verb alone, and reading with writing, on an object of each kind. Everybody
then tries everything. Through the modules only who may read writes: the answer shows what is there.
By SQL the session runs as the role `aios_agent` and names the agent, as the modules' do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, LiteralString, Protocol

import psycopg
import pytest

from aios_broker.access.rights import Right
from aios_broker.contract.access import (
    AccessCheck,
    AccessGrant,
    AccessGroupAdd,
    AccessGroupCreate,
    AccessGroupRemove,
    AccessRevoke,
    ObjectKind,
    ObjectRef,
)
from aios_broker.contract.errors import AccessDenied, NotFound
from aios_broker.contract.memory import MemoryAdd, MemoryGet, MemorySearch, MemoryUpdate
from aios_broker.contract.names import Verb
from aios_broker.contract.storage import (
    StorageAppend,
    StorageList,
    StorageMkdir,
    StorageRead,
    StorageSearch,
    StorageWrite,
)
from aios_broker.contract.syscall import Body
from tests.state_scene import NeverAsks, state_scene

VERBS: tuple[Verb, ...] = ("read", "write", "search", "share", "administer")
CHANGING: tuple[Verb, ...] = ("share", "administer")  # done, they change who may do what
KINDS: tuple[ObjectKind, ...] = ("block", "note", "file", "directory")
GRANTED: tuple[tuple[Verb, ...], ...] = (*((verb,) for verb in VERBS), ("read", "write"))
ROLES = ("owner", "agent", "member", "expired", "left", "other", "administrator", "foreigner")
HOLDERS = ("agent", "member")  # whose grant holds


class Scene(Protocol):
    """Where agents ask: the modules alone, or a whole kernel."""

    tenant: str

    async def ask(self, agent: str, body: Body) -> Any:  # noqa: ANN401  some result
        """Run one syscall."""

    async def allow(self, agent: str, *rights: Right) -> None:
        """Have the operator let an agent do something."""
        ...

    async def register(self, asker: str, agent: str) -> object:
        """Register an agent."""
        ...

    async def known(self, *agents: str) -> None:
        """Make agents known."""
        ...

    async def rows(self, query: LiteralString) -> list[Any]:
        """Return the rows of a query that sees everything."""
        ...


@dataclass
class World:
    """An owner's objects, and all who may come."""

    scene: Scene
    note: str

    def named(self, kind: ObjectKind) -> ObjectRef:
        names = {"block": "", "note": self.note, "file": "/plain.txt", "directory": "/d"}
        return ObjectRef(kind, names[kind], "owner")

    def path(self, kind: ObjectKind) -> str:
        return "/plain.txt" if kind == "file" else "/d/below.txt"

    def attempt(self, kind: ObjectKind, verb: Verb) -> Body:
        """What a verb lets one do with an object, or with what is in it."""
        named = self.named(kind)
        if verb == "share":
            return AccessGrant(named, ("share",), agent="zed")
        if verb == "administer":
            return AccessRevoke(named, agent="zed")
        in_memory: dict[str, Body] = {
            "read": MemoryGet(self.note, "owner"),
            "search": MemorySearch("plans", owner="owner"),
            "write": MemoryUpdate(self.note, "owner", category="changed"),
        }
        in_storage: dict[str, Body] = {
            "read": StorageList("/d", owner="owner")
            if kind == "directory"
            else StorageRead("/plain.txt", owner="owner"),
            "search": StorageSearch("plans", path=named.name or "/", owner="owner"),
            "write": StorageAppend(self.path(kind), "+", owner="owner"),
        }
        return (in_memory if kind in ("block", "note") else in_storage)[verb]

    async def succeeds(self, role: str, body: Body) -> bool:
        self.scene.tenant = "elsewhere" if role == "foreigner" else "default"
        try:
            result = await self.scene.ask(role, body)
        except (AccessDenied, NotFound):
            return False
        finally:
            self.scene.tenant = "default"
        if isinstance(body, MemorySearch):
            return bool(result.notes)
        return bool(result.hits) if isinstance(body, StorageSearch) else True


@pytest.fixture
async def world(redis_url: str, database_url: str) -> AsyncIterator[World]:
    async with state_scene(redis_url, database_url, approvals=NeverAsks) as scene:
        yield await world_of(scene)


async def world_of(scene: Scene) -> World:
    """Make everybody known, and the owner's objects."""
    await scene.known(*ROLES, "zed")
    await scene.allow("administrator", "administer")
    scene.tenant = "elsewhere"
    await scene.known("foreigner", "owner", "zed")
    scene.tenant = "default"
    for group, member in (("team", "member"), ("past", "left")):
        await scene.ask("owner", AccessGroupCreate(group))
        await scene.ask("owner", AccessGroupAdd(group, member))
    note = await scene.ask("owner", MemoryAdd("plans for May"))
    await scene.ask("owner", StorageWrite("/plain.txt", "plans for June"))
    await scene.ask("owner", StorageMkdir("/d"))
    await scene.ask("owner", StorageWrite("/d/below.txt", "plans for July"))
    return World(scene, note.id)


async def grant(world: World, kind: ObjectKind, verbs: tuple[Verb, ...]) -> None:
    """Let some in by an object: an agent, a group, one that has left it, one for a moment."""
    scene, named = world.scene, world.named(kind)
    await scene.ask("owner", AccessGrant(named, verbs, agent="agent"))
    await scene.ask("owner", AccessGrant(named, verbs, group="team"))
    await scene.ask("owner", AccessGroupAdd("past", "left"))
    await scene.ask("owner", AccessGrant(named, verbs, group="past"))
    await scene.ask("owner", AccessGroupRemove("past", "left"))
    await scene.ask("owner", AccessGrant(named, verbs, agent="expired", ttl_s=0.000_001))


async def take_back(world: World, kind: ObjectKind) -> None:
    await world.scene.ask("owner", AccessRevoke(world.named(kind)))


def is_let_in(role: str, granted: tuple[Verb, ...], verb: Verb) -> bool:
    return role == "owner" or (role in HOLDERS and (verb in granted or "administer" in granted))


def is_served(role: str, granted: tuple[Verb, ...], verb: Verb) -> bool:
    """Whether a module serves; who writes sees what is there, so it has to be a reader, too."""
    served = is_let_in(role, granted, verb)
    if verb == "write" and role in HOLDERS:
        return served and is_let_in(role, granted, "read")
    return served


@pytest.mark.parametrize("kind", KINDS)
async def test_the_modules_let_in_only_who_was_let_in(world: World, kind: ObjectKind) -> None:
    for granted in GRANTED:
        await grant(world, kind, granted)
        for role in ROLES:
            for verb in VERBS:
                done = await world.succeeds(role, world.attempt(kind, verb))
                assert done == is_served(role, granted, verb), (role, granted, verb)
                if done and verb in CHANGING:
                    await take_back(world, kind)
                    await grant(world, kind, granted)
        await take_back(world, kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_the_module_says_of_an_access_is_so(world: World, kind: ObjectKind) -> None:
    for granted in GRANTED:
        await grant(world, kind, granted)
        for role in ROLES[:-1]:
            for verb in VERBS:
                verdict = await world.scene.ask(role, AccessCheck(world.named(kind), verb))
                assert verdict.allowed == is_let_in(role, granted, verb), (role, granted, verb)
        await take_back(world, kind)


class Session:
    """A raw session of the role, one transaction per statement, which is taken back."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url.replace("+psycopg", ""))

    def touches(self, agent: tuple[int, int], verb: Verb, statement: str) -> bool:
        """Whether an agent's statement finds or changes a row."""
        with self._connection.transaction(force_rollback=True), self._connection.cursor() as cursor:
            cursor.execute("SET LOCAL ROLE aios_agent")
            for name, value in zip(("agent_id", "tenant_id", "verb"), (*agent, verb), strict=True):
                cursor.execute("SELECT set_config(%s, %s, true)", (f"aios.{name}", str(value)))
            try:
                cursor.execute(statement.encode())
            except psycopg.errors.InsufficientPrivilege:
                return False
            return cursor.rowcount > 0

    def close(self) -> None:
        self._connection.close()


def statements(kind: ObjectKind, ids: dict[str, str]) -> Callable[[str, int], str]:
    """Return what a session tries for a verb; the number is who tries."""
    table = {"block": "note", "note": "note", "file": "file", "directory": "directory"}[kind]
    where = f"id = '{ids['note']}'" if table == "note" else f"id = {ids[kind]}"
    change = {"note": "category = 'x'", "file": "version = version", "directory": "path = path"}

    def of(verb: str, me: int) -> str:
        if verb in ("read", "search"):
            return f"SELECT * FROM {table} WHERE {where}"
        if verb == "write":
            return f"UPDATE {table} SET {change[table]} WHERE {where}"
        if verb == "share":
            return (
                "INSERT INTO access_grant (tenant_id, owner_id, object_kind, object_id, agent_id, "
                f"verbs, granted_by) VALUES ({ids['tenant']}, {ids['owner']}, '{kind}', "
                f"'{ids[kind]}', {ids['zed']}, ARRAY['share'], {me})"
            )
        return (
            f"DELETE FROM access_grant WHERE object_kind = '{kind}' AND "
            f"object_id = '{ids[kind]}' AND agent_id = {ids['zed']}"
        )

    return of


async def numbers(world: World) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """Return the numbers of the objects, and of the agents with their tenants."""
    rows = await world.scene.rows(
        "SELECT a.id, a.name, a.tenant_id, t.name AS tenant FROM agent a "
        "JOIN tenant t ON t.id = a.tenant_id"
    )
    agents = {
        row.name: (row.id, row.tenant_id)
        for row in rows
        if (row.tenant == "elsewhere") == (row.name == "foreigner")
    }
    [file] = await world.scene.rows("SELECT id FROM file WHERE path = '/plain.txt'")
    [directory] = await world.scene.rows("SELECT id FROM directory WHERE path = '/d'")
    owner, tenant = agents["owner"]
    return {
        "note": world.note,
        "block": str(owner),
        "file": str(file.id),
        "directory": str(directory.id),
        "tenant": str(tenant),
        "owner": str(owner),
        "zed": str(agents["zed"][0]),
    }, agents


@pytest.mark.parametrize("kind", KINDS)
async def test_sql_alone_lets_in_only_who_was_let_in(
    world: World, database_url: str, kind: ObjectKind
) -> None:
    session = Session(database_url)
    try:
        for granted in GRANTED:
            await grant(world, kind, granted)
            await world.scene.ask("owner", AccessGrant(world.named(kind), ("read",), agent="zed"))
            ids, agents = await numbers(world)
            statement = statements(kind, ids)
            for role in ROLES:
                for verb in VERBS:
                    done = session.touches(agents[role], verb, statement(verb, agents[role][0]))
                    assert done == is_let_in(role, granted, verb), (role, granted, verb)
            await take_back(world, kind)
    finally:
        session.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_sql_alone_passes_on_only_what_one_has(
    world: World, database_url: str, kind: ObjectKind
) -> None:
    session = Session(database_url)
    try:
        await grant(world, kind, ("read", "share"))
        ids, agents = await numbers(world)
        agent = agents["agent"]
        for verb in VERBS:
            passes_on = statements(kind, ids)("share", agent[0]).replace("['share']", f"['{verb}']")
            assert session.touches(agent, "share", passes_on) == (verb in ("read", "share")), verb
    finally:
        session.close()


async def test_a_session_that_names_nobody_sees_nothing(world: World, database_url: str) -> None:
    session = Session(database_url)
    try:
        for table in (
            "note",
            "file",
            "directory",
            "agent",
            "access_grant",
            "blob",
            "file_version",
            "note_version",
            "approval",
            "audit",
            "effect",
            "mount",
            "share_link",
            "membership",
            "privilege_group",
            "agent_token",
            "memory_block",
            "tenant",
            "file_chunk",
            "approval_rule",
            "mount_file",
            "mount_chunk",
        ):
            assert not session.touches((0, 0), "read", f"SELECT * FROM {table}")
    finally:
        session.close()
