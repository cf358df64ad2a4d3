"""Agents: what each may do, holds and shares; and what the operator says of them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct, structs
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from aios_broker.access.rights import KnownAgent
from aios_broker.access.tokens import KnownToken
from aios_broker.contract.errors import UnknownAgent
from aios_broker.queues.quota import ANYBODY
from aios_kernel_api.identity import Caller, caller_of
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.operations import Asked, path_of
from aios_kernel_api.page.decisions.grant_changes import OBJECT_KINDS, ROLES, VERBS
from aios_kernel_api.page.decisions.settings import LIMITS
from aios_kernel_api.page.forms import Form, changes, shows
from aios_kernel_api.page.html import HEADERS
from aios_kernel_api.page.owners import meant_tenant
from aios_kernel_api.page.pages import page
from aios_kernel_api.page.parts import address_of, query_from
from aios_kernel_api.page.rest import ask
from aios_kernel_api.rest import access, rights, settings
from aios_kernel_api.rest.rights import Suspension
from aios_kernel_api.rest.settings import QuotaLine
from aios_kernel_api.rest.views import Page, Place, Who

PAGE_LENGTH = 50
TOKENS_SHOWN = 10  # of an agent; its older ones are folded


class AccessQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of whom, and which page."""

    tenant: Who | None = None
    agent: Who | None = None
    after: Place | None = None

    def following(self, path: str, after: str) -> str:
        """Return the address of the page that goes on behind one."""
        return address_of(path, structs.replace(self, after=after))


class TokenListQuery(AccessQuery, frozen=True, kw_only=True):
    """Of whom, which page, and whether of tokens that are good."""

    state: Literal["good", "over"] = "good"

    def in_state(self, state: Literal["good", "over"]) -> str:
        """Return the address of the first page of the others, or of these."""
        return address_of("/tokens", structs.replace(self, state=state, after=None))


async def view(request: Request) -> Response:
    """Show agents, and who is suspended; only an operator is told of that."""
    kernel, caller = kernel_of(request), caller_of(request)
    suspensions = await _suspensions(kernel, caller)
    query = query_from(dict(request.query_params), AccessQuery)
    found = await ask(kernel, caller, access.agents, query=await _page(kernel, caller, query))
    return await page(
        request,
        "decisions/agents.html",
        found=found,
        query=query,
        suspensions=suspensions,
        suspended={_name(one) for one in found.items if _stopping(one, suspensions)},
    )


async def view_one(request: Request) -> Response:
    """Show one agent, and the first of all that it holds.

    Raises:
        UnknownAgent: there is none, or none that the caller may know of.
    """
    kernel, caller = kernel_of(request), caller_of(request)
    whose = path_of(request)
    known = await ask(kernel, caller, access.agents, query=whose)
    if not known.items:
        raise UnknownAgent(
            f"tenant {whose['tenant']!r} has no agent {whose['agent']!r}",
            field="agent",
            remedy="it becomes known by its first syscall, a token, or a right",
        )
    [one] = known.items
    first = {**whose, "limit": str(PAGE_LENGTH)}
    quotas = await ask(kernel, caller, settings.quotas, query={"limit": "1000"})
    return await page(
        request,
        "decisions/agent.html",
        one=one,
        suspensions=_stopping(one, await _suspensions(kernel, caller)),
        tokens=await _tokens(kernel, caller, first),
        over=await _tokens(kernel, caller, {**first, "state": "over"}),
        groups=await ask(kernel, caller, rights.groups, query=first),
        grants=await ask(kernel, caller, rights.grants, query=first),
        quotas=[line for line in quotas.items if _concerns(line, one)],
        limits=LIMITS,
        shown=TOKENS_SHOWN,
    )


async def suspend(request: Request, form: Form) -> Response:
    """Suspend an agent or a tenant."""
    await ask(kernel_of(request), caller_of(request), rights.stop, body=_subject(form))
    return _back(form)


async def let_go_on(request: Request, form: Form) -> Response:
    """Let an agent or a tenant go on."""
    await ask(kernel_of(request), caller_of(request), rights.let_go_on, query=_subject(form))
    return _back(form)


async def set_right(request: Request, form: Form) -> Response:
    """Give a right or take it away."""
    body = {**_subject(form), "right": form.one("right"), "given": form.one("given") == "true"}
    await ask(kernel_of(request), caller_of(request), rights.set_right, body=body)
    return _back(form)


def _lists(
    path: str,
    handler: Callable[[Asked[Any, Any]], Awaitable[Page[Any]]],
    kind: type[AccessQuery] = AccessQuery,
) -> Route:
    """Return the route of a plain list of what agents hold."""

    async def view_list(request: Request) -> Response:
        query = query_from(dict(request.query_params), kind)
        kernel, caller = kernel_of(request), caller_of(request)
        found = await ask(kernel, caller, handler, query=await _page(kernel, caller, query))
        return await page(
            request,
            f"decisions{path}.html",
            found=found,
            query=query,
            roles=ROLES,
            verbs=VERBS,
            object_kinds=OBJECT_KINDS,
        )

    return shows(path, view_list)


async def _tokens(kernel: Kernel, caller: Caller, wanted: Mapping[str, str]) -> Page[KnownToken]:
    """Return tokens of an agent, the newest first."""
    found = await ask(kernel, caller, rights.tokens, query=wanted)
    newest = sorted(found.items, key=lambda one: one.issued_at, reverse=True)
    return structs.replace(found, items=newest)


async def _page(kernel: Kernel, caller: Caller, query: AccessQuery) -> dict[str, str]:
    tenant = await meant_tenant(kernel, caller, query.tenant, query.agent)
    wanted = {"tenant": tenant, "agent": query.agent, "after": query.after}
    if isinstance(query, TokenListQuery):
        wanted["state"] = query.state
    return {
        "limit": str(PAGE_LENGTH),
        **{name: value for name, value in wanted.items() if value is not None},
    }


def _subject(form: Form) -> dict[str, str]:
    named = {name: form.one(name).strip() for name in ("tenant", "agent")}
    return {name: value for name, value in named.items() if value}


def _back(form: Form) -> Response:
    place = form.one("back")
    return RedirectResponse(place if place.startswith("/agents") else "/agents", 303, HEADERS)


async def _suspensions(kernel: Kernel, caller: Caller) -> Sequence[Suspension]:
    if caller.scope != "operator":
        return ()
    return (await ask(kernel, caller, rights.suspensions)).items


def _name(agent: KnownAgent) -> str:
    return f"{agent.tenant}/{agent.name}"


def _stopping(agent: KnownAgent, suspensions: Sequence[Suspension]) -> list[Suspension]:
    """Return the suspensions that keep an agent from asking: its own, and its tenant's."""
    return [
        one for one in suspensions if one.tenant == agent.tenant and one.agent in (None, agent.name)
    ]


def _concerns(line: QuotaLine, agent: KnownAgent) -> bool:
    """Tell whether a quota says something of an agent."""
    subject = line.quota.subject
    if subject.tenant == ANYBODY:
        return True
    return subject.tenant == agent.tenant and subject.agent in ("", agent.name)


ROUTES = [
    shows("/agents", view),
    shows("/agents/{tenant}/{agent:path}", view_one),
    _lists("/tokens", rights.tokens, TokenListQuery),
    _lists("/groups", rights.groups),
    _lists("/grants", rights.grants),
    changes("/suspensions", suspend),
    changes("/suspensions/end", let_go_on),
    changes("/rights", set_right),
]
