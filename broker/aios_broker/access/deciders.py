"""Who decides: the operator about everything; an agent where the operator lets it, about others.

Whoever asked never decides, by whomever it asked. A token is the proof of who calls, so who
registered an agent or got a token of it can speak as it: all that one hand may move is a circle. An
agent decides neither for one of its circle, nor for one to whom its circle granted something, nor
about what is its circle's. Asked when it decides, and again when what it allowed is done
(`aios_may_decide`).
"""

from dataclasses import dataclass
from typing import Any

from aios_broker.contract.errors import AccessDenied
from aios_broker.postgres.store import Cursor, only_row

# They change who asks and who decides, or reach beyond the kernel.
OPERATOR_ALONE = frozenset(("access.register", "access.set_rule", "storage.mount"))
_STANDING = """
    SELECT d.decides, aios_may_decide(d.id, %(asker)s) AS is_apart,
           ARRAY(SELECT name FROM agent WHERE id = ANY (aios_circle(d.id))) AS names
      FROM agent d WHERE d.id = %(decider)s
"""


@dataclass(frozen=True, slots=True)
class Decider:
    """Who decides: an agent, or the operator of the kernel."""

    name: str
    tenant_id: int | None = None  # None: the operator, of all tenants
    agent_id: int | None = None


async def check_decider(cursor: Cursor, decider: Decider, row: Any) -> None:  # noqa: ANN401  a row
    """Return when this decider may decide about a request; `row`: of the approval.

    Raises:
        AccessDenied: it may not.
    """
    if decider.agent_id is None:
        return
    if decider.agent_id == row.agent_id:
        raise _refused("nobody decides what it asked for itself")
    await cursor.execute(_STANDING, {"decider": decider.agent_id, "asker": row.agent_id})
    standing = await only_row(cursor)
    if not standing.decides:
        raise AccessDenied(
            f"the operator has not let {decider.name} decide for others",
            field="approval",
            remedy=f"have the operator decide, or allow it: `aios agents allow {decider.name} "
            "decide`",
        )
    if row.kind in OPERATOR_ALONE:
        raise _refused(f"{row.kind} is the operator's to decide")
    if not standing.is_apart:
        raise _refused(
            f"{decider.name} is not apart from {row.agent}: one hand may move both, which "
            "registered them or got their tokens, or granted the one something as the other"
        )
    own = names_in(row.arguments).intersection(standing.names)
    if own:
        raise _refused(f"it is about {', '.join(sorted(own))}, which is {decider.name}'s own")


def names_in(arguments: dict[str, Any]) -> frozenset[str]:
    """Return which agents arguments name: whose it is, and whom it is for."""
    named = arguments.get("object", {})
    found = (arguments.get("owner"), arguments.get("agent"), named.get("owner"))
    return frozenset(name for name in found if name is not None)


def _refused(why: str) -> AccessDenied:
    return AccessDenied(why, field="approval", remedy="have the operator decide: `aios approve`")
