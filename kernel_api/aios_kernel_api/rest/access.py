"""Agents, what waits for a person, and what happened; row-level security says who sees what."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from msgspec import Struct

from aios_broker.access.audit import AuditVerdict, in_pieces, newest_lines, verify
from aios_broker.access.requests import Decision, list_approvals, one_approval
from aios_broker.access.rights import KnownAgent, known_agents
from aios_broker.audit_folder import AuditFolder
from aios_broker.contract.access import (
    AccessApprove,
    AccessDeny,
    Approval,
    ApprovalState,
    AuditEntry,
    Reason,
)
from aios_broker.contract.errors import DeadlineExceeded, InvalidSyscall, NotConfigured
from aios_broker.postgres.store import Cursor
from aios_broker.views.settings import decide_as_operator
from aios_kernel_api.calls import call
from aios_kernel_api.identity import Caller
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.operations import Answer, Asked, NoQuery, Operation, route_of
from aios_kernel_api.rest.views import OwnerQuery, Page, PageQuery, cut_page, whose_of

MAX_DIGITS = 18
MOST_VERIFY_S = 60.0  # of a walk along the audit log: some millions of lines


@asynccontextmanager
async def cursor_of(kernel: Kernel, caller: Caller) -> AsyncIterator[Cursor]:
    """Yield a cursor that sees what the caller may see."""
    if caller.scope == "operator":
        async with kernel.needed_store.as_steward() as cursor:
            yield cursor
        return
    agent = await kernel.needed_store.vouched(caller.agent, caller.tenant)
    async with kernel.needed_store.as_agent(agent) as cursor:
        yield cursor


class ApprovalQuery(PageQuery, frozen=True, kw_only=True):
    """Which approvals; all states unless one is named."""

    state: ApprovalState | None = None


class AuditQuery(OwnerQuery, frozen=True, kw_only=True):
    """Which lines of the audit log."""


class ApproveRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Let it run once: as it was asked, or with other arguments."""

    arguments: dict[str, Any] | None = None


class DenyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Refuse it."""

    reason: Reason = ""


async def agents(asked: Asked[OwnerQuery, None]) -> Page[KnownAgent]:
    """Return the agents that are known."""
    query = asked.query
    whose = whose_of(asked.caller, query.tenant, query.agent)
    after = None if query.after is None else place_in(query.after)
    async with asked.kernel.needed_store.as_steward() as cursor:
        found = await known_agents(
            cursor, whose.tenant, whose.agent, limit=query.limit + 1, after=after
        )
    return cut_page(found, query.limit, lambda one: f"{one.tenant}/{one.name}")


async def approvals(asked: Asked[ApprovalQuery, None]) -> Page[Approval]:
    """Return what waits for a person, or has waited."""
    query = asked.query
    async with cursor_of(asked.kernel, asked.caller) as cursor:
        found = await list_approvals(cursor, query.state, query.limit, query.after)
    last = found.approvals[-1].id if found.more else None
    return Page(found.approvals, last)


async def approval(asked: Asked[NoQuery, None]) -> Approval:
    """Return one, with all its arguments."""
    async with cursor_of(asked.kernel, asked.caller) as cursor:
        return await one_approval(cursor, asked.path["id"])


async def approve(asked: Asked[NoQuery, ApproveRequest]) -> Approval:
    """Let what waits run once."""
    arguments = asked.body.arguments
    body = AccessApprove(asked.path["id"], arguments)
    return await _decide(asked, body, Decision("approved", arguments=arguments))


async def deny(asked: Asked[NoQuery, DenyRequest]) -> Approval:
    """End what waits."""
    body = AccessDeny(asked.path["id"], asked.body.reason)
    return await _decide(asked, body, Decision("denied", asked.body.reason))


async def _decide(
    asked: Asked[NoQuery, Any], body: AccessApprove | AccessDeny, decision: Decision
) -> Approval:
    """Decide as the operator does by its command, or as the agent does by a syscall."""
    kernel, caller = asked.kernel, asked.caller
    if caller.scope == "operator":
        audit_folder_of(kernel)
        return await decide_as_operator(
            kernel.needed_store, kernel.control, body.approval, caller.agent, decision
        )
    async with cursor_of(kernel, caller) as cursor:  # 404 where it may not be seen
        await one_approval(cursor, body.approval)
    await call(kernel, caller, body)
    async with cursor_of(kernel, caller) as cursor:
        return await one_approval(cursor, body.approval)


async def audit(asked: Asked[AuditQuery, None]) -> Page[AuditEntry]:
    """Return lines of the audit log, newest first."""
    query = asked.query
    whose = whose_of(asked.caller, query.tenant, query.agent)
    before = None if query.after is None else number_in(query.after)
    async with cursor_of(asked.kernel, asked.caller) as cursor:
        found = await newest_lines(
            cursor, tenant=whose.tenant, actor=whose.agent, limit=query.limit, before=before
        )
    return Page(found, str(found[-1].seq) if len(found) == query.limit else None)


async def verify_audit(asked: Asked[NoQuery, None]) -> AuditVerdict:
    """Walk the chain of the audit log's hashes."""
    folder = audit_folder_of(asked.kernel)
    key, noted = folder.key(), folder.noted()
    if key is None:
        raise _no_audit_key()
    try:
        async with asyncio.timeout(MOST_VERIFY_S):
            return await verify(in_pieces(asked.kernel.needed_store), key, noted)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"the audit log is too long to be walked within {MOST_VERIFY_S:g} s",
            field="audit",
            remedy="run `aios audit verify` on the kernel's host: it takes as long as it needs",
        ) from error


def place_in(after: str) -> tuple[str, str]:
    """Return the tenant and the name that a page ended with; raise InvalidSyscall: it is none."""
    tenant, slash, name = after.partition("/")
    if not slash:
        raise no_place()
    return tenant, name


def number_in(after: str) -> int:
    """Return the number that a page ended with; raise InvalidSyscall: it is none."""
    if not after.isdecimal() or not after.isascii() or len(after) > MAX_DIGITS:
        raise no_place()
    return int(after)


def audit_folder_of(kernel: Kernel) -> AuditFolder:
    """Return where the audit log's key lies.

    Raises:
        NotConfigured: the API was not told: here nobody decides as an operator, or verifies.
    """
    folder = kernel.config.audit_folder
    if folder is None:
        raise _no_audit_key()
    return folder


def _no_audit_key() -> NotConfigured:
    return NotConfigured(
        "the audit log's key is not where the API runs: it can write and verify no line of it",
        field="AIOS_AUDIT_DIR",
        remedy="have its operator give the API that folder; or use `aios approve`, `aios deny` and "
        "`aios audit verify` on the kernel's host",
    )


def no_place() -> InvalidSyscall:
    """Return the error of an `after` that no page has given."""
    return InvalidSyscall(
        "it is no place in this list", field="after", remedy="give `next` of the page before"
    )


OPERATIONS = (
    (
        Operation(
            method="GET",
            path="/v1/agents",
            tag="Access",
            words="List agents, with their rights",
            scope="agent",
            query=OwnerQuery,
            answers={200: Answer(words="Agents, by tenant and name", kind=Page[KnownAgent])},
            errors=(404, 501),
        ),
        agents,
    ),
    (
        Operation(
            method="GET",
            path="/v1/approvals",
            tag="Access",
            words="List what waits for a person, or has waited",
            more="Long arguments are left out; ask for the one.",
            scope="agent",
            query=ApprovalQuery,
            answers={200: Answer(words="Approvals, agents in turns", kind=Page[Approval])},
            errors=(501,),
        ),
        approvals,
    ),
    (
        Operation(
            method="GET",
            path="/v1/approvals/{id}",
            tag="Access",
            words="Show one approval, with all its arguments",
            scope="agent",
            answers={200: Answer(words="The approval", kind=Approval)},
            errors=(404, 501),
        ),
        approval,
    ),
    (
        Operation(
            method="POST",
            path="/v1/approvals/{id}/approve",
            tag="Access",
            words="Let what waits run, once; with other arguments where they are given",
            more="For operators, and for agents that the operator lets decide: about others, and "
            "only narrower than was asked.",
            scope="agent",
            body=ApproveRequest,
            body_example={},
            answers={200: Answer(words="The approval as it is now", kind=Approval)},
            errors=(404, 409, 501),
        ),
        approve,
    ),
    (
        Operation(
            method="POST",
            path="/v1/approvals/{id}/deny",
            tag="Access",
            words="End what waits: its caller hears `approval-denied`",
            scope="agent",
            body=DenyRequest,
            body_example={"reason": "not today"},
            answers={200: Answer(words="The approval as it is now", kind=Approval)},
            errors=(404, 409, 501),
        ),
        deny,
    ),
    (
        Operation(
            method="GET",
            path="/v1/audit",
            tag="Access",
            words="Show the audit log, newest first",
            scope="agent",
            query=AuditQuery,
            answers={200: Answer(words="Lines", kind=Page[AuditEntry])},
            errors=(404, 501),
        ),
        audit,
    ),
    (
        Operation(
            method="GET",
            path="/v1/audit/verify",
            tag="Access",
            words="Verify that the audit log is what was written",
            scope="operator",
            answers={200: Answer(words="What the walk along the chain found", kind=AuditVerdict)},
            errors=(501, 504),
        ),
        verify_audit,
    ),
)
ROUTES = [route_of(operation, handler) for operation, handler in OPERATIONS]
