"""Where what cannot be taken back waits for a person: a service for the handlers of all modules.

    body = await approvals.body_of(agent, syscall)             # only where the lease says `decided`
    await approvals.check(cursor, agent, syscall, body, Irreversible("delete", "delete /a.txt"))
    except NeedsApproval as needs: return await approvals.ask(needs)   # the outcome parks the job

An approval is used up in the transaction of the check: with what it allows, where that is in
Postgres; before it, at most once, where it is elsewhere.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from msgspec import structs
from psycopg.types.json import Jsonb

from aios_broker.contract.access import OperationClass
from aios_broker.contract.errors import ApprovalDenied, ApprovalExpired
from aios_broker.contract.syscall import Body, Syscall, module_of, new_id
from aios_broker.postgres.session import AgentRow, Cursor, Store
from aios_workers.approvals.requests import arguments_of, arguments_sha256, body_from, rules_of
from aios_workers.modules.access.audit import append_line, line_of
from aios_workers.runtime.executor import Outcome, Parked

DEFAULT_TTL_S = 3600.0
_USE = """
    UPDATE approval SET state = 'used', used_at = now()
     WHERE job_id = %(job)s AND agent_id = %(agent)s AND kind = %(kind)s
       AND asked_sha256 = %(asked)s AND arguments_sha256 = %(sha)s
       AND state = 'approved' AND expires_at > now()
    RETURNING id, decided_by
"""
_FIND = """
    SELECT state, reason, decided_by, arguments, arguments_sha256, expires_at <= now() AS is_over,
           used_at = now() AS is_ours
      FROM approval WHERE job_id = %(job)s AND agent_id = %(agent)s AND kind = %(kind)s
       AND asked_sha256 = %(asked)s
"""
_ASK = """
    INSERT INTO approval (id, tenant_id, agent_id, job_id, module, kind, operation, arguments,
                          arguments_sha256, asked_sha256, what, diff, state, expires_at)
    VALUES (%(id)s, %(tenant)s, %(agent)s, %(job)s, %(module)s, %(kind)s, %(operation)s,
            %(arguments)s, %(sha)s, %(asked)s, %(what)s, %(diff)s, 'waiting',
            now() + %(ttl)s * interval '1 second')
    ON CONFLICT (job_id, asked_sha256) DO UPDATE SET resumed_at = NULL
     WHERE approval.agent_id = excluded.agent_id
       AND approval.state IN ('approved', 'denied', 'expired')
    RETURNING xmax = 0 AS is_new
"""

Diff = Callable[[], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Irreversible:
    """What an operation would take away, for the rules and for the person who decides."""

    operation: OperationClass
    what: str  # one line: "delete /reports/q3.md (3 versions)"
    lossy: bool = True  # something newer, or not empty, would be lost
    scratch: bool = False  # all of it lies in the agent's own scratch space
    diff: str | Diff = ""  # unified diff, or a list of what goes; made when a person is asked


class NeedsApproval(Exception):
    """Raised within the transaction of an operation, which so changes nothing."""

    def __init__(
        self, agent: AgentRow, syscall: Syscall, body: Body, why: Irreversible, diff: str
    ) -> None:
        super().__init__(why.what)
        self.agent = agent
        self.syscall = syscall
        self.body = body
        self.why = why
        self.diff = diff


class ApprovalService:
    """Asks for approvals, and lets through what one matching approval allows, once."""

    def __init__(self, store: Store, *, ttl_s: float = DEFAULT_TTL_S) -> None:
        self._store = store
        self._ttl_s = ttl_s

    async def body_of(self, agent: AgentRow, syscall: Syscall) -> Body:
        """Return what is to be run: the syscall's body, or the one that a person made of it.

        For a syscall about which a person has decided: all others run as they are.
        """
        async with self._store.as_agent(agent) as cursor:
            row = await self._find(cursor, agent, syscall)
        if row is None or row.state not in ("approved", "used"):
            return syscall.body
        if row.arguments_sha256 == arguments_sha256(syscall.body):
            return syscall.body
        return body_from(syscall.kind, row.arguments)

    async def check(
        self, cursor: Cursor, agent: AgentRow, syscall: Syscall, body: Body, why: Irreversible
    ) -> None:
        """Return when it may be done, in this transaction; the approval is used up with it.

        Raises:
            NeedsApproval: A person has to be asked first.
            ApprovalDenied, ApprovalExpired: A person was.
        """
        if not await self._asks(cursor, agent, why):
            if not why.scratch and why.lossy:
                await self._enter(cursor, syscall, why, "by rule")
            return
        await cursor.execute(_USE, {**_key(agent, syscall), "sha": arguments_sha256(body)})
        used = await cursor.fetchone()
        if used is not None:
            await self._enter(cursor, syscall, why, f"approved by {used.decided_by}")
            return
        row = await self._find(cursor, agent, syscall)
        if row is not None and row.is_ours and row.arguments_sha256 == arguments_sha256(body):
            return  # a second check of the same transaction
        if row is not None and row.state == "denied":
            raise ApprovalDenied(
                f"{row.decided_by} refused it" + (f": {row.reason}" if row.reason else ""),
                field="body",
                remedy="do without it, or send another syscall that asks anew",
            )
        if row is not None and (row.is_over or row.state in ("expired", "used")):
            raise ApprovalExpired(
                "nobody decided in time, or the approval was used before",
                field="body",
                remedy="send the syscall again, and have somebody decide sooner",
            )
        diff = why.diff if isinstance(why.diff, str) else await why.diff()
        raise NeedsApproval(agent, syscall, body, why, diff)

    async def ask(self, needs: NeedsApproval) -> Outcome:
        """Enter the request and return the outcome that parks the job."""
        agent, syscall, body, why = needs.agent, needs.syscall, needs.body, needs.why
        values = {
            **_key(agent, syscall),
            "id": new_id(),
            "tenant": agent.tenant_id,
            "module": module_of(syscall.kind),
            "operation": why.operation,
            "arguments": Jsonb(arguments_of(body)),
            "sha": arguments_sha256(body),
            "what": why.what,
            "diff": needs.diff,
            "ttl": min(self._ttl_s, syscall.deadline_s),
        }
        async with self._store.as_steward() as cursor:
            await cursor.execute(_ASK, values)
            row = await cursor.fetchone()  # one that was decided before: the sweep brings it back
            if row is not None and row.is_new:
                detail = {"approval": values["id"], "operation": why.operation}
                line = line_of(syscall, why.what, "waiting", detail)
                await append_line(cursor, structs.replace(line, action="approval.asked"))
        return Parked()

    async def _asks(self, cursor: Cursor, agent: AgentRow, why: Irreversible) -> bool:
        rule = (await rules_of(cursor, agent))[why.operation]
        if why.scratch and not (rule.of_agent and rule.rule == "ask"):
            return False
        return rule.rule == "ask" or (rule.rule == "ask-when-lossy" and why.lossy)

    async def _enter(
        self, cursor: Cursor, syscall: Syscall, why: Irreversible, outcome: str
    ) -> None:
        detail = {"operation": why.operation}
        await append_line(cursor, line_of(syscall, why.what, outcome, detail))

    async def _find(self, cursor: Cursor, agent: AgentRow, syscall: Syscall) -> Any:  # noqa: ANN401
        await cursor.execute(_FIND, _key(agent, syscall))
        return await cursor.fetchone()


def _key(agent: AgentRow, syscall: Syscall) -> dict[str, object]:
    return {
        "job": syscall.id,
        "agent": agent.id,
        "kind": syscall.kind,
        "asked": arguments_sha256(syscall.body),
    }
