"""Bodies of every kind, on every kind of object of a world, as one agent would ask."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, cast, get_args

from aios_broker.contract import access, memory, storage
from aios_broker.contract.access import AccessBody, ObjectKind, ObjectRef, OperationClass
from aios_broker.contract.memory import MemoryBody
from aios_broker.contract.storage import StorageBody
from aios_broker.contract.syscall import Body, new_id
from aios_broker.contract.tokens import digest, new_token
from tests.possessions import World

FILES = (
    "/plain.txt",
    "/full.txt",
    "/now-empty.txt",
    "/linked.txt",
    "/log.txt",
    "/d/a.txt",
    "/scratch/s.txt",
    "/host/h.txt",
)
DIRECTORIES = ("/d", "/d/e", "/scratch", "/host")
TARGETS = ("/new/x", "/plain.txt", "/scratch/x", "/scratch/s.txt", "/d/a.txt", "/host/x")
CLASSES: tuple[OperationClass, ...] = get_args(OperationClass)
PLANS: tuple[tuple[dict[str, Any], ...], ...] = (
    ({"do": "delete", "path": "/plain.txt"}, {"do": "write", "path": "/full.txt", "content": "x"}),
    ({"do": "write", "path": "/plain.txt", "content": "x"}, {"do": "delete", "path": "/log.txt"}),
    (
        {"do": "move", "path": "/d", "to": "/scratch/d"},
        {"do": "delete", "path": "/scratch/d/a.txt"},
    ),
    ({"do": "append", "path": "/full.txt", "content": "x"}, {"do": "mkdir", "path": "/made"}),
    ({"do": "create", "path": "/made.txt", "content": "x"}, {"do": "delete", "path": "/made.txt"}),
    # What a plan makes has another number each time that it runs: it is asked for once.
    ({"do": "mkdir", "path": "/made"}, {"do": "delete", "path": "/made"}),
    ({"do": "mkdir", "path": "/made"}, {"do": "move", "path": "/made", "to": "/scratch/made"}),
    (
        {"do": "create", "path": "/d/made.txt", "content": "x"},
        {"do": "mkdir", "path": "/d/made"},
        {"do": "move", "path": "/d", "to": "/scratch/d"},
    ),
    (
        {"do": "mkdir", "path": "/d/made"},
        {"do": "move", "path": "/d/a.txt", "to": "/d/made/a.txt"},
        {"do": "move", "path": "/d/made/a.txt", "to": "/a.txt"},
    ),
    (
        {"do": "create", "path": "/made.txt", "content": "x"},
        {"do": "move", "path": "/made.txt", "to": "/plain.txt", "overwrite": True},
    ),
)


def plan_texts() -> Iterator[dict[str, str]]:
    """Yield what a model answers to be told each plan."""
    for steps in PLANS:
        yield {"plan": json.dumps({"steps": steps})}


def bodies_of(world: World, agent: str) -> Iterator[Body]:
    """Yield what an agent may ask about ann's things, of every kind that there is."""
    owner = None if agent == "ann" else "ann"
    yield from _storage(world, owner)
    yield from _memory(world, owner)
    yield from _access(world, "ann")


def every_kind() -> set[type]:
    """Return the types of all bodies of the modules that share the database."""
    return set(itertools.chain(get_args(MemoryBody), get_args(StorageBody), get_args(AccessBody)))


def _storage(world: World, owner: str | None) -> Iterator[Body]:
    of: Any = {"owner": owner}
    for path in (*FILES, "/new.txt"):
        yield storage.StorageCreate(path, "x", **of)
        yield storage.StorageRead(path, **of)
        yield storage.StorageStat(path, **of)
        yield storage.StorageVersions(path, **of)
        for content in ("", "other", "two", "third"):
            yield storage.StorageWrite(path, content, **of)
        yield storage.StorageAppend(path, "more", **of)
        for now in (None, "two", "other"):
            changes = (storage.FileChange("/made.txt", "x"), storage.FileChange(path, now))
            yield storage.StorageApply(changes, **of)
        yield storage.StorageLock(path, ttl_s=0.001, **of)
        yield storage.StorageUnlock(path, **of)
        yield storage.StorageRollback(path, version=1, **of)
        yield storage.StorageRollback(path, version=2, **of)
        yield storage.StorageDiff(path, 1, **of)
    for path in (*FILES, *DIRECTORIES):
        yield storage.StorageDelete(path, recursive=True, **of)
        yield storage.StorageList(path, **of)
        yield storage.StorageMkdir(f"{path}/made", **of)
        yield from _sharing(path)
        for to in TARGETS:
            yield storage.StorageMove(path, to, overwrite=True, **of)
            yield storage.StorageCopy(path, to, overwrite=True, **of)
    yield storage.StorageSearch("linked", mode="keyword", **of)
    yield storage.StorageOpen(world.link)
    yield storage.StorageMount("/second", str(world.host), writable=True)
    yield storage.StorageUnmount("/host")
    yield from (storage.StorageOperate(f"plan {number}") for number in range(len(PLANS)))


def _sharing(path: str) -> Iterator[Body]:
    yield storage.StorageUnshare(path)
    yield storage.StorageUnshare(path, agent="bob")
    yield storage.StorageShare(path, agent="bob", verbs=("read",))
    yield storage.StorageShare(path, group="team", verbs=("read", "search"), ttl_s=600.0)
    yield storage.StorageShare(path, agent="carl", verbs=("read",))
    yield storage.StorageShare(path, link=True)


def _memory(world: World, owner: str | None) -> Iterator[Body]:
    of: Any = {"owner": owner}
    for note in world.notes.values():
        yield memory.MemoryGet(note, **of)
        yield memory.MemoryHistory(note, **of)
        yield memory.MemoryUpdate(note, content="other", **of)
        yield memory.MemoryUpdate(note, tags=("t",), **of)
        yield memory.MemoryRemove(note, **of)
        yield memory.MemoryRollback(note, 1, **of)
        for ttl_s in (0.001, 1e6, None):
            yield memory.MemoryTtl(note, ttl_s)
        yield memory.MemoryShare(note, agent="bob", verbs=("read",))
        yield memory.MemoryUnshare(note)
    yield memory.MemoryShare(group="team", verbs=("read",), ttl_s=600.0)
    yield memory.MemoryShare(agent="bob", verbs=("read",))
    yield memory.MemoryUnshare()
    yield memory.MemoryUnshare(group="team")
    yield memory.MemoryAlloc(memory.MIN_BLOCK_BYTES)
    yield memory.MemoryAdd("a note on tea", ttl_s=1_000.0)
    yield memory.MemoryAdd("one more note on tea", evolve=True)
    yield memory.MemoryUndo(world.evolved)
    yield memory.MemoryLog("user", "a turn")
    yield memory.MemoryDump(**of)
    yield memory.MemoryRestore((memory.NoteRecord("a note from a file", "its-id"),))
    yield memory.MemoryList(**of)
    yield memory.MemorySearch("tea", **of)
    yield memory.MemoryContext("tea")
    yield memory.MemoryClear()
    yield memory.MemoryStat()


def _access(world: World, owner: str) -> Iterator[Body]:
    named: tuple[tuple[ObjectKind, str], ...] = (
        ("block", ""),
        ("note", world.notes["shared"]),
        ("file", "/plain.txt"),
        ("directory", "/d"),
        ("directory", "/scratch"),
    )
    for kind, name in named:
        thing = ObjectRef(kind, name, owner)
        yield access.AccessCheck(thing, "read")
        yield access.AccessGrant(thing, ("read",), agent="bob")
        yield access.AccessGrant(thing, ("administer",), agent="bob", ttl_s=600.0)
        yield access.AccessGrant(thing, ("read", "search"), group="team")
        yield access.AccessGrant(thing, ("read",), agent="carl")
        yield access.AccessRevoke(thing)
        yield access.AccessRevoke(thing, agent="bob")
        yield access.AccessRevoke(thing, group="team")
    yield access.AccessGroupAdd("team", "carl")
    yield access.AccessGroupAdd("team", "bob", "admin")
    yield access.AccessGroupRemove("team", "bob")
    yield access.AccessGroupDelete("team")
    yield access.AccessGroupCreate(f"g{new_id()[:8]}")
    for name in ("dan", "carl", "bob", "boss"):
        for administrator in (False, True):
            token = digest(new_token())
            yield access.AccessRegister(name, token_digest=token, administrator=administrator)
    yield access.AccessRegister("dan", token_digest=digest(new_token()), ttl_s=600.0)
    yield access.AccessRevokeToken("bob")
    yield access.AccessApprove(new_id())
    yield access.AccessDeny(new_id())
    for operation in CLASSES:
        yield access.AccessSetRule(operation, "never")
        yield access.AccessSetRule(operation, "never", agent="carl")
        yield access.AccessSetRule(operation, None, agent="carl")
    plain = (
        access.AccessWhoami(),
        access.AccessGroups(),
        access.AccessGrants(),
        access.AccessApprovals(),
        access.AccessRules(),
        access.AccessAudit(),
    )
    yield from cast("tuple[Body, ...]", plain)
