"""Grants: grant, revoke, list, and tell what they allow."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from aios_broker.contract.access import (
    AccessCheck,
    AccessGrant,
    AccessGrants,
    AccessRevoke,
    Acknowledged,
    Grants,
    ObjectRef,
    Verdict,
)
from aios_broker.contract.errors import AccessDenied, InvalidSyscall, NotFound
from aios_broker.postgres.session import AgentRow
from aios_workers.approvals.gate import Irreversible
from aios_workers.modules.access.grant_rows import (
    ALL_VERBS,
    Grantee,
    drop_grants,
    group_number,
    list_grants,
    put_grant,
    verbs_on,
)
from aios_workers.modules.access.objects import Target, find_target, no_object
from aios_workers.modules.operation import Work


def shown(named: ObjectRef, owner: AgentRow) -> str:
    """Return an object as people read it."""
    return f"{named.kind} {owner.name}:{named.name}" if named.name else f"{named.kind} {owner.name}"


async def grants(work: Work[AccessGrants]) -> Grants:
    """List grants."""
    return Grants(await list_grants(work.cursor, work.agent, held=work.body.held))


async def grant(work: Work[AccessGrant]) -> Acknowledged:
    """Let an agent or a group do something with an object."""
    body = work.body
    if (body.agent is None) == (body.group is None):
        raise InvalidSyscall(
            "exactly one of agent and group is given",
            field="agent",
            remedy="grant to one at a time",
        )
    expires_at = None if body.ttl_s is None else datetime.now(UTC) + timedelta(seconds=body.ttl_s)
    owner = await work.agent_named(body.object.owner)
    target, verbs = await _target(work, owner)
    _require(verbs, "share", tuple(body.verbs), owner)
    to = await _grantee(work)
    await put_grant(
        work.cursor,
        work.agent,
        target.kind,
        target.id,
        to,
        verbs=body.verbs,
        expires_at=expires_at,
        owner=owner,
    )
    await work.enter(
        shown(body.object, owner),
        {"verbs": list(body.verbs), "agent": body.agent, "group": body.group},
    )
    return Acknowledged()


async def revoke(work: Work[AccessRevoke]) -> Acknowledged:
    """Take grants on an object back."""
    body = work.body
    if body.agent is not None and body.group is not None:
        raise InvalidSyscall(
            "at most one of agent and group is given", field="agent", remedy="revoke one at a time"
        )
    owner = await work.agent_named(body.object.owner)
    target, verbs = await _target(work, owner)
    _require(verbs, "administer", (), owner)
    to = await _grantee(work)
    whom = body.agent or body.group or "everybody"
    what = f"take back what {whom} may do with {shown(body.object, owner)}"
    await work.confirm(Irreversible("unshare", what))
    count = await drop_grants(work.cursor, owner, target.kind, target.id, to)
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


async def _grantee(work: Work[AccessGrant] | Work[AccessRevoke]) -> Grantee:
    body = work.body
    if body.group is not None:
        return Grantee(group_id=await group_number(work.cursor, work.agent.tenant_id, body.group))
    return Grantee() if body.agent is None else Grantee((await work.agent_named(body.agent)).id)


async def _target(
    work: Work[AccessGrant] | Work[AccessRevoke] | Work[AccessCheck], owner: AgentRow
) -> tuple[Target, frozenset[str]]:
    """Return the object that is named and what the agent may do with it.

    Raises:
        NotFound: There is none, or the agent may do nothing with it.
    """
    cursor, named = work.cursor, work.body.object
    if owner.id == work.agent.id:
        return await find_target(cursor, owner, named), ALL_VERBS
    await cursor.execute("SET LOCAL ROLE aios_steward")  # only to find it: the grants decide
    target = await find_target(cursor, owner, named)
    await cursor.execute("SET LOCAL ROLE aios_agent")
    verbs = await verbs_on(cursor, work.agent, [(target.kind, target.id), *target.wider])
    if not verbs:
        raise no_object(owner, named)
    return target, verbs


def _require(verbs: frozenset[str], verb: str, given: tuple[str, ...], owner: AgentRow) -> None:
    lacking = sorted({verb, *given} - verbs)
    if lacking:
        raise AccessDenied(
            f"no grant of agent {owner.name!r} allows {', '.join(lacking)} on it",
            field="object",
            remedy=f"ask {owner.name!r} for it",
        )
