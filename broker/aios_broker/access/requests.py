"""Approvals in Postgres: what was asked, what a person decided, and that it was used once.

An approval is bound to a job, its agent, and the SHA-256 of the canonical arguments that will
run. It goes from `waiting` to `approved`, `denied` or `expired`, and from `approved` to `used` in
the very transaction of the change that it allows.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, LiteralString

import msgspec
from psycopg.types.json import Jsonb

from aios_broker.access.audit import AuditLine, append_line
from aios_broker.access.deciders import Decider, check_decider
from aios_broker.access.edits import check_editor, check_narrower
from aios_broker.access.tables import approval, selected
from aios_broker.comparing import MAX_COMPARED_BYTES, Comparer, Pair
from aios_broker.contract.access import (
    Approval,
    ApprovalRule,
    Approvals,
    ApprovalState,
    OperationClass,
)
from aios_broker.contract.errors import (
    ApprovalExpired,
    InvalidSyscall,
    NotFound,
    VersionConflict,
)
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import Body, module_of, refuse_nul
from aios_broker.places import Holder
from aios_broker.postgres.store import AgentRow, Cursor
from aios_broker.queues.control import Control

DEFAULT_RULES: dict[OperationClass, ApprovalRule] = {
    "delete": "ask",
    "overwrite": "ask-when-lossy",
    "rollback": "ask-when-lossy",
    "clear": "ask",
    "privilege": "ask",
    "unshare": "ask",
    "tool": "ask",
}
MAX_EDITED_BYTES = 500  # of one argument that was edited, in the audit log
ENDED = "its syscall has ended"  # why an approval is over that nobody decided
MAX_LISTED_CHARACTERS = 2_000  # of one argument, where many approvals are listed


def in_turns(condition: LiteralString) -> LiteralString:
    """Return the SQL of `turns`: id and place of the approvals `p` for which a condition holds.

    Tenants take turns, and within each its agents, the oldest first: whoever has thousands that
    wait hides nobody's only one.
    """
    return f"""
    of_agents AS (
        SELECT p.id, p.tenant_id, p.asked_at,
               row_number() OVER (PARTITION BY p.agent_id ORDER BY p.asked_at, p.id) AS nth
          FROM approval p WHERE {condition}
    ), of_tenants AS (
        SELECT id, asked_at,
               row_number() OVER (PARTITION BY tenant_id ORDER BY nth, asked_at, id) AS nth
          FROM of_agents
    ), turns AS (
        SELECT id, row_number() OVER (ORDER BY nth, asked_at, id) AS place FROM of_tenants
    )"""


_COLUMNS = f"""
    {selected(approval, "p", but=("arguments", "state"))}, p.state AS stored,
    CASE WHEN p.state IN ('waiting', 'approved') AND p.expires_at <= now() THEN 'expired'
         ELSE p.state END AS state,
    p.job_id AS syscall_id, a.name AS agent, t.name AS tenant
"""
_FROM = "FROM approval p JOIN agent a ON a.id = p.agent_id JOIN tenant t ON t.id = p.tenant_id"
_IS_LONG = f"length(e.value::text) > {MAX_LISTED_CHARACTERS}"
_LIST = f"""
    WITH {in_turns("%(state)s::text IS NULL OR p.state = %(state)s OR p.id = %(after)s")},
    page AS (
        SELECT t.id, t.place FROM turns t JOIN approval p ON p.id = t.id
         WHERE t.place > coalesce((SELECT place FROM turns WHERE id = %(after)s), 0)
           AND (%(state)s::text IS NULL OR p.state = %(state)s)
         ORDER BY t.place LIMIT %(limit)s
    )
    SELECT {_COLUMNS}, short.* {_FROM} JOIN page ON page.id = p.id, LATERAL (
        SELECT coalesce(jsonb_object_agg(e.key, e.value) FILTER (WHERE NOT {_IS_LONG}), '{{}}')
                   AS arguments,
               coalesce(array_agg(e.key ORDER BY e.key) FILTER (WHERE {_IS_LONG}), '{{}}')
                   AS left_out
          FROM jsonb_each(p.arguments) e) short
     ORDER BY page.place
"""
_WHOLE = f"SELECT {_COLUMNS}, p.arguments, ARRAY[]::text[] AS left_out {_FROM}"
_FIND = f"""
    {_WHOLE} WHERE starts_with(p.id, %(digits)s) OR starts_with(p.job_id, %(digits)s)
     ORDER BY p.asked_at DESC, p.id LIMIT %(limit)s
"""
_ONE = f"{_WHOLE} WHERE p.id = %s"
_LOCKED = f"{_ONE} FOR UPDATE OF p"  # by who may decide it
_DECIDE = """
    UPDATE approval SET state = %(state)s, decided_by = %(by)s, decided_by_agent = %(by_agent)s,
           decided_at = now(),
           reason = %(reason)s, arguments = %(arguments)s, arguments_sha256 = %(sha)s,
           diff = %(diff)s, resumed_at = NULL WHERE id = %(id)s
"""
_RULES = """
    SELECT operation, rule, agent_id IS NOT NULL AS own FROM approval_rule
     WHERE tenant_id = %s AND (agent_id = %s OR agent_id IS NULL) ORDER BY agent_id NULLS FIRST
"""
_OWN_RULE = """
    SELECT rule FROM approval_rule WHERE tenant_id = %s
       AND agent_id IS NOT DISTINCT FROM %s::bigint AND operation = %s
"""
_SET_RULE = """
    INSERT INTO approval_rule (tenant_id, agent_id, operation, rule)
    SELECT id, %(agent)s, %(operation)s, %(rule)s FROM tenant WHERE name = %(tenant)s
    ON CONFLICT (tenant_id, agent_id, operation) DO UPDATE SET rule = excluded.rule
"""
_DROP_RULE = """
    DELETE FROM approval_rule WHERE operation = %(operation)s
       AND tenant_id = (SELECT id FROM tenant WHERE name = %(tenant)s)
       AND agent_id IS NOT DISTINCT FROM %(agent)s::bigint
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """Whether a person is asked, and whether that is said of this very agent."""

    rule: ApprovalRule
    of_agent: bool = False


AgentRules = Mapping[OperationClass, Rule]


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided; `arguments` are others than those that were asked for."""

    state: ApprovalState
    reason: str = ""
    arguments: dict[str, Any] | None = None


def arguments_of(body: Body) -> dict[str, Any]:
    """Return a body's arguments as JSON types, its defaults and its tag left out."""
    arguments: dict[str, Any] = msgspec.to_builtins(body)
    arguments.pop("type")
    return arguments


def arguments_sha256(body: Body) -> str:
    """Return the SHA-256, in hex, of a body as canonical JSON: no spaces, no defaults."""
    return hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest()


def body_from(kind: str, arguments: dict[str, Any]) -> Body:
    """Return the body of a kind with these arguments.

    Raises:
        InvalidSyscall: they are none of that kind, or have a NUL; `field` names the first that is
            wrong.
    """
    refuse_nul(arguments)
    try:
        body: Body = msgspec.convert({**arguments, "type": kind}, Body)
    except msgspec.ValidationError as error:
        raise InvalidSyscall(
            f"these are no arguments of {kind}: {error}",
            field="arguments",
            remedy="change only values, and keep the names",
        ) from error
    return body


async def rules_of(cursor: Cursor, agent: AgentRow) -> AgentRules:
    """Return the rule per class: the agent's own, else its tenant's, else the default."""
    rules = {operation: Rule(rule) for operation, rule in DEFAULT_RULES.items()}
    await cursor.execute(_RULES, (agent.tenant_id, agent.id))
    for row in await cursor.fetchall():
        rules[row.operation] = Rule(row.rule, row.own)
    return rules


async def own_rule(
    cursor: Cursor, asker: AgentRow, agent: AgentRow | None, operation: OperationClass
) -> str | None:
    """Return the rule that is said of this very agent, or of all of the asker's tenant."""
    whose = None if agent is None else agent.id
    await cursor.execute(_OWN_RULE, (asker.tenant_id, whose, operation))
    row = await cursor.fetchone()
    return None if row is None else str(row.rule)


async def set_rule(
    cursor: Cursor,
    tenant: str,
    agent: AgentRow | None,
    operation: OperationClass,
    rule: ApprovalRule | None,
) -> bool:
    """Set the rule of a class for an agent or all of a tenant; None: what is wider holds again."""
    values = {
        "tenant": tenant,
        "agent": None if agent is None else agent.id,
        "operation": operation,
        "rule": rule,
    }
    await cursor.execute(_DROP_RULE if rule is None else _SET_RULE, values)
    return cursor.rowcount > 0


async def list_approvals(
    cursor: Cursor, state: ApprovalState | None, limit: int, after: str | None = None
) -> Approvals:
    """Return a page of approvals that the cursor may see, without their long arguments.

    Tenants and their agents take turns. `after`: the last one of the page before.
    """
    values = {"state": state, "limit": limit + 1, "after": after}
    await cursor.execute(_LIST, values)
    found = tuple(_as_approval(row) for row in await cursor.fetchall())
    return Approvals(found[:limit], more=len(found) > limit)


async def find_approvals(cursor: Cursor, digits: str, limit: int) -> tuple[Approval, ...]:
    """Return those whose id, or whose syscall's, begins so: newest first, with all arguments."""
    await cursor.execute(_FIND, {"digits": digits, "limit": limit})
    return tuple(_as_approval(row) for row in await cursor.fetchall())


async def one_approval(cursor: Cursor, approval_id: str) -> Approval:
    """Return one that the cursor may see, with all its arguments.

    Raises:
        NotFound: there is none of this id, or it may not be seen.
    """
    await cursor.execute(_ONE, (approval_id,))
    row = await cursor.fetchone()
    if row is None:
        raise _unknown(approval_id)
    return _as_approval(row)


def _as_approval(row: Any) -> Approval:  # noqa: ANN401  a row of psycopg's
    """Return a row as what people and agents get; one that is over is shown as expired."""
    return msgspec.convert(row._asdict(), Approval)


async def decide(
    cursor: Cursor, approval_id: str, decider: Decider, decision: Decision
) -> Approval:
    """Decide what waits, and enter it into the audit log; return it as it is now.

    Of several who decide at once the first one does.

    Raises:
        NotFound: there is no such approval, or none of the decider's tenant.
        AccessDenied: the decider may not, or makes more of it than was asked for.
        ApprovalExpired: too late, or its syscall has ended.
        VersionConflict: somebody decided already.
        InvalidSyscall: other arguments that are none of its kind.
    """
    for query in (_ONE, _LOCKED):
        await cursor.execute(query, (approval_id,))
        row: Any = await cursor.fetchone()
        _check_decidable(row, approval_id, decider)
        await check_decider(cursor, decider, row)
    arguments, sha, diff = row.arguments, row.arguments_sha256, row.diff
    if decision.arguments is not None:
        body = await _edited(cursor, decider, row, decision.arguments)
        arguments, sha = arguments_of(body), arguments_sha256(body)
        diff = await arguments_diff(row.arguments, arguments)
    await cursor.execute(
        _DECIDE,
        {
            "state": decision.state,
            "by": decider.name,
            "by_agent": decider.agent_id,
            "reason": decision.reason,
            "arguments": Jsonb(arguments),
            "sha": sha,
            "diff": diff,
            "id": approval_id,
        },
    )
    await append_line(
        cursor,
        AuditLine(
            row.tenant,
            decider.name,
            f"approval.{decision.state}",
            row.what,
            "done",
            row.syscall_id,
            {
                "approval": approval_id,
                "arguments_sha256": sha,
                "reason": decision.reason,
                "asked_sha256": row.asked_sha256,
                "edited": changed(row.arguments, arguments),
            },
        ),
    )
    return await one_approval(cursor, approval_id)


def _check_decidable(row: Any, approval_id: str, decider: Decider) -> None:  # noqa: ANN401
    if row is None or decider.tenant_id not in (None, row.tenant_id):
        raise _unknown(approval_id)
    if row.stored in ("approved", "denied", "used"):
        raise VersionConflict(
            f"it is {row.stored} already, by {row.decided_by}",
            field="approval",
            remedy="nothing is to be decided any more",
        )
    if row.state == "expired":
        raise _over(row.reason or "nobody decided in time")


async def check_alive(control: Control, decided: Approval) -> None:
    """Return when what was decided about has not ended; call it before the decision is committed.

    Raises:
        ApprovalExpired: it has: it was cancelled, failed, or its deadline has passed.
    """
    module = msgspec.convert(module_of(decided.kind), Module)
    [lives] = await control.live([decided.syscall_id], module=module)
    if not lives:
        raise _over(ENDED)


def _over(why: str) -> ApprovalExpired:
    return ApprovalExpired(
        f"nothing is to be decided any more: {why}",
        field="approval",
        remedy="have the syscall sent again",
    )


def _unknown(approval_id: str) -> NotFound:
    return NotFound(
        f"there is no approval {approval_id}",
        field="approval",
        remedy="see which there are: access.approvals",
    )


async def _edited(
    cursor: Cursor,
    decider: Decider,
    row: Any,  # noqa: ANN401  a row of psycopg's
    arguments: dict[str, Any],
) -> Body:
    """Return what is to run with other arguments; an agent's may only be narrower ones."""
    asked, body = body_from(row.kind, row.arguments), body_from(row.kind, arguments)
    if decider.agent_id is not None and body != asked:
        check_narrower(asked, body)
        await check_editor(cursor, decider.name, row.agent, body)
    return body


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return what an edit changed, as the audit log keeps it: each argument before and after."""
    names = sorted({*before, *after})
    return {
        name: {"asked": _short(before.get(name)), "runs": _short(after.get(name))}
        for name in names
        if before.get(name) != after.get(name)
    }


def _short(value: object) -> object:
    """Return a value; of one that is long its beginning, and the digest of all of it."""
    text = msgspec.json.encode(value, order="deterministic")
    if len(text) <= MAX_EDITED_BYTES:
        return value
    begins = text[:MAX_EDITED_BYTES].decode(errors="ignore")
    return {"begins": begins, "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}


async def arguments_diff(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return what an edit changed, as a unified diff of pretty JSON."""
    texts = [
        msgspec.json.format(msgspec.json.encode(each, order="sorted")).decode() + "\n"
        for each in (before, after)
    ]
    if max(map(len, texts)) > MAX_COMPARED_BYTES:
        return "arguments that are too long to be compared\n"
    text = await Comparer().unified(Holder("", ""), Pair(texts[0], texts[1], "asked for", "edited"))
    return "arguments that differ in too much to be compared\n" if text is None else text
