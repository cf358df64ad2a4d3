"""Grants that were passed on: they end with the right that they came from.

Who may share what is another's passes on no more than it may do itself, and for no longer. So each
grant stands on others, and in the end on one that the owner gave; one that stands on nothing any
more, because a grant was taken back, narrowed, or its holder left the group, is taken back with it.
"""

from __future__ import annotations

import math
from collections import defaultdict
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


class _Founded:
    """Grants that stand, to be found by whom they let do something with what."""

    def __init__(self) -> None:
        self._of_one: dict[tuple[int, str, int], list[Standing]] = defaultdict(list)
        self._of_groups: dict[tuple[int, str], list[Standing]] = defaultdict(list)

    def add(self, grant: Standing) -> None:
        if len(grant.agents) == 1:
            (agent,) = grant.agents
            self._of_one[grant.owner, grant.on, agent].append(grant)
        else:
            self._of_groups[grant.owner, grant.on].append(grant)

    def carry(self, passed_on: Standing) -> bool:
        """Whether who gave it may do all of it, for as long, and pass it on."""
        owner, by = passed_on.owner, passed_on.by
        theirs = (
            each
            for on in passed_on.reach
            for each in (
                *self._of_one.get((owner, on, by), ()),
                *self._of_groups.get((owner, on), ()),
            )
        )
        rights = rights_of(by, passed_on.reach, theirs)
        return all(rights.get(verb, 0.0) >= passed_on.until for verb in {"share", *passed_on.verbs})


def unfounded(grants: Sequence[Standing]) -> list[Standing]:
    """Return the grants that stand on none of their owner's, in no order. Pure.

    Each is looked at again only where one that it may stand on has been found to stand: an owner
    may have given ten thousand, and all others wait meanwhile.
    """
    left = {each.id: each for each in grants if each.by != each.owner}
    givers = {each.by for each in left.values()}
    waiting: dict[tuple[int, int, str], list[Standing]] = defaultdict(list)
    for each in left.values():
        for on in each.reach:
            waiting[each.by, each.owner, on].append(each)
    founded = _Founded()
    newly = [each for each in grants if each.by == each.owner]
    while newly:
        base = newly.pop()
        founded.add(base)
        for giver in base.agents & givers:
            for each in waiting.get((giver, base.owner, base.on), ()):
                if each.id in left and founded.carry(each):
                    del left[each.id]
                    newly.append(each)
    return list(left.values())


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
    held = {group: frozenset(agents) for group, agents in members.items()}
    ended = [each.id for each in unfounded([_standing(row, held) for row in rows])]
    return await work.kernel_rows(_END, (ended,)) if ended else []


def _standing(row: Any, members: Mapping[int, frozenset[int]]) -> Standing:  # noqa: ANN401  a row
    """Return a row as what unfounded() reads; grants to one group share its members."""
    one = frozenset() if row.agent_id is None else frozenset((row.agent_id,))
    return Standing(
        row.id,
        row.owner_id,
        row.granted_by,
        one if row.group_id is None else members.get(row.group_id, one),
        frozenset(row.verbs),
        frozenset((row.object, *(row.above or ()))),
        row.object,
        math.inf if row.expires_at is None else row.expires_at,
    )
