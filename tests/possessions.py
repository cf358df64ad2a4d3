"""What agents have: a world with one of each kind of object, all that is in it, and what is gone.

Each world is a tenant of its own. What it holds is read from the tables, past all modules.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from aios_broker.access.requests import DEFAULT_RULES, set_rule
from aios_broker.contract.access import (
    AccessGrant,
    AccessGroupAdd,
    AccessGroupCreate,
    AccessSetRule,
    BoundObject,
    ObjectRef,
)
from aios_broker.contract.memory import MemoryAdd, MemoryShare
from aios_broker.contract.storage import (
    StorageAppend,
    StorageMount,
    StorageShare,
    StorageWrite,
)
from aios_broker.contract.syscall import new_id
from aios_workers.modules.memory.note import KEPT_VERSIONS
from tests.state_scene import StateScene

SCRATCH = "/scratch"
KEEP = 3  # versions of a file
EVOLVES = {
    "analyse": "{}",
    "relate": json.dumps({"links": [0, 1, 2, 3, 4], "update": []}),
}
_NOTES = """
    SELECT n.id, extract(epoch FROM n.expires_at)::float8 AS until, v.body::text AS body
      FROM note n JOIN note_version v ON v.note_id = n.id JOIN tenant t ON t.id = n.tenant_id
     WHERE t.name = %s AND (n.expires_at IS NULL OR n.expires_at > now())
"""
_FILES = """
    SELECT f.id, f.path, f.version = v.version AS is_newest, b.bytes, d.ancestors
      FROM file f JOIN file_version v ON v.file_id = f.id JOIN tenant t ON t.id = f.tenant_id
      JOIN blob b ON b.owner_id = v.owner_id AND b.sha256 = v.sha256
      JOIN directory d ON d.id = f.directory_id WHERE t.name = %s
"""
_GRANTS = """
    SELECT object_kind || ' ' || object_id AS object, coalesce('a' || agent_id, 'g' || group_id) AS
           whom, unnest(CASE WHEN 'administer' = ANY (verbs)
                        THEN ARRAY['read', 'write', 'search', 'share', 'administer']
                        ELSE verbs END) AS verb,
           extract(epoch FROM expires_at)::float8 AS until
      FROM access_grant g JOIN tenant t ON t.id = g.tenant_id
     WHERE t.name = %s AND (expires_at IS NULL OR expires_at > now())
"""
_LINKS = """
    SELECT digest, file_id FROM share_link l JOIN agent a ON a.id = l.owner_id
      JOIN tenant t ON t.id = a.tenant_id WHERE t.name = %s AND expires_at > now()
"""
_RIGHTS = """
    SELECT 'member' AS kind, 'group ' || m.group_id || ' agent ' || m.agent_id AS id, m.role AS said
      FROM membership m JOIN privilege_group p ON p.id = m.group_id
      JOIN tenant t ON t.id = p.tenant_id WHERE t.name = %(tenant)s
    UNION ALL SELECT 'tokens', a.id::text, k.digest FROM agent_token k
      JOIN agent a ON a.id = k.agent_id JOIN tenant t ON t.id = a.tenant_id
     WHERE t.name = %(tenant)s AND k.revoked_at IS NULL
    UNION ALL SELECT 'rule', r.operation || ' of ' || coalesce(a.name, 'all agents'), r.rule
      FROM approval_rule r LEFT JOIN agent a ON a.id = r.agent_id
      JOIN tenant t ON t.id = r.tenant_id WHERE t.name = %(tenant)s
    UNION ALL SELECT 'administrator', a.id || ' ' || a.name, a.administrator::text FROM agent a
      JOIN tenant t ON t.id = a.tenant_id WHERE t.name = %(tenant)s AND a.administrator
    UNION ALL SELECT 'agent', a.id::text, a.name FROM agent a
      JOIN tenant t ON t.id = a.tenant_id WHERE t.name = %(tenant)s
"""
_MANY_VERSIONS = """
    WITH more AS (
        INSERT INTO note_version (note_id, version, owner_id, by_agent_id, operation, syscall_id,
                                  body)
        SELECT v.note_id, each, v.owner_id, v.by_agent_id, 'update', v.syscall_id,
               jsonb_set(v.body, '{content}', to_jsonb(v.body ->> 'content' || each))
          FROM note_version v, generate_series(2, %(last)s) each WHERE v.note_id = %(note)s)
    UPDATE note SET version = %(last)s, content = content || %(last)s
     WHERE id = %(note)s RETURNING 1
"""
_TOKEN = """
    INSERT INTO agent_token (digest, agent_id)
    SELECT %s, a.id FROM agent a JOIN tenant t ON t.id = a.tenant_id
     WHERE t.name = %s AND a.name = %s RETURNING 1
"""
_ADMINISTRATOR = """
    UPDATE agent SET administrator = true
     WHERE name = 'boss' AND tenant_id = (SELECT id FROM tenant WHERE name = %s) RETURNING 1
"""
_AUDITED = "SELECT outcome, detail FROM audit WHERE syscall_id = %s AND action <> 'approval.asked'"


@dataclass
class Possessions:
    """All that the agents of a tenant have, at one moment."""

    bodies: dict[str, set[str]] = field(default_factory=dict)  # of each note's versions
    until: dict[str, float] = field(default_factory=dict)  # of each note
    contents: dict[int, set[bytes]] = field(default_factory=dict)  # of each file's versions
    newest: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    above: dict[int, frozenset[int]] = field(default_factory=dict)  # each file's directories
    grants: dict[tuple[str, str, str], float] = field(default_factory=dict)
    links: dict[str, int] = field(default_factory=dict)
    rights: set[tuple[str, str, str]] = field(default_factory=set)
    host: dict[str, bytes] = field(default_factory=dict)

    def reached_by(self, file: int) -> set[tuple[str, str]]:
        """Return who may do what with a file, by the directories that it is in."""
        above = {f"directory {each}" for each in self.above.get(file, ())}
        return {(whom, verb) for name, whom, verb in self.grants if name in above}


@dataclass(frozen=True)
class Gone:
    """One thing that somebody had and has no more; `within`: directories that it was in."""

    kind: str
    id: str
    within: frozenset[int] = frozenset()
    scratch: bool = False


async def possessions(scene: StateScene, host: Path) -> Possessions:
    """Return what the agents of the scene's tenant have now."""
    has = Possessions()
    async with scene.store.as_steward() as cursor:
        await cursor.execute(_NOTES, (scene.tenant,))
        for row in await cursor.fetchall():
            has.bodies.setdefault(row.id, set()).add(row.body)
            has.until[row.id] = math.inf if row.until is None else row.until
        await cursor.execute(_FILES, (scene.tenant,))
        for row in await cursor.fetchall():
            content = bytes(row.bytes)
            has.contents.setdefault(row.id, set()).add(content)
            has.above[row.id] = frozenset(row.ancestors)
            if row.is_newest:
                has.newest[row.id] = (row.path, content)
        await cursor.execute(_GRANTS, (scene.tenant,))
        for row in await cursor.fetchall():
            key = (row.object, row.whom, row.verb)
            until = math.inf if row.until is None else row.until
            has.grants[key] = max(until, has.grants.get(key, 0.0))
        await cursor.execute(_LINKS, (scene.tenant,))
        has.links = {row.digest: row.file_id for row in await cursor.fetchall()}
        await cursor.execute(_RIGHTS, {"tenant": scene.tenant})
        has.rights = {tuple(row) for row in await cursor.fetchall()}
    has.host = files_in(host)
    return has


def files_in(host: Path) -> dict[str, bytes]:
    """Return what the mounted directory holds."""
    files = (path for path in host.rglob("*") if path.is_file())
    return {str(path.relative_to(host)): path.read_bytes() for path in files}


def gone(before: Possessions, after: Possessions) -> set[Gone]:
    """Return what was there before, and is not any more, in any form."""
    found = {Gone("note", note) for note in before.bodies if _note_lost(before, after, note)}
    for file, contents in before.contents.items():
        path, now = before.newest[file]
        scratch = _in_scratch(path)
        kept = after.contents.get(file, set())
        lost = any(not any(one.startswith(each) for one in kept) for each in contents if each)
        if lost or file not in after.newest:
            found.add(Gone("file", str(file), before.above[file], scratch))
        elif not scratch:
            path_after, now_after = after.newest[file]
            if _in_scratch(path_after) or not now_after.startswith(now):
                found.add(Gone("file", str(file), before.above[file]))
        if file in after.newest and before.reached_by(file) - after.reached_by(file):
            found.add(Gone("reach", str(file), before.above[file], scratch))
    for (name, whom, verb), until in before.grants.items():
        if after.grants.get((name, whom, verb), 0.0) < until - 0.5:
            found.add(Gone("grants", name))
    lost_links = before.links.keys() - after.links.keys()
    found |= {Gone("links", str(before.links[link])) for link in lost_links}
    found |= {Gone(kind, name) for kind, name, _ in _changed_rights(before, after)}
    for path, content in before.host.items():
        if not after.host.get(path, b"").startswith(content) or path not in after.host:
            found.add(Gone("mounted", f"/host/{path}"))
    return found


def _in_scratch(path: str) -> bool:
    return path.startswith(f"{SCRATCH}/")


def _note_lost(before: Possessions, after: Possessions, note: str) -> bool:
    if note not in after.bodies:
        return True
    return bool(before.bodies[note] - after.bodies[note]) or (
        after.until[note] < before.until[note] - 0.001
    )


def _changed_rights(before: Possessions, after: Possessions) -> set[tuple[str, str, str]]:
    """Return rights that were lost, and those that were won over what was there before."""
    groups = {name.split()[1] for kind, name, _ in before.rights if kind == "member"}
    agents = {name for kind, name, _ in before.rights if kind == "agent"}
    won = after.rights - before.rights
    return (before.rights - after.rights) | {
        (kind, name, said)
        for kind, name, said in won
        if kind in ("rule", "administrator")
        or (kind == "member" and name.split()[1] in groups)
        or (kind == "tokens" and name in agents)  # whoever has one speaks as that agent
    }


def is_named(thing: Gone, objects: list[BoundObject]) -> bool:
    """Whether what is gone is among the objects that were asked about, or written down."""
    for one in objects:
        held = {
            "note": thing.kind == "note" and one.id == thing.id,
            "version": thing.kind in ("note", "file") and one.id == thing.id,
            "notes": thing.kind == "note",
            "file": thing.kind in ("file", "links") and one.id == thing.id,
            "tree": thing.kind == "file" and one.id in {str(each) for each in thing.within},
            "grants": (thing.kind == "grants" and one.id == thing.id)
            or (thing.kind == "reach" and _is_above(thing, one.id)),
            "links": thing.kind == "links" and one.id == thing.id,
            "member": thing.kind == "member" and one.id.startswith(f"{thing.id} "),
            "group": thing.kind in ("grants", "reach")
            or (thing.kind == "member" and thing.id.startswith(f"group {one.id} ")),
            "tokens": thing.kind == "tokens" and one.id == thing.id,
            "rule": thing.kind == "rule" and one.id.startswith(f"{thing.id}:"),
            "identity": thing.kind in ("tokens", "administrator")
            and one.id.removeprefix("agent ") in thing.id.split(),
            "mounted": thing.kind == "mounted" and one.id == thing.id,
        }
        if held.get(one.kind, False) or _went_with(thing, one):
            return True
    return False


def _is_above(thing: Gone, named: str) -> bool:
    """Whether directories are named of which one held the thing."""
    kind, *numbers = named.split()
    return kind == "directory" and any(str(each) in numbers for each in thing.within)


def _went_with(thing: Gone, one: BoundObject) -> bool:
    """Whether a grant or a link went because what it was on was deleted."""
    if thing.kind == "grants":
        kind, _, name = thing.id.partition(" ")
        return one.kind in ("tree", "notes") or (one.kind, one.id) == (kind, name)
    return thing.kind == "links" and one.kind == "tree"


async def audited(scene: StateScene, syscall_id: str) -> dict[str, list[BoundObject]]:
    """Return what the audit log says that a syscall took away, by how it was let through."""
    found: dict[str, list[BoundObject]] = {}
    for row in await scene.rows(_AUDITED, syscall_id):
        objects = msgspec.convert(row.detail.get("objects", []), list[BoundObject])
        found.setdefault(row.outcome, []).extend(objects)
    return found


@dataclass
class World:
    """A tenant in which ann has one of each kind of object; bob reaches them, boss administers."""

    scene: StateScene
    host: Path
    notes: dict[str, str] = field(default_factory=dict)
    evolved: str = ""  # the id of the syscall that linked notes
    link: str = ""

    async def has(self) -> Possessions:
        return await possessions(self.scene, self.host)


async def rules_for_all(scene: StateScene, rule: str | None) -> None:
    """Set the rule of all classes for the whole tenant; None: the defaults."""
    chosen: Any = rule
    async with scene.store.as_steward() as cursor:
        for operation in DEFAULT_RULES:
            await set_rule(cursor, scene.tenant, None, operation, chosen)


def fill(host: Path) -> None:
    """Put one file into the directory that is mounted, and nothing else."""
    shutil.rmtree(host, ignore_errors=True)
    host.mkdir()
    (host / "h.txt").write_text("of the host")


async def new_world(scene: StateScene, host: Path, number: int) -> World:
    """Make a world under a tenant of its own."""
    scene.tenant = f"world-{number}"
    scene.answers.texts = dict(EVOLVES)
    fill(host)
    await scene.known("ann", "bob", "carl", "boss")
    await scene.rows(_ADMINISTRATOR, scene.tenant)
    await rules_for_all(scene, "never")
    world = World(scene, host)
    await _fill_memory(world)
    await _fill_storage(world)
    await scene.ask("ann", AccessGroupCreate("team"))
    await scene.ask("ann", AccessGroupAdd("team", "bob"))
    for kind, name in (("directory", "/d"), ("block", "")):
        named = ObjectRef(kind, name)  # type: ignore[arg-type]
        await scene.ask("ann", AccessGrant(named, ("read", "search"), group="team", ttl_s=3_600.0))
        await scene.ask("ann", AccessGrant(named, ("administer",), agent="bob"))
    await scene.ask("boss", AccessSetRule("overwrite", "ask-when-lossy", agent="carl"))
    for agent in ("bob", "ann"):
        await scene.rows(_TOKEN, new_id(), scene.tenant, agent)
    await rules_for_all(scene, None)
    return world


async def _fill_memory(world: World) -> None:
    scene = world.scene
    for name in ("plain", "shared", "full", "short"):
        ttl_s = 3_600.0 if name == "short" else None
        note = await scene.ask("ann", MemoryAdd(f"the {name} note on tea", ttl_s=ttl_s))
        world.notes[name] = note.id
    full = {"note": world.notes["full"], "last": KEPT_VERSIONS - 1}
    async with scene.store.as_steward() as cursor:
        await cursor.execute(_MANY_VERSIONS, full)
    await scene.services.blocks.of(await scene.store.vouched("ann", scene.tenant)).drop()
    await scene.embedded()
    world.evolved = new_id()
    await scene.ask("ann", MemoryAdd("a note on tea", evolve=True), id=world.evolved)
    await scene.ask(
        "ann", MemoryShare(world.notes["shared"], agent="bob", verbs=("read", "write", "share"))
    )


async def _fill_storage(world: World) -> None:
    scene = world.scene
    for path, contents in (
        ("/plain.txt", ("one", "two")),
        ("/full.txt", ("first", "second", "third")),
        ("/now-empty.txt", ("it was full", "")),
        ("/linked.txt", ("linked",)),
        ("/d/a.txt", ("in a directory",)),
        ("/d/e/b.txt", ("deeper", "other")),
        ("/scratch/s.txt", ("s1", "s2", "s3")),
    ):
        for content in contents:
            await scene.ask("ann", StorageWrite(path, content))
    for part in ("a", "b", "c", "d"):
        await scene.ask("ann", StorageAppend("/log.txt", part))
    world.link = (await scene.ask("ann", StorageShare("/linked.txt", link=True))).link
    for path in ("/linked.txt", "/plain.txt", "/full.txt", "/scratch"):
        await scene.ask("ann", StorageShare(path, agent="bob", verbs=("administer",)))
    await scene.ask("ann", StorageMount("/host", str(world.host), writable=True))
