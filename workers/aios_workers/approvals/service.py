"""Where what cannot be taken back waits for a person: a service for the handlers of all modules.

    body = await approvals.body_of(agent, syscall)             # only where the lease says `decided`
    taken = (Irreversible("delete", "delete /a.txt", (seen,)),)
    takings = Takings(taken, await approvals.rules(cursor, agent))
    await approvals.check(cursor, agent, syscall, body, takings)
    except NeedsApproval as needs: return await approvals.ask(needs)   # the outcome parks the job

An approval is used up in the transaction of the check: with what it allows, where that is in
Postgres; before it, at most once, where it is elsewhere. It allows what a person saw: where other
things would go than those, or the same in another state, the request is made anew, under a new id.

A decision is committed in Postgres first. The worker that decided puts the job back at once; what
a crash left undone, and what nobody decided in time, a sweep finds within a second: the parked job
goes on, and requests expire. One process of the fleet sweeps at a time (an advisory
lock).
"""

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import structs
from psycopg.types.json import Jsonb

from aios_broker.access.audit import append_line, line_of
from aios_broker.access.edits import check_editor
from aios_broker.access.requests import (
    ENDED,
    AgentRules,
    arguments_of,
    arguments_sha256,
    body_from,
    in_turns,
    rules_of,
)
from aios_broker.comparing import Comparer, Pair
from aios_broker.contract.access import Approval
from aios_broker.contract.errors import ApprovalDenied, ApprovalExpired, KernelError
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import Body, Syscall, module_of, new_id
from aios_broker.postgres.store import AgentRow, Cursor, Store, only_row
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_workers.approvals.irreversible import (
    Irreversible,
    Takings,
    bound_objects,
    shown_objects,
)
from aios_workers.runtime.executor import Outcome, Parked

DEFAULT_TTL_S = 3600.0
# Who approved it may still decide for who asked: that has not been taken away meanwhile, and one
# hand does not move both by now.
_STANDS = "(decided_by_agent IS NULL OR aios_may_decide(decided_by_agent, agent_id))"
_USE = f"""
    UPDATE approval SET state = 'used', used_at = now()
     WHERE job_id = %(job)s AND agent_id = %(agent)s AND kind = %(kind)s
       AND asked_sha256 = %(asked)s AND arguments_sha256 = %(sha)s
       AND objects @> %(objects)s AND state = 'approved' AND expires_at > now() AND {_STANDS}
    RETURNING id, decided_by
"""
_FIND = f"""
    SELECT state, reason, decided_by, decided_by_agent, arguments, arguments_sha256,
           expires_at <= now() AS is_over, {_STANDS} AS stands
      FROM approval WHERE job_id = %(job)s AND agent_id = %(agent)s AND kind = %(kind)s
       AND asked_sha256 = %(asked)s
"""
# A new id: what was seen under the old one is decided by nobody any more.
_ASK_ANEW = """
    UPDATE approval SET id = %(id)s, state = 'waiting', operation = %(operation)s, what = %(what)s,
           objects = %(shown)s, diff = %(diff)s, asked_at = now(), decided_by = '',
           decided_by_agent = NULL, decided_at = NULL, reason = '', resumed_at = NULL,
           announced_at = NULL, expires_at = now() + %(ttl)s * interval '1 second'
     WHERE job_id = %(job)s AND agent_id = %(agent)s AND kind = %(kind)s
       AND asked_sha256 = %(asked)s AND arguments_sha256 = %(sha)s
       AND state IN ('waiting', 'approved') AND expires_at > now()
       AND NOT objects @> %(objects)s
    RETURNING true AS is_new
"""
_ASK = """
    INSERT INTO approval (id, tenant_id, agent_id, job_id, module, kind, operation, arguments,
                          arguments_sha256, asked_sha256, what, objects, diff, state, expires_at)
    VALUES (%(id)s, %(tenant)s, %(agent)s, %(job)s, %(module)s, %(kind)s, %(operation)s,
            %(arguments)s, %(sha)s, %(asked)s, %(what)s, %(shown)s, %(diff)s, 'waiting',
            now() + %(ttl)s * interval '1 second')
    ON CONFLICT (job_id, agent_id, asked_sha256) DO UPDATE SET resumed_at = NULL
     WHERE approval.agent_id = excluded.agent_id
       AND approval.state IN ('approved', 'denied', 'expired')
    RETURNING xmax = 0 AS is_new
"""

MAX_DIFF_CHARACTERS = 20_000  # of one that a person is shown


class NeedsApproval(Exception):
    """Raised within the transaction of an operation, which so changes nothing."""

    def __init__(self, agent: AgentRow, syscall: Syscall, body: Body, takings: Takings) -> None:
        super().__init__(takings.what)
        self.agent = agent
        self.syscall = syscall
        self.body = body
        self.takings = takings


class ApprovalService:
    """Asks for approvals, and lets through what one matching approval allows, once."""

    def __init__(
        self,
        store: Store,
        *,
        ttl_s: float = DEFAULT_TTL_S,
        comparer: Comparer | None = None,
    ) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._comparer = comparer or Comparer()

    async def body_of(self, agent: AgentRow, syscall: Syscall) -> Body:
        """Return what is to be run: the syscall's body, or the one that a person made of it.

        For a syscall about which somebody has decided: all others run as they are.

        Raises:
            AccessDenied: An agent edited it, and may no longer do that itself.
        """
        async with self._store.as_agent(agent) as cursor:
            row = await self._find(cursor, agent, syscall)
        if row is None or row.state not in ("approved", "used"):
            return syscall.body
        if row.arguments_sha256 == arguments_sha256(syscall.body):
            return syscall.body
        body = body_from(syscall.kind, row.arguments)
        if row.decided_by_agent is not None and row.state == "approved":
            editor = replace(agent, id=row.decided_by_agent, name=row.decided_by)
            async with self._store.as_agent(editor) as cursor:
                await check_editor(cursor, editor.name, agent.name, body)
        return body

    async def rules(self, cursor: Cursor, agent: AgentRow) -> AgentRules:
        """Return what needs a person of what this agent may take away."""
        return await rules_of(cursor, agent)

    async def check(
        self, cursor: Cursor, agent: AgentRow, syscall: Syscall, body: Body, takings: Takings
    ) -> None:
        """Return when all of it may go, in this transaction; an approval is used up with it.

        Raises:
            NeedsApproval: A person has to be asked first, or anew.
            ApprovalDenied, ApprovalExpired: A person was.
        """
        if takings.asks is None:
            for each in takings.taken:
                if each.lossy:
                    outcome = "in scratch space" if each.scratch else "by rule"
                    await self._enter(cursor, syscall, each, outcome)
            return
        objects = Jsonb(bound_objects(takings.taken))
        values = {"sha": arguments_sha256(body), "objects": objects}
        await cursor.execute(_USE, {**_key(agent, syscall), **values})
        used = await cursor.fetchone()
        if used is None:
            _refuse(await self._find(cursor, agent, syscall))
            raise NeedsApproval(agent, syscall, body, takings)
        for each in takings.taken:
            await self._enter(cursor, syscall, each, f"approved by {used.decided_by}")

    async def ask(self, needs: NeedsApproval) -> Outcome:
        """Enter the request and return the outcome that parks the job."""
        agent, syscall, body, takings = needs.agent, needs.syscall, needs.body, needs.takings
        objects = bound_objects(takings.taken)
        values = {
            **_key(agent, syscall),
            "id": new_id(),
            "tenant": agent.tenant_id,
            "module": module_of(syscall.kind),
            "operation": takings.asks,
            "arguments": Jsonb(arguments_of(body)),
            "sha": arguments_sha256(body),
            "what": takings.what,
            "objects": Jsonb(objects),
            "shown": Jsonb(shown_objects(takings.taken)),
            "diff": await self._shown(agent, takings),
            "ttl": min(self._ttl_s, syscall.deadline_s),
        }
        async with self._store.as_steward() as cursor:
            await cursor.execute(_ASK_ANEW, values)
            row = await cursor.fetchone()
            if row is None:
                await cursor.execute(_ASK, values)
                row = await cursor.fetchone()  # one that was decided: the sweep brings it back
            if row is not None and row.is_new:
                detail = {
                    "approval": values["id"],
                    "operation": takings.asks,
                    "objects": objects,
                }
                line = line_of(syscall, takings.what, "waiting", detail)
                await append_line(cursor, structs.replace(line, action="approval.asked"))
        return Parked()

    async def _shown(self, agent: AgentRow, takings: Takings) -> str:
        texts = [await self._text(agent, each.diff) for each in takings.taken]
        return "\n".join(text for text in texts if text)

    async def _text(self, agent: AgentRow, diff: object) -> str:
        if not isinstance(diff, Pair):
            return diff if isinstance(diff, str) else ""
        text = await self._comparer.unified(agent.holder, diff)
        return diff.hidden() if text is None else text[:MAX_DIFF_CHARACTERS]

    async def _enter(
        self, cursor: Cursor, syscall: Syscall, why: Irreversible, outcome: str
    ) -> None:
        detail = {"operation": why.operation, "objects": bound_objects([why])}
        await append_line(cursor, line_of(syscall, why.what, outcome, detail))

    async def _find(self, cursor: Cursor, agent: AgentRow, syscall: Syscall) -> Any:  # noqa: ANN401
        await cursor.execute(_FIND, _key(agent, syscall))
        return await cursor.fetchone()


def _refuse(row: Any) -> None:  # noqa: ANN401  a row, or none
    """Refuse what was refused, not decided in time, or by who may not decide it any more.

    Raises:
        ApprovalDenied, ApprovalExpired: It was so.
    """
    if row is None:
        return
    if row.state == "denied":
        raise ApprovalDenied(
            f"{row.decided_by} refused it" + (f": {row.reason}" if row.reason else ""),
            field="body",
            remedy="do without it, or send another syscall that asks anew",
        )
    if row.is_over or row.state in ("expired", "used"):
        raise ApprovalExpired(
            "nobody decided in time, or the approval was used before",
            field="body",
            remedy="send the syscall again, and have somebody decide sooner",
        )
    if row.state == "approved" and not row.stands:
        raise ApprovalExpired(
            f"{row.decided_by} approved it, and may not decide this any more",
            field="body",
            remedy="send the syscall again, and have somebody else decide",
        )


def _key(agent: AgentRow, syscall: Syscall) -> dict[str, object]:
    return {
        "job": syscall.id,
        "agent": agent.id,
        "kind": syscall.kind,
        "asked": arguments_sha256(syscall.body),
    }


logger = logging.getLogger(__name__)

PAUSE_S = 1.0
BATCH = 200  # approvals of one sweep
_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended('aios.approvals', 0)) AS ours"
_EXPIRE = """
    UPDATE approval SET state = 'expired'
     WHERE state IN ('waiting', 'approved') AND expires_at <= now()
"""
_DECIDED = f"""
    WITH {in_turns("p.state IN ('approved', 'denied', 'expired') AND p.resumed_at IS NULL")}
    SELECT id, job_id, module FROM approval JOIN turns USING (id) ORDER BY place LIMIT {BATCH}
"""
_RESUMED = "UPDATE approval SET resumed_at = now() WHERE id = ANY(%s)"
_WAITING = f"""
    SELECT id, job_id, module FROM approval WHERE state = 'waiting' ORDER BY random() LIMIT {BATCH}
"""
_ENDED = f"""
    UPDATE approval SET state = 'expired', reason = '{ENDED}', resumed_at = now()
     WHERE id = ANY(%s) AND state = 'waiting'
"""


class ApprovalSweep:
    """Brings jobs back whose approval is decided, and expires what nobody decided."""

    def __init__(self, store: Store, functions: Functions, keys: Keys) -> None:
        self._store = store
        self._control = Control(functions, keys)

    async def resume(self, approval: Approval) -> None:
        """Put the job of a decided approval back; the sweep does what fails here."""
        try:
            await self._unpark([(approval.id, approval.syscall_id, module_of(approval.kind))])
        except KernelError as error:
            logger.warning("a decided syscall goes on with the next sweep: %s", error)

    async def step(self) -> float:
        """Sweep once; return how long to wait before the next time, in s."""
        await self.sweep()
        return PAUSE_S

    async def sweep(self) -> int:
        """Do all that is due; return how many jobs went on: 0 where another process does it."""
        async with self._store.as_steward() as cursor:
            await cursor.execute(_LOCK)
            if not (await only_row(cursor)).ours:
                return 0
            await cursor.execute(_EXPIRE)
            await cursor.execute(_WAITING)
            waiting = await cursor.fetchall()
            await cursor.execute(_ENDED, (await self._ended(waiting),))
        async with self._store.as_steward() as cursor:
            await cursor.execute(_DECIDED)
            decided = await cursor.fetchall()
        return await self._unpark(decided)

    async def _ended(self, waiting: Iterable[Any]) -> list[str]:
        ended = []
        for module, part in _by_module(tuple(row) for row in waiting).items():
            alive = await self._control.live([job for _, job in part], module=module)
            ended += [each for (each, _), lives in zip(part, alive, strict=True) if not lives]
        return ended

    async def _unpark(self, decided: Iterable[tuple[str, str, str]]) -> int:
        done: list[str] = []
        for module, part in _by_module(decided).items():
            words = await self._control.unpark([job for _, job in part], module=module)
            # elsewhere: it runs just now, and may be about to be parked.
            done += [
                each for (each, _), word in zip(part, words, strict=True) if word != "elsewhere"
            ]
        if done:
            async with self._store.as_steward() as cursor:
                await cursor.execute(_RESUMED, (done,))
        return len(done)


def _by_module(rows: Iterable[tuple[str, str, str]]) -> dict[Module, list[tuple[str, str]]]:
    found: dict[Module, list[tuple[str, str]]] = defaultdict(list)
    for each, job, module in rows:
        found[msgspec.convert(module, Module)].append((each, job))
    return found
