"""Grants on objects: who may do what with what is another's.

A grant on a directory reaches all that is below it, one on a block all notes of it; `administer`
includes the other verbs. One that has expired is none.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aios_broker.access.grants import ObjectId, object_names
from aios_broker.contract.access import (
    AccessCheck,
    AccessGrant,
    AccessGrants,
    AccessRevoke,
    Acknowledged,
    Grant,
    Grants,
    ObjectRef,
    Verdict,
)
from aios_broker.contract.errors import AccessDenied, InvalidSyscall, NotFound, UnknownAgent
from aios_broker.contract.memory import MemoryShare, MemoryUnshare
from aios_broker.contract.names import Verb
from aios_broker.contract.paths import normal_path
from aios_broker.contract.storage import StorageShare, StorageUnshare
from aios_broker.contract.syscall import Body
from aios_broker.postgres.store import AgentRow
from aios_workers.approvals.irreversible import Irreversible, Seen, digest_of_parts
from aios_workers.modules.access.passed_on import ALL_VERBS, end_unfounded
from aios_workers.modules.operation import Work

Sharing = Work[AccessGrant | MemoryShare | StorageShare]
Naming = Work[AccessGrant | AccessRevoke | AccessCheck]
Unsharing = Work[AccessRevoke | MemoryUnshare | StorageUnshare]

# Of grants `g` that hold now for an agent, itself or by a group.
_HOLDS = """
    g.tenant_id = %(tenant)s AND (g.expires_at IS NULL OR g.expires_at > now())
    AND (g.agent_id = %(agent)s OR g.group_id IN
         (SELECT group_id FROM membership WHERE agent_id = %(agent)s))
"""
_VERBS = f"""
    SELECT verb, max(coalesce(extract(epoch FROM g.expires_at), 'infinity'))::float8 AS until
      FROM access_grant g, unnest(g.verbs) verb
     WHERE (g.object_kind, g.object_id) IN
           (SELECT * FROM unnest(%(kinds)s::text[], %(ids)s::text[])) AND {_HOLDS}
     GROUP BY verb
"""
_REACH = f"""
    SELECT g.owner_id, g.object_kind, g.object_id FROM access_grant g
     WHERE {_HOLDS} AND g.object_kind IN ('block', 'note')
       AND g.verbs && ARRAY[%(verb)s, 'administer']
"""
_PUT = """
    INSERT INTO access_grant (tenant_id, owner_id, object_kind, object_id, agent_id, group_id,
                              verbs, granted_by, expires_at)
    VALUES (%(tenant)s, %(owner)s, %(kind)s, %(id)s, %(agent)s, %(group)s, %(verbs)s, %(by)s,
            least(now() + %(ttl)s * interval '1 second', to_timestamp(%(until)s)))
    RETURNING id, verbs, extract(epoch FROM expires_at)::float8 AS expires_at
"""
_DROP = """
    DELETE FROM access_grant
     WHERE owner_id = %(owner)s AND object_kind = %(kind)s AND object_id = %(id)s
       AND (%(all)s OR agent_id = %(agent)s OR group_id = %(group)s) AND id <> %(but)s
    RETURNING id, verbs, extract(epoch FROM expires_at)::float8 AS expires_at, granted_by,
              expires_at IS NULL OR expires_at > now() AS holds
"""
_GIVEN_BY = "UPDATE access_grant SET granted_by = %s WHERE id = %s RETURNING id"
# Of directories: what they let others do with all that is below them.
_ON_DIRECTORIES = """
    SELECT id, verbs, extract(epoch FROM expires_at)::float8 AS expires_at FROM access_grant
     WHERE object_kind = 'directory' AND object_id = ANY(%s::text[])
       AND (expires_at IS NULL OR expires_at > now())
"""
_LIST = f"""
    SELECT g.object_kind, g.object_id, o.name AS owner, a.name AS to_agent, p.name AS to_group,
           g.verbs, b.name AS by_name, extract(epoch FROM g.expires_at)::float8 AS expires_at
      FROM access_grant g JOIN agent o ON o.id = g.owner_id JOIN agent b ON b.id = g.granted_by
      LEFT JOIN agent a ON a.id = g.agent_id LEFT JOIN privilege_group p ON p.id = g.group_id
     WHERE CASE WHEN %(held)s THEN {_HOLDS} ELSE g.owner_id = %(agent)s END
     ORDER BY g.id DESC
"""
_GROUP = "SELECT id FROM privilege_group WHERE tenant_id = %s AND name = %s"
_FIND = {
    "note": "SELECT id, '{}'::bigint[] AS ancestors FROM note WHERE owner_id = %s AND id = %s",
    "file": """
        SELECT f.id, d.ancestors FROM file f JOIN directory d ON d.id = f.directory_id
         WHERE f.owner_id = %s AND f.path = %s
    """,
    "directory": "SELECT id, ancestors FROM directory WHERE owner_id = %s AND path = %s",
}


@dataclass(frozen=True, slots=True)
class Reach:
    """What of others' memories an agent reaches with a verb: whole blocks, and single notes."""

    blocks: set[int] = field(default_factory=set)
    notes: dict[int, set[str]] = field(default_factory=dict)


async def verbs_on(work: Work[Body], objects: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Return what grants let the agent do with another's object, each verb until when (Unix time).

    `objects`: it and what it lies in, as kinds and ids.
    """
    kinds, ids = zip(*objects, strict=True) if objects else ((), ())
    rows = await work.rows(_VERBS, _asker(work) | {"kinds": list(kinds), "ids": list(ids)})
    until = {row.verb: row.until for row in rows}
    if "administer" in until:
        return {verb: max(until.get(verb, 0.0), until["administer"]) for verb in ALL_VERBS}
    return until


async def reach_of(work: Work[Body], verb: Verb) -> Reach:
    """Return what of their memories others granted the agent."""
    reach = Reach()
    for row in await work.rows(_REACH, _asker(work) | {"verb": verb}):
        if row.object_kind == "block":
            reach.blocks.add(row.owner_id)
        else:
            reach.notes.setdefault(row.owner_id, set()).add(row.object_id)
    return reach


def _asker(work: Work[Body]) -> dict[str, object]:
    return {"tenant": work.agent.tenant_id, "agent": work.agent.id}


async def grants(work: Work[AccessGrants]) -> Grants:
    """List the grants on one's objects, or those that one holds, newest first."""
    rows = await work.rows(_LIST, _asker(work) | {"held": work.body.held})
    objects = [(row.object_kind, row.object_id) for row in rows]
    names = await object_names(work.cursor, objects)
    return Grants(tuple(_as_grant(row, names) for row in rows))


def _as_grant(row: Any, names: Mapping[ObjectId, str]) -> Grant:  # noqa: ANN401  a row
    name = names.get((row.object_kind, row.object_id), "")
    to = f"agent:{row.to_agent}" if row.to_agent is not None else f"group:{row.to_group}"
    named = ObjectRef(row.object_kind, name, row.owner)
    return Grant(named, to, tuple(row.verbs), row.by_name, row.expires_at)


async def grant(work: Work[AccessGrant]) -> Acknowledged:
    """Let an agent or a group do something with an object."""
    body = work.body
    owner = await work.agent_named(body.object.owner)
    target, verbs = await _target(work, owner)
    needed: set[str] = {"share", *body.verbs}
    _require(verbs, needed, owner)
    until = min(verbs[verb] for verb in needed)  # nobody passes on more than it has
    await share_object(work, target, shown=_shown(body.object, owner), owner=owner, until=until)
    return Acknowledged()


async def revoke(work: Work[AccessRevoke]) -> Acknowledged:
    """Take grants on an object back."""
    named = work.body.object
    owner = await work.agent_named(named.owner)
    target, verbs = await _target(work, owner)
    _require(verbs, {"administer"}, owner)
    count = await unshare_object(work, target, _shown(named, owner), owner=owner)
    return Acknowledged(changed=count > 0)


async def check(work: Work[AccessCheck]) -> Verdict:
    """Tell whether an access would be let through, and why."""
    body = work.body
    owner = await work.agent_named(body.object.owner)
    try:
        _, verbs = await _target(work, owner)
    except NotFound:
        return Verdict(allowed=False, why="there is no such object, or no grant to read it")
    if owner.id == work.agent.id:
        return Verdict(allowed=True, why="it is its own")
    if body.verb in verbs:
        return Verdict(allowed=True, why=f"granted: {', '.join(sorted(verbs))}")
    return Verdict(allowed=False, why=f"granted are only {', '.join(sorted(verbs))}")


async def share_object(
    work: Sharing,
    target: ObjectId,
    *,
    shown: str = "",
    owner: AgentRow | None = None,
    until: float = math.inf,
    scratch: bool = False,
) -> None:
    """Grant what a body says on an object, in place of what was granted there to the same.

    `owner`: whose it is, if it is not the agent's own; row-level security asks whether it may.
    `until`: no longer than that (Unix time).
    What the new grant does not allow, or not for as long, is taken back.
    """
    body, agent = work.body, work.agent
    to_agent, to_group = await _grantee(work)
    whose = (owner or agent).id
    to = {"owner": whose, "kind": target[0], "id": target[1], "agent": to_agent, "group": to_group}
    put = {"tenant": agent.tenant_id, "by": agent.id, "ttl": body.ttl_s, "verbs": list(body.verbs)}
    put["until"] = None if until == math.inf else until
    [row] = await work.rows(_PUT, to | put)  # first: what it stands in for may be what allows it
    before = await work.rows(_DROP, to | {"all": False, "but": row.id})
    covering = [old for old in before if old.holds and _covers(old, row)]
    if covering:  # less of a grant stands on what that stood on
        old = min(covering, key=lambda each: (each.granted_by != whose, each.id))
        await work.kernel_rows(_GIVEN_BY, (old.granted_by, row.id))
    shown = shown or " ".join(target)
    if narrowed := [each for each in before if each.holds and not _covers(row, each)]:
        whom, verbs = body.agent or body.group, ", ".join(body.verbs)
        what = f"narrow the grant on {shown} that {whom} has to {verbs}"
        if body.ttl_s is not None:
            what += f", for {body.ttl_s:g} s"
        ended = await end_unfounded(work, whose)
        seen = (_seen_grants(target, narrowed + ended, shown),)
        what += _with_passed_on(ended)
        await work.take(Irreversible("unshare", what, seen, scratch=scratch))
    await work.enter(
        shown,
        {"verbs": list(body.verbs), "agent": body.agent, "group": body.group},
    )


async def unshare_object(
    work: Unsharing,
    target: ObjectId,
    shown: str,
    *,
    owner: AgentRow | None = None,
    scratch: bool = False,
) -> int:
    """Take back what was granted on an object; return how many grants it was."""
    body = work.body
    to_agent, to_group = await _grantee(work)
    to = {"kind": target[0], "id": target[1], "agent": to_agent, "group": to_group, "but": 0}
    everybody = to_agent is None and to_group is None
    whose = (owner or work.agent).id
    rows = await work.rows(_DROP, to | {"owner": whose, "all": everybody})
    if held := [row for row in rows if row.holds]:
        ended = await end_unfounded(work, whose)
        what = f"no longer share {shown} with {body.agent or body.group or 'everybody'}"
        what += _with_passed_on(ended)
        seen = (_seen_grants(target, held + ended, shown),)
        await work.take(Irreversible("unshare", what, seen, scratch=scratch))
    return len(rows)


async def seen_on_directories(work: Work[Body], directories: Sequence[int]) -> Seen | None:
    """Return the grants, of whoever, on these directories; None: there is none."""
    rows = await work.kernel_rows(_ON_DIRECTORIES, ([str(each) for each in directories],))
    target: ObjectId = ("directory", " ".join(map(str, directories)))
    return _seen_grants(target, rows, "directories above it") if rows else None


def _with_passed_on(ended: Sequence[object]) -> str:
    """Return what is said of grants that end with another one."""
    return f", nor as it was passed on ({len(ended)} grants)" if ended else ""


def _covers(new: Any, old: Any) -> bool:  # noqa: ANN401  rows
    """Whether a grant allows all that another does, for as long."""
    verbs = ALL_VERBS if "administer" in new.verbs else frozenset(new.verbs)
    lasts = new.expires_at is None or (old.expires_at or math.inf) <= new.expires_at
    return lasts and verbs >= frozenset(old.verbs)


def _seen_grants(target: ObjectId, rows: Sequence[Any], shown: str) -> Seen:
    parts = sorted((row.id, *sorted(row.verbs), row.expires_at or 0.0) for row in rows)
    digest = digest_of_parts(parts)
    called = f"grants on {shown}"
    return Seen("grants", " ".join(target), count=len(rows), digest=digest, name=called)


async def _grantee(work: Sharing | Unsharing) -> tuple[int | None, int | None]:
    """Return the number of the agent or of the group that is named; neither: everybody.

    Raises:
        InvalidSyscall: Both are named, or neither where one has to be.
        UnknownAgent: The tenant has none of that name.
    """
    body = work.body
    is_taken_back = isinstance(body, AccessRevoke | MemoryUnshare | StorageUnshare)
    if (body.agent is None) + (body.group is None) not in ((1, 2) if is_taken_back else (1,)):
        count = "at most" if is_taken_back else "exactly"
        raise InvalidSyscall(
            f"{count} one of agent and group is given",
            field="body.group",
            remedy="name one at a time",
        )
    if body.agent is not None:
        return (await work.agent_named(body.agent)).id, None
    if body.group is None:
        return None, None
    rows = await work.rows(_GROUP, (work.agent.tenant_id, body.group))
    if not rows:
        raise UnknownAgent(
            f"there is no privilege group {body.group!r}",
            field="group",
            remedy="correct the name, or make it (access.group_create)",
        )
    return None, int(rows[0].id)


async def _target(work: Naming, owner: AgentRow) -> tuple[ObjectId, dict[str, float]]:
    """Return the object that is named and what the agent may do with it, each verb until when.

    Raises:
        NotFound: There is none, or the agent may do nothing with it.
    """
    target, wider = await _find(work, owner)
    if owner.id == work.agent.id:
        return target, dict.fromkeys(ALL_VERBS, math.inf)
    verbs = await verbs_on(work, [target, *wider])
    if not verbs:
        raise _no_object(owner, work.body.object)
    return target, verbs


async def _find(work: Naming, owner: AgentRow) -> tuple[ObjectId, list[ObjectId]]:
    """Return the object that is named, and those whose grants reach it.

    Another's is looked for with the kernel's eyes: the grants decide then.

    Raises:
        NotFound: there is none.
        InvalidSyscall: a block has no name of its own.
        InvalidPath: the name cannot be a path.
    """
    named = work.body.object
    block: ObjectId = ("block", str(owner.id))
    if named.kind == "block":
        if named.name:
            raise InvalidSyscall(
                "a block has no name: it is all notes of its owner",
                field="object.name",
                remedy="leave it out, and name the owner",
            )
        return block, []
    is_note = named.kind == "note"
    name = named.name if is_note else normal_path(named.name, "object.name")
    look = work.rows if owner.id == work.agent.id else work.kernel_rows
    rows = await look(_FIND[named.kind], (owner.id, name))
    if not rows:
        raise _no_object(owner, named)
    [row] = rows
    above: list[ObjectId] = [("directory", str(each)) for each in row.ancestors]
    return (named.kind, str(row.id)), [block] if is_note else above


def _no_object(owner: AgentRow, named: ObjectRef) -> NotFound:
    """Return the error that says the same of what is not there and of what may not be known."""
    return NotFound(
        f"{owner.name} has no {named.kind} {named.name!r} that you may read",
        field="object",
        remedy="look at what there is: memory.list, storage.list",
    )


def _shown(named: ObjectRef, owner: AgentRow) -> str:
    """Return an object as people read it."""
    return f"{named.kind} {owner.name}:{named.name}" if named.name else f"{named.kind} {owner.name}"


def _require(verbs: Collection[str], needed: set[str], owner: AgentRow) -> None:
    lacking = sorted(needed.difference(verbs))
    if lacking:
        raise AccessDenied(
            f"no grant of agent {owner.name!r} allows {', '.join(lacking)} on it",
            field="object",
            remedy=f"ask {owner.name!r} for it",
        )
