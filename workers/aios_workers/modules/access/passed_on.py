"""Grants that were passed on: they end with the right that they came from.

Who may share what is another's passes on no more than it may do itself, and for no longer. So each
grant stands on others, and in the end on one that the owner gave; one that stands on nothing any
more, because a grant was taken back, narrowed, or its holder left the group, is taken back with it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aios_broker.contract.names import Verb
from aios_broker.contract.syscall import Body
from aios_workers.modules.operation import Work

ALL_VERBS: frozenset[Verb] = frozenset(("read", "write", "search", "share", "administer"))

_IS_ANY = """
    SELECT DISTINCT owner_id FROM access_grant
     WHERE granted_by <> owner_id AND (owner_id = %(owner)s OR granted_by = ANY(%(givers)s))
"""
_ALL = """
    SELECT g.id, g.verbs, g.agent_id, g.group_id, g.granted_by, g.owner_id,
           extract(epoch FROM g.expires_at)::float8 AS expires_at,
           g.object_kind || ' ' || g.object_id AS object,
           CASE g.object_kind
               WHEN 'note' THEN ARRAY['block ' || g.owner_id]
               WHEN 'file' THEN (SELECT array_agg('directory ' || a) FROM file f
                   JOIN directory d ON d.id = f.directory_id, unnest(d.ancestors) a
                  WHERE f.id::text = g.object_id)
               WHEN 'directory' THEN (SELECT array_agg('directory ' || a)
                   FROM directory d, unnest(d.ancestors) a WHERE d.id::text = g.object_id)
           END AS above
      FROM access_grant g
     WHERE g.owner_id = ANY(%(owners)s) AND (g.expires_at IS NULL OR g.expires_at > now())
"""
_MEMBERS = "SELECT group_id, agent_id FROM membership WHERE group_id = ANY(%s)"
_END = """
    DELETE FROM access_grant WHERE id = ANY(%s)
    RETURNING id, verbs, extract(epoch FROM expires_at)::float8 AS expires_at, true AS holds
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """One grant that holds now."""

    id: int
    owner: int
    by: int  # who gave it
    agents: frozenset[int]  # who has it: one, or the members of a group
    verbs: frozenset[str]
    reach: frozenset[str]  # the object that it is on, and those that reach that one
    on: str
    until: float  # Unix time, s; inf: for ever


def rights_of(agent: int, on: Collection[str], grants: Iterable[Standing]) -> dict[str, float]:
    """Return what grants let an agent do with an object, each verb until when.

    Args:
        agent: Its number.
        on: The object, and those that reach it.
        grants: Those that count.
    """
    until: dict[str, float] = {}
    for each in grants:
        if agent in each.agents and each.on in on:
            verbs = ALL_VERBS if "administer" in each.verbs else each.verbs
            for verb in verbs:
                until[verb] = max(until.get(verb, 0.0), each.until)
    return until


def unfounded(grants: Sequence[Standing]) -> list[Standing]:
    """Return the grants that stand on none of their owner's, in no order. Pure."""
    founded = [each for each in grants if each.by == each.owner]
    rest = [each for each in grants if each.by != each.owner]
    while rest:
        stands = [each for each in rest if _stands(each, founded)]
        if not stands:
            break
        founded += stands
        rest = [each for each in rest if each not in stands]
    return rest


def _stands(passed_on: Standing, founded: Sequence[Standing]) -> bool:
    same = (each for each in founded if each.owner == passed_on.owner)
    rights = rights_of(passed_on.by, passed_on.reach, same)
    return all(rights.get(verb, 0.0) >= passed_on.until for verb in {"share", *passed_on.verbs})


async def end_unfounded(
    work: Work[Body], owner: int | None = None, givers: Sequence[int] = ()
) -> list[Any]:
    """Take back what stands on nothing any more; return its rows.

    Args:
        work: Its transaction has changed grants or members.
        owner: Whose objects' grants have changed.
        givers: Agents that may have passed on what they no longer may.
    """
    values = {"owner": owner, "givers": list(givers)}
    owners = [row.owner_id for row in await work.kernel_rows(_IS_ANY, values)]
    if not owners:
        return []
    rows = await work.kernel_rows(_ALL, {"owners": owners})
    groups = sorted({row.group_id for row in rows if row.group_id is not None})
    members: dict[int, set[int]] = {}
    for row in await work.kernel_rows(_MEMBERS, (groups,)):
        members.setdefault(row.group_id, set()).add(row.agent_id)
    ended = [each.id for each in unfounded([_standing(row, members) for row in rows])]
    return await work.kernel_rows(_END, (ended,)) if ended else []


def _standing(row: Any, members: Mapping[int, Collection[int]]) -> Standing:  # noqa: ANN401  a row
    agents = [row.agent_id] if row.group_id is None else members.get(row.group_id, ())
    return Standing(
        row.id,
        row.owner_id,
        row.granted_by,
        frozenset(agents),
        frozenset(row.verbs),
        frozenset((row.object, *(row.above or ()))),
        row.object,
        math.inf if row.expires_at is None else row.expires_at,
    )
