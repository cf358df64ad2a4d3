"""Who a request is from: its token says it, and nothing else that it sends.

Tokens are those of the access module. Redis has their digests, and is asked at each request: one
that was revoked, has expired, or whose agent was suspended is refused from then on.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Literal

from starlette.datastructures import Headers
from starlette.requests import Request

from aios_broker.contract.errors import AccessDenied, Unauthenticated
from aios_broker.contract.names import Owner
from aios_broker.contract.tokens import PREFIX, digest
from aios_broker.contract.traces import traceparent_of
from aios_broker.queues.quota import Subject, suspended
from aios_kernel_api.kernel import Kernel

# agent: itself. administrator: the agents of its tenant. operator: everything.
Scope = Literal["agent", "administrator", "operator"]
SCOPES: tuple[Scope, ...] = ("agent", "administrator", "operator")
MAX_TOKEN_LENGTH = 256

_RIGHTS = """
    SELECT a.administrator FROM agent a JOIN tenant t ON t.id = a.tenant_id
     WHERE t.name = %s AND a.name = %s
"""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. An operator is no agent: its name begins with `operator:`."""

    tenant: str
    agent: str
    scope: Scope
    token: str = field(repr=False)  # goes with its syscalls: the kernel looks at it again
    traceparent: str = ""  # the trace that its request is part of, and so are its syscalls

    @property
    def owner(self) -> Owner:
        """Whose its syscalls are."""
        return Owner(self.tenant, self.agent)

    @property
    def asks_as(self) -> Owner | None:
        """Who asks for a syscall by its id; None: an operator, who may ask for everybody's."""
        return None if self.scope == "operator" else self.owner


async def identify(headers: Headers, kernel: Kernel) -> Caller:
    """Return who sends a request: an agent, or an operator.

    Raises:
        Unauthenticated: no token, or one that is not good (any more).
        AgentSuspended: an operator has suspended the agent, or its tenant.
    """
    caller = await holder_of(_token_in(headers), kernel)
    return replace(caller, traceparent=traceparent_of(headers.get("traceparent", "")))


async def holder_of(token: str, kernel: Kernel) -> Caller:
    """Return whose a token is.

    Raises:
        Unauthenticated: it is not good (any more).
        AgentSuspended: an operator has suspended the agent, or its tenant.
    """
    identity = await kernel.tokens.find(digest(token))
    if identity is None or _is_over(identity.expires_at):
        raise unauthenticated("the token is unknown, was revoked, or has expired")
    caller = Caller(identity.tenant, identity.agent, identity.scope, token)
    if caller.scope != "operator":
        await _refuse_suspended(caller, kernel)
    return caller


async def with_rights(caller: Caller, kernel: Kernel) -> Caller:
    """Return a caller with the scope that its agent has now: administrators are made by operators.

    Raises:
        DatabaseUnavailable: the database that knows does not answer.
    """
    if caller.scope == "operator" or kernel.store is None:
        return caller
    async with kernel.store.as_steward() as cursor:
        await cursor.execute(_RIGHTS, (caller.tenant, caller.agent))
        row = await cursor.fetchone()
    return replace(caller, scope="administrator") if row and row.administrator else caller


def caller_of(request: Request) -> Caller:
    """Return who sends a request that the border has let through."""
    caller: Caller = request.scope["state"]["caller"]
    return caller


def require(caller: Caller, scope: Scope) -> None:
    """Return when the caller has this scope, or a wider one.

    Raises:
        AccessDenied: it has a smaller one.
    """
    if SCOPES.index(caller.scope) < SCOPES.index(scope):
        raise AccessDenied(
            f"this is for the scope {scope!r}; the token has {caller.scope!r}",
            field="token",
            remedy="use a token of that scope"
            if scope == "operator"
            else "have the operator make the agent an administrator: "
            "`aios agents allow NAME administer`",
        )


def require_agent(caller: Caller) -> Owner:
    """Return whose the caller's syscalls are.

    Raises:
        AccessDenied: it is an operator: no agent, so it has none.
    """
    if caller.scope == "operator":
        raise AccessDenied(
            "an operator's token is no agent's, and submits nothing",
            field="token",
            remedy="use the token of the agent that is to ask",
        )
    return caller.owner


def _token_in(headers: Headers) -> str:
    """Return the token of a request: `Authorization: Bearer`, else Anthropic's `x-api-key`.

    A key of Anthropic's own API may stand beside the token, for its clients send both. Another
    token may not: what stands before the API may have looked at that one.
    """
    keys = headers.getlist("x-api-key")
    given = headers.getlist("authorization")
    if given:
        given += [key for key in keys if key.startswith(PREFIX) and key not in given[0]]
    else:
        given = keys
    if len(given) != 1:
        raise unauthenticated("the request has no token" if not given else "it has two tokens")
    scheme, space, token = given[0].partition(" ")
    if "authorization" in headers:
        if scheme.lower() != "bearer":
            raise unauthenticated("the header Authorization has no bearer token")
    else:
        token = given[0] if not space else ""
    token = token.strip()
    if not token or len(token) > MAX_TOKEN_LENGTH:
        raise unauthenticated("the request has no token")
    return token


def _is_over(expires_at: float | None) -> bool:
    return expires_at is not None and expires_at <= time.time()


async def _refuse_suspended(caller: Caller, kernel: Kernel) -> None:
    subjects = (Subject.of_tenant(caller.tenant), Subject.of_agent(caller.agent, caller.tenant))
    for subject in await kernel.control.stopped_among(subjects):
        raise suspended(subject)


def unauthenticated(message: str) -> Unauthenticated:
    """Return the error of who sends no token, or one that is not good."""
    return Unauthenticated(
        message,
        field="token",
        remedy="send the agent's own token: `Authorization: Bearer aios_...`",
    )
